"""The heads that have names: the backbone's own, D3 in its two forms, and its rivals."""

from __future__ import annotations

import dataclasses

from d3jax.adapters.d3 import BalanceOptions
from d3jax.base import Head
from d3jax.choice import HeadChoice
from d3jax.heads import WHOLE_WIDTH, D3Options, d3, dense_head, generated
from d3jax.layers.prior_gates import pepnet, prior_fields
from d3jax.meta import meta_generator
from d3jax.official import d3_official
from d3jax.registry import Part

META_KNOWLEDGE = 64
"""Width of the knowledge of M2M's generator where it takes D3's place (Jia et al., 2024)."""


def _own(choice: HeadChoice) -> Head:
    return choice.own


def _d3(choice: HeadChoice) -> Head:
    options: D3Options = choice.options
    options = dataclasses.replace(options, width=options.width or choice.width)
    return d3_official(options) if options.form == "official" else d3(options, choice.tail)


def _m2m_wg(choice: HeadChoice) -> Head:
    return generated(meta_generator(META_KNOWLEDGE), WHOLE_WIDTH, choice.tail or dense_head())


def _pepnet_wg(choice: HeadChoice) -> Head:
    return pepnet(prior_fields(choice.schema), WHOLE_WIDTH)


OWN, M2M_WG, PEPNET_WG = Part(_own), Part(_m2m_wg), Part(_pepnet_wg)
D3 = Part(_d3, D3Options, more={"balance": BalanceOptions})
