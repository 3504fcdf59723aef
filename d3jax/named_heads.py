"""The heads that have names: the backbone's own, D3 in its two forms, and its rivals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from d3jax.adapters.d3 import BalanceOptions
from d3jax.adaptive import d3_adaptive
from d3jax.base import Head
from d3jax.checks import within
from d3jax.choice import HeadChoice, chosen
from d3jax.errors import ConfigError
from d3jax.heads import WHOLE_WIDTH, D3Options, dense_head, generated
from d3jax.heads import d3 as d3_text
from d3jax.layers.prior_gates import pepnet, prior_fields
from d3jax.meta import meta_generator
from d3jax.official import d3_official
from d3jax.registry import Part
from d3jax.typed import check_types

WIDTHS = 16, 32, 64, 128
"""The widths of a generated layer that a search tries, the same for D3 and its rivals."""


@dataclass(frozen=True)
class M2MWGOptions:
    """M2M's generator in the place of D3's; the defaults are those of Jia et al., 2024."""

    width: int = WHOLE_WIDTH
    """Output width of the generated layer."""
    knowledge: int = 64
    """Width of the scenario knowledge that it is generated from."""

    def __post_init__(self) -> None:
        check_types(self, "m2m_wg.")
        within("m2m_wg.width", self.width, 1, 65536)
        within("m2m_wg.knowledge", self.knowledge, 1, 4096)


@dataclass(frozen=True)
class PEPNetWGOptions:
    """PEPNet's gates in the place of D3's layer."""

    width: int = WHOLE_WIDTH
    """Output width of the gated layer."""
    epnet_only: bool = False
    """Gate the representation alone, by the scenario; user and item then gate nothing."""

    def __post_init__(self) -> None:
        check_types(self, "pepnet_wg.")
        within("pepnet_wg.width", self.width, 1, 65536)


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
    options = replace(options, width=options.width or choice.width)
    return d3(options, choice.tail if options.form == "text" else None)


def _m2m_wg(choice: HeadChoice) -> Head:
    options: M2MWGOptions = choice.options
    tail = choice.tail or dense_head()
    return generated(meta_generator(options.knowledge), options.width, tail)


def _pepnet_wg(choice: HeadChoice) -> Head:
    options: PEPNetWGOptions = choice.options
    return pepnet(prior_fields(choice.schema), options.width, options.epnet_only)


_D3_SPACE = {
    "field_hidden": (4, 8, 16, 32, 64),
    "width": WIDTHS,
    "rank": (0, 4, 8, 16, 32),
    "start_ratio": (0.0, 0.25, 0.5, 0.75, 1.0),
}

OWN = Part(_own)
D3 = Part(_d3, D3Options, more={"balance": BalanceOptions}, space=_D3_SPACE)
M2M_WG = Part(_m2m_wg, M2MWGOptions, space={"width": WIDTHS, "knowledge": (16, 32, 64, 128)})
PEPNET_WG = Part(_pepnet_wg, PEPNetWGOptions, space={"width": WIDTHS, "epnet_only": (False, True)})
