"""Heads: what turns a backbone's representation into a logit.

D3's generator makes layers out of the row's selected fields; a head is one generated layer and
the dense layers after it. Scenario towers are what such a head replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.attention import (
    AttentionParams,
    ValueForm,
    declare_attention,
    select_by_row,
    select_features,
)
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
from d3jax.checks import widths, within
from d3jax.choice import chosen
from d3jax.errors import ConfigError
from d3jax.fusion import (
    BiasFusion,
    FusedParams,
    GateParams,
    KernelFusion,
    declare_fused,
    declare_gate,
    fused_layer,
    fusion_gate,
)
from d3jax.generation import HiddenParams, declare_hidden, feature_hidden
from d3jax.layers.dense import Dense, declare_mlp, dense, mlp
from d3jax.layers.grouping import own_mlp
from d3jax.parameters import Tree
from d3jax.typed import check_types

Parts = Literal["d1", "d2", "d3"]
D3Form = Literal["text", "official", "adaptive"]
Precision = Literal["float32", "bf16"]
GateInput = Literal["selected", "raw"]

WHOLE_WIDTH = 128
"""Width of the layer that D3, M2M-WG and PEPNet-WG make from whole embeddings (Jia et al., 2024,
Table 2)."""


@dataclass(frozen=True)
class D3Options:
    """The D3 head; the defaults are the paper's text."""

    parts: Parts = "d3"
    """d1: division; d2: and modelling; d3: and balance."""
    form: D3Form = "text"
    """text; official: the authors' code; or adaptive."""
    field_hidden: int = 64
    """Width H of each field's layer in the generator."""
    width: int = 0
    """Output width O; 0: 128 for plain and adi, else 32."""
    rank: int = 0
    """Matrices that kernels are mixed from; 0: the paper's."""
    precision: Precision = "float32"
    """float32, or bf16 for the generated kernels."""
    head_layers: tuple[int, ...] = ()
    """Hidden layers between generated layer and logit."""
    gate_layers: tuple[int, ...] = (64, 16)
    """Hidden widths of the fusion gate."""
    attention_value: ValueForm = "text"
    """text, official, danet; row: one query, no mixing."""
    attention_scaled: bool = False
    """Divide the attention's logits by the root of D."""
    gate_input: GateInput = "selected"
    """selected: the attention's output; raw: embeddings."""
    kernel_fusion: KernelFusion = "multiplicative"
    """multiplicative or additive, with the shared kernel."""
    bias_fusion: BiasFusion = "multiplicative"
    """multiplicative, additive, or specific: own alone."""
    outer_activation: bool = True
    """The activation around Eq. 10's residual sum."""
    layer_activation: bool = True
    """The activation of the generated layer (Eq. 14)."""
    separate_bias: bool = False
    """Generate biases from a hidden vector of their own."""
    detach_generator: bool = False
    """Stop gradients from the generator into attention."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.precision == "bf16" and self.form != "text":
            raise ConfigError(
                f"the {self.form} form is float32 throughout; use --form text for bf16"
            )
        within("field_hidden", self.field_hidden, 1, 65536)
        within("rank", self.rank, 0, 65536)
        within("width", self.width, 0, 65536)
        widths("head_layers", self.head_layers)
        widths("gate_layers", self.gate_layers)

    @property
    def outputs(self) -> int:
        """O, also where `width` leaves it open."""
        return self.width or 32


class D3Params(NamedTuple):
    """The common parameters of all generated layers, and the layers; D1 has no gate, and only with
    `separate_bias` is there a hidden vector for biases alone."""

    attention: AttentionParams
    hidden: HiddenParams
    gate: GateParams | None
    layers: tuple[FusedParams, ...]
    bias_hidden: HiddenParams | None = None


class GeneratedHeadParams(NamedTuple):
    """A generator of one layer, and the head that reads the layer."""

    generator: Tree
    tail: Tree


def d3_generator(config: D3Options) -> Generator:
    """Domain division and modelling: layers from the fields that attention selects (Eq. 6-13)."""
    shared = config.parts != "d1"

    def declare(sizes: Sizes, sites: Sequence[tuple[int, int]]) -> D3Params:
        width = sizes.num_fields * config.field_hidden
        layer = partial(
            declare_fused,
            shared=shared,
            kernel_fusion=config.kernel_fusion,
            bias_fusion=config.bias_fusion,
            rank=config.rank,
        )
        hidden = declare_hidden(sizes.num_fields, sizes.embedding_dim, config.field_hidden)
        return D3Params(
            attention=declare_attention(sizes.embedding_dim, config.attention_value),
            hidden=hidden,
            bias_hidden=hidden if config.separate_bias else None,
            gate=declare_gate(sizes.flat, config.gate_layers) if shared else None,
            layers=tuple(layer(width, *site) for site in sites),
        )

    def generate(params: D3Params, inputs: Inputs, mode: Mode) -> Generated:
        return generate_d3(config, params, inputs.x)

    return Generator(declare, generate)


def generate_d3(config: D3Options, params: D3Params, x: Float[Array, "B N D"]) -> Generated:
    """Return the layers that the rows generate from their fields, attention's logits and gate."""
    dtype = jnp.bfloat16 if config.precision == "bf16" else None
    select = select_by_row if config.attention_value == "row" else select_features
    selected, logits = select(params.attention, x, scaled=config.attention_scaled)
    source = lax.stop_gradient(selected) if config.detach_generator else selected
    units = partial(feature_hidden, outer=config.outer_activation, dtype=dtype)
    hidden = units(params.hidden, source)
    bias_hidden = None
    if params.bias_hidden is not None:
        bias_hidden = units(params.bias_hidden, source)
    gate = None
    if params.gate is not None:
        gate = fusion_gate(params.gate, x if config.gate_input == "raw" else selected)

    def layer(index: int, values: Array) -> Array:
        return fused_layer(
            params.layers[index],
            gate,
            hidden,
            values,
            bias_hidden=bias_hidden,
            kernel_additive=config.kernel_fusion == "additive",
            bias_additive=config.bias_fusion == "additive",
            dtype=dtype,
        )

    return Generated(layer, logits, gate)


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


