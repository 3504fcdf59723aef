"""The registry: what each backbone and head is made of, by the names of the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from d3jax.backbones.adaptdhm import adaptdhm
from d3jax.backbones.adasparse import adasparse
from d3jax.backbones.adi import adi, forward_head, interest_networks
from d3jax.backbones.hamur import hamur
from d3jax.backbones.m2m import m2m, m2m_head
from d3jax.backbones.m3oe import m3oe
from d3jax.backbones.mmoe import mmoe
from d3jax.backbones.pepnet import pepnet_backbone
from d3jax.backbones.plain import plain
from d3jax.backbones.ple import ple
from d3jax.backbones.sar_net import sar_net
from d3jax.backbones.shared_bottom import shared_bottom
from d3jax.backbones.star import star
from d3jax.base import Backbone, Head
from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.heads import d3, d3_generator, dense_head, generated, towers
from d3jax.layers.prior_gates import pepnet
from d3jax.meta import meta_generator
from d3jax.official import d3_official
from d3jax.reads import GATED, generates_inside

META_KNOWLEDGE, WIDE = 64, 128
"""Sizes of M2M's generator where it takes D3's place, and the width of the layer that D3, M2M-WG
and PEPNet-WG make from whole embeddings (Jia et al., 2024, Table 2)."""


def build_head(
    schema: Schema, config: Config, own: Head, width: int = 32, tail: Head | None = None
) -> Head:
    """The head that the configuration names; `own` is what the backbone has without D3, `width`
    what a generated layer gives where the configuration leaves it open, `tail` what reads that
    layer instead of dense layers."""
    if config.model.head == "own":
        return own
    if config.model.head == "m2m_wg":
        return generated(meta_generator(META_KNOWLEDGE), WIDE, tail or dense_head())
    if config.model.head == "pepnet_wg":
        return pepnet(prior_fields(schema), WIDE)
    settings = dataclasses.replace(config.d3, width=config.d3.width or width)
    return d3_official(settings) if settings.form == "official" else d3(settings, tail)


def prior_fields(schema: Schema) -> tuple[int, ...]:
    """The fields that tell who and what: the user's and the item's, where there are such."""
    names = (schema.user_field, schema.item_field)
    return tuple(schema.index(name) for name in names if name is not None)


def gate_layers(config: Config) -> tuple[int, ...] | None:
    """The hidden widths of D3's gate in a backbone that takes nothing else of it."""
    return config.d3.gate_layers if config.model.head == "d3" else None


def _plain(schema: Schema, config: Config) -> Backbone:
    own = dense_head(config.model.bottom_layers)
    return plain(build_head(schema, config, own, WIDE))


def _shared_bottom(schema: Schema, config: Config) -> Backbone:
    own = towers(config.model.tower_layers)
    return shared_bottom(build_head(schema, config, own), config.model.bottom_layers)


def _mmoe(schema: Schema, config: Config) -> Backbone:
    own = towers(config.model.tower_layers)
    return mmoe(build_head(schema, config, own), config.mmoe)


def _m2m(schema: Schema, config: Config) -> Backbone:
    if config.model.head == "own":
        return m2m(meta_generator(config.m2m.knowledge), config.m2m)
    if config.m2m.d3_place == "site":
        return m2m(d3_generator(config.d3), config.m2m)
    return m2m_head(build_head(schema, config, dense_head()), config.m2m)


def _adi(schema: Schema, config: Config) -> Backbone:
    own = interest_networks(config.adi)
    tail = forward_head(config.adi) if config.adi.keep_forward else None
    return adi(build_head(schema, config, own, WIDE, tail), config.adi)


def _star(schema: Schema, config: Config) -> Backbone:
    return star(config.star, gate_layers(config))


def _sar_net(schema: Schema, config: Config) -> Backbone:
    return sar_net(config.sar_net, gate_layers(config))


def _ple(schema: Schema, config: Config) -> Backbone:
    return ple(build_head(schema, config, towers(config.model.tower_layers)), config.ple)


def _pepnet(schema: Schema, config: Config) -> Backbone:
    head = build_head(schema, config, towers(config.model.tower_layers))
    return pepnet_backbone(head, config.pepnet, prior_fields(schema))


def _adasparse(schema: Schema, config: Config) -> Backbone:
    return adasparse(build_head(schema, config, dense_head()), config.adasparse)


def _hamur(schema: Schema, config: Config) -> Backbone:
    return hamur(build_head(schema, config, towers(config.model.tower_layers)), config.hamur)


def _m3oe(schema: Schema, config: Config) -> Backbone:
    return m3oe(build_head(schema, config, towers(config.model.tower_layers)), config.m3oe)


def _adaptdhm(schema: Schema, config: Config) -> Backbone:
    return adaptdhm(build_head(schema, config, dense_head()), config.adaptdhm)


BACKBONES: dict[str, Callable[[Schema, Config], Backbone]] = {
    "plain": _plain,
    "shared_bottom": _shared_bottom,
    "mmoe": _mmoe,
    "m2m": _m2m,
    "adi": _adi,
    "star": _star,
    "sar_net": _sar_net,
    "ple": _ple,
    "pepnet": _pepnet,
    "adasparse": _adasparse,
    "hamur": _hamur,
    "m3oe": _m3oe,
    "adaptdhm": _adaptdhm,
}


def build_backbone(schema: Schema, config: Config) -> Backbone:
    """The backbone with its head, as the configuration names them.

    Raises `ConfigError`, with the reason, for a pair that makes no sense.
    """
    if reason := refusal(schema, config):
        raise ConfigError(reason)
    return BACKBONES[config.model.backbone](schema, config)


def refusal(schema: Schema, config: Config) -> str | None:
    """Why this backbone and head don't go together, and what to use; None when they do."""
    backbone, head, parts = config.model.backbone, config.model.head, config.d3.parts
    if backbone in GATED and head not in ("own", "d3"):
        return (
            f"{backbone} has no tower or generated layer that {head} could replace; "
            "use --head own or --head d3"
        )
    if backbone in GATED and head == "d3" and parts == "d1":
        return (
            f"{backbone} takes D3's fusion gate and loss weight only, and d1 has neither; "
            "use --parts d2 or --parts d3"
        )
    if backbone == "m2m" and head in ("m2m_wg", "pepnet_wg"):
        return (
            f"m2m generates its layers by its own meta unit, which {head} does not replace; "
            "use --head own or --head d3"
        )
    if head == "d3" and config.d3.form == "official" and _takes_generator(config):
        return (
            f"the official form of D3 is a head, and {backbone} takes none; "
            "use --form text, or the plain backbone"
        )
    if head == "pepnet_wg" and backbone == "pepnet":
        return "pepnet gates its layers already; use --head own or --head d3"
    if "pepnet" in (backbone, head.removesuffix("_wg")) and not prior_fields(schema):
        return (
            "PEPNet reads the user's and the item's field, and the schema names neither; "
            "use --head d3 on another backbone, or name the fields when preparing the data"
        )
    return None


def _takes_generator(config: Config) -> bool:
    """Whether D3 goes inside the backbone instead of on top of it."""
    return generates_inside(config) or config.model.backbone in GATED
