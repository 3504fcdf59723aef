"""The registry: what each backbone and head is made of, by the names of the configuration."""

from __future__ import annotations

from collections.abc import Callable

from d3jax.backbones.mmoe import mmoe
from d3jax.backbones.plain import plain
from d3jax.backbones.shared_bottom import shared_bottom
from d3jax.base import Backbone, Head
from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.heads import d3, dense_head, generated, towers
from d3jax.meta import meta_generator
from d3jax.official import d3_official

META_KNOWLEDGE, META_WIDTH = 64, 128
"""Sizes of M2M's generator where it takes D3's place (Jia et al., 2024, Table 2)."""


def build_head(schema: Schema, config: Config, own: Head) -> Head:
    """The head that the configuration names; `own` is what the backbone has without D3."""
    if config.model.head == "own":
        return own
    if config.model.head == "m2m_wg":
        return generated(meta_generator(META_KNOWLEDGE), META_WIDTH)
    return d3_official(config.d3) if config.d3.form == "official" else d3(config.d3)


def _plain(schema: Schema, config: Config) -> Backbone:
    return plain(build_head(schema, config, dense_head(config.model.bottom_layers)))


def _shared_bottom(schema: Schema, config: Config) -> Backbone:
    own = towers(config.model.tower_layers)
    return shared_bottom(build_head(schema, config, own), config.model.bottom_layers)


def _mmoe(schema: Schema, config: Config) -> Backbone:
    own = towers(config.model.tower_layers)
    return mmoe(build_head(schema, config, own), config.mmoe)


BACKBONES: dict[str, Callable[[Schema, Config], Backbone]] = {
    "plain": _plain,
    "shared_bottom": _shared_bottom,
    "mmoe": _mmoe,
}


def build_backbone(schema: Schema, config: Config) -> Backbone:
    """The backbone with its head, as the configuration names them.

    Raises `ConfigError`, with the reason, for a pair that makes no sense.
    """
    if config.model.backbone not in BACKBONES:
        raise ConfigError(f"backbone {config.model.backbone!r} is unknown; {', '.join(BACKBONES)}")
    return BACKBONES[config.model.backbone](schema, config)