def generated(
    generator: Generator, width: int, tail: Head, activation: Activation = jax.nn.relu
) -> Head:
    """One generated layer of `width` outputs and its activation, read by the head `tail`."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        rest = tail.declare(sizes, width)
        layer = generator.declare(sizes, [(inputs, width)])
        return Declared(GeneratedHeadParams(layer, rest.params), rest.state)

    def apply(
        params: GeneratedHeadParams, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        made = generator.generate(params.generator, inputs, mode)
        outputs = activation(made.layer(0, hidden))
        output, state = tail.apply(params.tail, state, outputs, inputs, mode)
        return Output(output.logits, made.attention, made.gate), state

    return Head(declare, apply)


def d3(options: D3Options | None = None, tail: Head | None = None, **settings: Any) -> Head:
    """Return the D3 head of the paper's text: one generated layer over the backbone's
    representation (Eq. 6-14).

    `tail` reads the layer; by default dense layers that are the same for all rows. Settings are
    those of `D3Options`. Raises `ConfigError` for one that there isn't, and for another form.
    """
    config = chosen(D3Options, options, settings)
    if config.form != "text":
        raise ConfigError(f"form is {config.form}; d3jax.d3 makes every form, this only the text's")
    activation = jax.nn.relu if config.layer_activation else _identity
    rest = dense_head(config.head_layers) if tail is None else tail
    return generated(d3_generator(config), config.outputs, rest, activation)


def towers(layers: Sequence[int]) -> Head:
    """One small network per scenario; a row is answered by its own scenario's."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        return Declared(declare_mlp(inputs, (*layers, 1), stack=(sizes.num_scenarios,)))

    def apply(
        params: tuple[Dense, ...], state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        return Output(own_mlp(params, hidden, inputs.scenario).squeeze(-1)), state

    return Head(declare, apply)


def _identity(values: Array) -> Array:
    return values
