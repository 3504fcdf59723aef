"""The heads that have names: the backbone's own, D3 in its two forms, and its rivals."""

from __future__ import annotations

import dataclasses
from typing import Any

from d3jax.adapters.d3 import BalanceOptions
from d3jax.adaptive import d3_adaptive
from d3jax.base import Head
from d3jax.choice import HeadChoice, chosen
from d3jax.errors import ConfigError
from d3jax.heads import WHOLE_WIDTH, D3Options, dense_head, generated
from d3jax.heads import d3 as d3_text
from d3jax.layers.prior_gates import pepnet, prior_fields
from d3jax.meta import meta_generator
from d3jax.official import d3_official
from d3jax.registry import Part

META_KNOWLEDGE = 64
"""Width of the knowledge of M2M's generator where it takes D3's place (Jia et al., 2024)."""


def _own(choice: HeadChoice) -> Head:
    return choice.own


def d3(options: D3Options | None = None, tail: Head | None = None, **settings: Any) -> Head:
    """Return the D3 head in any of its forms, over the backbone's representation.

    `tail` reads the generated layer of the text's form, and of no other; by default dense layers
    that are the same for all rows. Settings are those of `D3Options`. Raises `ConfigError` for one
    that there isn't, and for a tail that isn't read.
    """
    config = chosen(D3Options, options, settings)
    if config.form == "text":
        return d3_text(config, tail)
    if tail is not None:
        raise ConfigError(f"tail is given, which form {config.form} doesn't read; leave it out")
    return d3_official(config) if config.form == "official" else d3_adaptive(config)


def _d3(choice: HeadChoice) -> Head:
    options: D3Options = choice.options
    options = dataclasses.replace(options, width=options.width or choice.width)
    return d3(options, choice.tail if options.form == "text" else None)


def _m2m_wg(choice: HeadChoice) -> Head:
    return generated(meta_generator(META_KNOWLEDGE), WHOLE_WIDTH, choice.tail or dense_head())


def _pepnet_wg(choice: HeadChoice) -> Head:
    return pepnet(prior_fields(choice.schema), WHOLE_WIDTH)


OWN, M2M_WG, PEPNET_WG = Part(_own), Part(_m2m_wg), Part(_pepnet_wg)
D3 = Part(_d3, D3Options, more={"balance": BalanceOptions})
