"""Heads: what turns a backbone's representation into a logit.

The D3 head is the paper's plug-in; scenario towers are what it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Float

from d3jax.attention import AttentionParams, declare_attention, select_features
from d3jax.base import Declared, Head, Inputs, Mode, Output, Sizes
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


class TrunkParams(NamedTuple):
    """What all layers that a row generates have in common; D1 has no gate."""

    attention: AttentionParams
    hidden: HiddenParams
    gate: GateParams | None


class Trunk(NamedTuple):
    """A row's hidden vector, its gate and its attention's logits."""

    hidden: Float[Array, "B M"]
    gate: Float[Array, "B 2"] | None
    attention: Float[Array, "B N N"]


class D3Params(NamedTuple):
    """Trunk, one generated layer, and the dense layers after it (the last gives the logit)."""

    trunk: TrunkParams
    layer: FusedParams
    tail: tuple[Dense, ...]


def declare_trunk(config: D3Config, sizes: Sizes) -> TrunkParams:
    """The trunk for rows of N fields of width D."""
    gated = config.parts != "d1"
    return TrunkParams(
        attention=declare_attention(sizes.embedding_dim, config.attention_value),
        hidden=declare_hidden(sizes.num_fields, sizes.embedding_dim, config.field_hidden),
        gate=declare_gate(sizes.flat, config.gate_layers) if gated else None,
    )


def trunk(config: D3Config, params: TrunkParams, x: Float[Array, "B N D"]) -> Trunk:
    """Domain division and the gate: everything that is the same for each generated layer."""
    selected, logits = select_features(params.attention, x, scaled=config.attention_scaled)
    source = lax.stop_gradient(selected) if config.detach_generator else selected
    hidden = feature_hidden(params.hidden, source, outer=config.outer_activation)
    if params.gate is None:
        return Trunk(hidden, None, logits)
    gate = fusion_gate(params.gate, x if config.gate_input == "raw" else selected)
    return Trunk(hidden, gate, logits)


def declare_layer(config: D3Config, sizes: Sizes, inputs: int, outputs: int) -> FusedParams:
    """One generated layer of the trunk that `config` describes."""
    return declare_fused(
        sizes.num_fields * config.field_hidden,
        inputs,
        outputs,
        shared=config.parts != "d1",
        kernel_fusion=config.kernel_fusion,
        bias_fusion=config.bias_fusion,
    )


def generated_layer(
    config: D3Config, params: FusedParams, source: Trunk, inputs: Float[Array, "B I"]
) -> Float[Array, "B O"]:
    """`inputs · W + b` with weights from the trunk (Eq. 13)."""
    return fused_layer(
        params,
        source.gate,
        source.hidden,
        inputs,
        kernel_additive=config.kernel_fusion == "additive",
        bias_additive=config.bias_fusion == "additive",
    )


def d3(config: D3Config) -> Head:
    """The D3 head: one generated layer over the backbone's representation (Eq. 6-14)."""

    def declare(sizes: Sizes, width: int) -> Declared:
        tail = declare_mlp(config.width, (*config.head_layers, 1))
        layer = declare_layer(config, sizes, width, config.width)
        return Declared(D3Params(declare_trunk(config, sizes), layer, tail))

    def apply(
        params: D3Params, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        source = trunk(config, params.trunk, inputs.x)
        outputs = generated_layer(config, params.layer, source, hidden)
        if config.layer_activation:
            outputs = jax.nn.relu(outputs)
        logits = dense(params.tail[-1], mlp(params.tail[:-1], outputs))
        return Output(logits.squeeze(-1), source.attention, source.gate), state

    return Head(declare, apply)


def towers(layers: Sequence[int]) -> Head:
    """One small network per scenario; a row is answered by its own scenario's."""

    def declare(sizes: Sizes, width: int) -> Declared:
        return Declared(declare_mlp(width, (*layers, 1), stack=(sizes.num_scenarios,)))

    def apply(
        params: tuple[Dense, ...], state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        for layer in params[:-1]:
            hidden = jax.nn.relu(stacked_dense(layer, hidden))
        logits = select(stacked_dense(params[-1], hidden), inputs.scenario)
        return Output(logits.squeeze(-1)), state

    return Head(declare, apply)
