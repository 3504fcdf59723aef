"""Heads: what turns a backbone's representation into a logit.

D3's generator makes layers out of the row's selected fields; a head is one generated layer and
the dense layers after it. Scenario towers are what such a head replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import Array

from d3jax.attention import AttentionParams, declare_attention, select_features
from d3jax.base import (
    Activation,
    Declared,
    Generated,
    Generator,
    Head,
    Inputs,
    Mode,
    Output,
    Sizes,
)
from d3jax.config import D3Config
from d3jax.fusion import (
    FusedParams,
    GateParams,
    declare_fused,
    declare_gate,
    fused_layer,
    fusion_gate,
)
from d3jax.generation import HiddenParams, declare_hidden, feature_hidden
from d3jax.layers import Dense, declare_mlp, dense, mlp, select, stacked_dense
from d3jax.parameters import Tree


class D3Params(NamedTuple):
    """What all generated layers have in common, and the layers; D1 has no gate."""

    attention: AttentionParams
    hidden: HiddenParams
    gate: GateParams | None
    layers: tuple[FusedParams, ...]


class GeneratedHeadParams(NamedTuple):
    """A generator of one layer, and the dense layers after it (the last gives the logit)."""

    generator: Tree
    tail: tuple[Dense, ...]


def d3_generator(config: D3Config) -> Generator:
    """Domain division and modelling: layers from the fields that attention selects (Eq. 6-13)."""
    shared = config.parts != "d1"

    def declare(sizes: Sizes, sites: Sequence[tuple[int, int]]) -> D3Params:
        width = sizes.num_fields * config.field_hidden
        layer = partial(
            declare_fused,
            shared=shared,
            kernel_fusion=config.kernel_fusion,
            bias_fusion=config.bias_fusion,
            rank=config.generator_rank,
        )
        return D3Params(
            attention=declare_attention(sizes.embedding_dim, config.attention_value),
            hidden=declare_hidden(sizes.num_fields, sizes.embedding_dim, config.field_hidden),
            gate=declare_gate(sizes.flat, config.gate_layers) if shared else None,
            layers=tuple(layer(width, *site) for site in sites),
        )

    def generate(params: D3Params, inputs: Inputs, mode: Mode) -> Generated:
        scaled = config.attention_scaled
        selected, logits = select_features(params.attention, inputs.x, scaled=scaled)
        source = lax.stop_gradient(selected) if config.detach_generator else selected
        hidden = feature_hidden(params.hidden, source, outer=config.outer_activation)
        gate = None
        if params.gate is not None:
            gate = fusion_gate(params.gate, inputs.x if config.gate_input == "raw" else selected)

        def layer(index: int, values: Array) -> Array:
            return fused_layer(
                params.layers[index],
                gate,
                hidden,
                values,
                kernel_additive=config.kernel_fusion == "additive",
                bias_additive=config.bias_fusion == "additive",
            )

        return Generated(layer, logits, gate)

    return Generator(declare, generate)


def generated(
    generator: Generator,
    width: int,
    layers: Sequence[int] = (),
    activation: Activation = jax.nn.relu,
) -> Head:
    """One generated layer of `width` outputs, its activation, and dense layers to the logit."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        tail = declare_mlp(width, (*layers, 1))
        return Declared(GeneratedHeadParams(generator.declare(sizes, [(inputs, width)]), tail))

    def apply(
        params: GeneratedHeadParams, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        made = generator.generate(params.generator, inputs, mode)
        outputs = activation(made.layer(0, hidden))
        logits = dense(params.tail[-1], mlp(params.tail[:-1], outputs))
        return Output(logits.squeeze(-1), made.attention, made.gate), state

    return Head(declare, apply)


def d3(config: D3Config) -> Head:
    """The D3 head: one generated layer over the backbone's representation (Eq. 6-14)."""
    activation = jax.nn.relu if config.layer_activation else _identity
    return generated(d3_generator(config), config.outputs, config.head_layers, activation)


def dense_head(layers: Sequence[int] = ()) -> Head:
    """Dense layers to the logit, the same for all rows."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        return Declared(declare_mlp(inputs, (*layers, 1)))

    def apply(
        params: tuple[Dense, ...], state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        logits = dense(params[-1], mlp(params[:-1], hidden))
        return Output(logits.squeeze(-1)), state

    return Head(declare, apply)


def towers(layers: Sequence[int]) -> Head:
    """One small network per scenario; a row is answered by its own scenario's."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        return Declared(declare_mlp(inputs, (*layers, 1), stack=(sizes.num_scenarios,)))

    def apply(
        params: tuple[Dense, ...], state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        for layer in params[:-1]:
            hidden = jax.nn.relu(stacked_dense(layer, hidden))
        logits = select(stacked_dense(params[-1], hidden), inputs.scenario)
        return Output(logits.squeeze(-1)), state

    return Head(declare, apply)


def _identity(values: Array) -> Array:
    return values
