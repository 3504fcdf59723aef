"""The D3 head as its authors' released code computes it, beside the paper's text in `heads`.

It differs from the equations in its batch norms and leaky activations after every dense layer, the
generated kernel included, in the gate reading the embeddings and in the bias that is never fused;
with `detach_generator`, as in the PyTorch release, the attention gets no gradient at all. Its
linear layers start as PyTorch's do.

One difference remains. The release counts the steps before it weighs rows, 15,000, anew in each
epoch, and takes 0 for never; here the start is a share of the whole run. In the one epoch of the
preset `official`, 0.726 is 15,000 of the 20,654 steps of Ali-CCP.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from d3jax.attention import AttentionParams, declare_attention, select_features
from d3jax.base import Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.generation import (
    GeneratorParams,
    HiddenParams,
    declare_generator,
    declare_hidden,
    field_hidden,
    mix_kernels,
)
from d3jax.heads import D3Options
from d3jax.layers.dense import Dense, declare_dense, dense
from d3jax.layers.normalization import BatchNorm, Moments, batch_norm, declare_batch_norm
from d3jax.layers.normalized import NormalizedLayer, normalized_layer
from d3jax.parameters import Tree, declare_array, glorot, uniform


class Block(NamedTuple):
    """Dense, batch norm, leaky rectifier."""

    dense: Dense
    norm: BatchNorm


class OfficialParams(NamedTuple):
    """All that is learned; `gate` and `shared` are None for D1."""

    attention: AttentionParams
    hidden: HiddenParams
    norms: dict[str, BatchNorm]
    generator: GeneratorParams
    shared: Float[Array, "I O"] | None
    gate: tuple[Block, ...] | None
    tail: tuple[Block, ...]
    output: Dense


class OfficialState(NamedTuple):
    """Running moments, arranged as the norms they belong to."""

    norms: dict[str, Moments]
    gate: tuple[Moments, ...] | None
    tail: tuple[Moments, ...]


def d3_official(config: D3Options) -> Head:
    """The released head; of `config` it reads parts, widths, scaling and detachment."""

    def declare(sizes: Sizes, width: int) -> Declared:
        hidden = sizes.num_fields * config.field_hidden
        gated = config.parts != "d1"
        norms = {
            "field": declare_batch_norm(hidden),
            "mix": declare_batch_norm(hidden),
            "kernel": declare_batch_norm(width, config.outputs),
            "bias": declare_batch_norm(config.outputs),
        }
        gate = _declare_blocks(sizes.flat, (*config.gate_layers, 2)) if gated else None
        tail = _declare_blocks(config.outputs, config.head_layers)
        offset = glorot(width, config.outputs)
        params = OfficialParams(
            attention=declare_attention(sizes.embedding_dim, "official"),
            hidden=declare_hidden(sizes.num_fields, sizes.embedding_dim, config.field_hidden),
            norms={name: norm.params for name, norm in norms.items()},
            generator=declare_generator(hidden, width, config.outputs, offset),
            shared=declare_array((width, config.outputs), offset) if gated else None,
            gate=gate.params if gate else None,
            tail=tail.params,
            output=declare_dense((config.outputs, *config.head_layers)[-1], 1),
        )
        moments = {name: norm.state for name, norm in norms.items()}
        state = OfficialState(moments, gate.state if gate else None, tail.state)
        return Declared(_as_linear(params), state)

    def apply(
        params: OfficialParams, state: OfficialState, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        scaled = config.attention_scaled
        selected, logits = select_features(params.attention, inputs.x, scaled=scaled)
        source = lax.stop_gradient(selected) if config.detach_generator else selected
        gate, moments, shared = None, None, jnp.ones_like(params.generator.kernel_offset)
        if params.gate is not None:
            assert state.gate is not None
            assert params.shared is not None
            scores, moments = _blocks(params.gate, state.gate, inputs.flat, inputs.mask, mode)
            gate, shared = jax.nn.softmax(scores), params.shared
            # Scaling the inputs by the gate is Eq. 13 on an array smaller than the kernels.
            hidden = hidden * gate.prod(1, keepdims=True)
        outputs, norms = _generated_layer(
            params, state.norms, source, hidden, shared, inputs.mask, mode
        )
        outputs, tail = _blocks(params.tail, state.tail, outputs, inputs.mask, mode)
        row_logits = dense(params.output, outputs).squeeze(-1)
        return Output(row_logits, logits, gate), OfficialState(norms, moments, tail)

    return Head(declare, apply)


def _as_linear(params: OfficialParams) -> OfficialParams:
    """Return the declaration with the start of PyTorch's linear layers: kernels and biases uniform
    on ±1/√inputs. The shared kernel keeps Glorot's, as the release has it."""

    def start(parameter: Any, inputs: int) -> Any:
        return replace(parameter, init=uniform(inputs**-0.5))

    def linear(layer: Any) -> Any:
        if not isinstance(layer, Dense):
            return layer
        inputs = layer.kernel.shape[-2]
        return Dense(start(layer.kernel, inputs), start(layer.bias, inputs))

    params = jax.tree.map(linear, params, is_leaf=lambda each: isinstance(each, Dense))
    hidden, generator = params.hidden, params.generator
    _, dim, _ = hidden.field_kernel.shape
    units, _, _ = generator.kernel.shape
    return params._replace(
        hidden=hidden._replace(
            field_kernel=start(hidden.field_kernel, dim), field_bias=start(hidden.field_bias, dim)
        ),
        generator=generator._replace(
            kernel=start(generator.kernel, units),
            kernel_offset=start(generator.kernel_offset, units),
        ),
    )


def _generated_layer(
    params: OfficialParams,
    moments: dict[str, Moments],
    selected: Float[Array, "B N D"],
    inputs: Float[Array, "B I"],
    shared: Float[Array, "I O"],
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "B O"], dict[str, Moments]]:
    """The layer generated from the selected fields, each dense part of it normalised."""
    updated = {}

    def normalized(name: str, values: Array) -> Array:
        values, updated[name] = batch_norm(params.norms[name], moments[name], values, mask, mode)
        return jax.nn.leaky_relu(values)

    hidden = normalized("field", field_hidden(params.hidden, selected))
    hidden = hidden + normalized("mix", dense(params.hidden.mix, hidden))
    bias = normalized("bias", dense(params.generator.bias, hidden))
    kernel = mix_kernels(hidden, params.generator.kernel)
    layer = NormalizedLayer(params.generator.kernel_offset, params.norms["kernel"], shared)
    outputs, updated["kernel"] = normalized_layer(
        layer, moments["kernel"], kernel, inputs, mask, mode
    )
    return outputs + bias, updated


def _declare_blocks(inputs: int, layers: tuple[int, ...]) -> Declared:
    """Blocks of the given output widths, one after the other."""
    norms = [declare_batch_norm(width) for width in layers]
    blocks = tuple(
        Block(declare_dense(width, output), norm.params)
        for width, output, norm in zip((inputs, *layers), layers, norms, strict=False)
    )
    return Declared(blocks, tuple(norm.state for norm in norms))


def _blocks(
    params: tuple[Block, ...],
    moments: tuple[Moments, ...],
    hidden: Array,
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Array, tuple[Moments, ...]]:
    """The blocks in turn, and their new moments."""
    updated = []
    for block, running in zip(params, moments, strict=True):
        values = dense(block.dense, hidden)
        values, running = batch_norm(block.norm, running, values, mask, mode)
        hidden = jax.nn.leaky_relu(values)
        updated.append(running)
    return hidden, tuple(updated)
