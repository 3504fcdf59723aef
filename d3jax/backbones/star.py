"""STAR: a centre that all scenarios share times a branch of each scenario's own.

Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR
Prediction" (CIKM 2021). D3's gate weighs the two factors (Jia et al., AAAI 2024, Eq. 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3jax.base import Backbone, Declared, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.fusion import GateParams, declare_gate, fusion_gate
from d3jax.heads import dense_head
from d3jax.layers.dense import Dense
from d3jax.layers.grouping import Groups, collect, group_rows, own_dense, owned, spread
from d3jax.layers.normalization import BatchNorm, Moments, block_batch_norm, declare_batch_norm
from d3jax.meta import declare_scenarios
from d3jax.needs import D3_HEAD
from d3jax.parameters import Tree, declare_array, glorot, normal
from d3jax.registry import Part
from d3jax.typed import check_types

ScenarioInit = Literal["ones", "glorot"]
GateDepth = Literal["all", "first"]


@dataclass(frozen=True)
class STAROptions:
    """STAR, the star topology adaptive recommender."""

    layers: tuple[int, ...] = (128, 64, 32)
    """Hidden widths of the star-shaped network."""
    auxiliary: tuple[int, ...] = (32,)
    """Hidden widths of the auxiliary network."""
    scenario_init: ScenarioInit = "ones"
    """ones: scenario weights start near 1, as the shared ones alone; or glorot: drawn."""
    gate_bias: bool = False
    """With D3, the biases are gated as well: g0 of the scenario's plus g1 of the shared one."""
    gate_depth: GateDepth = "all"
    """With D3, the layers that the gate acts on."""
    gate_scale: float = 1.0
    """With D3, a factor on the gated product; 4 makes an even gate neutral."""

    def __post_init__(self) -> None:
        check_types(self, "star.")
        widths("star.layers", self.layers)
        widths("star.auxiliary", self.auxiliary)
        within("star.gate_scale", self.gate_scale, 0, 1000)


class PartitionedNorm(NamedTuple):
    """Scale and offset that all scenarios share, [F], and each scenario's own, [S F]."""

    shared: BatchNorm
    own: BatchNorm


class StarDense(NamedTuple):
    """A dense layer for all scenarios, and what each multiplies and adds to it."""

    kernel: Float[Array, "I O"]
    bias: Float[Array, " O"]
    own_kernel: Float[Array, "S I O"]
    own_bias: Float[Array, "S O"]


class STARParams(NamedTuple):
    """Norm and star-shaped network; scenario table and auxiliary network; D3's gate, if any."""

    norm: PartitionedNorm
    layers: tuple[StarDense, ...]
    scenario: Float[Array, "S D"]
    auxiliary: Tree
    gate: GateParams | None


def star(
    gate_layers: Sequence[int] | None = None,
    options: STAROptions | None = None,
    **settings: Any,
) -> Backbone:
    """The logit of the star-shaped network plus that of an auxiliary network for all scenarios.

    With `gate_layers` (None: plain STAR) D3's gate reads the embeddings and weighs each row's
    star-shaped layers; the auxiliary network stays as it is.
    """
    options = chosen(STAROptions, options, settings)
    auxiliary = dense_head(options.auxiliary)

    def declare(sizes: Sizes) -> Declared:
        norm = declare_partitioned_norm(sizes.num_scenarios, sizes.flat)
        near_one = options.scenario_init == "ones"
        params = STARParams(
            norm=norm.params,
            layers=tuple(
                declare_star_dense(sizes.num_scenarios, inputs, outputs, near_one=near_one)
                for inputs, outputs in pairwise((sizes.flat, *options.layers, 1))
            ),
            scenario=declare_scenarios(sizes),
            auxiliary=auxiliary.declare(sizes, sizes.flat + sizes.embedding_dim).params,
            gate=None if gate_layers is None else declare_gate(sizes.flat, gate_layers),
        )
        return Declared(params, norm.state)

    def apply(
        params: STARParams, state: Moments, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Moments]:
        gate = None if params.gate is None else fusion_gate(params.gate, inputs.x)
        groups = group_rows(inputs.scenario, params.scenario.shape[0])
        blocks = spread(groups, inputs.flat)
        normed, state = partitioned_norm(params.norm, state, blocks, groups, inputs.mask, mode)
        gates = None if gate is None else spread(groups, gate)
        logits = collect(groups, star_network(params.layers, normed, groups, gates, options))
        known = jnp.concatenate([inputs.flat, params.scenario[inputs.scenario]], axis=1)
        side, _ = auxiliary.apply(params.auxiliary, (), known, inputs, mode)
        return Output(logits + side.logits, gate=gate), state

    return Backbone(declare, apply)


def declare_partitioned_norm(scenarios: int, features: int) -> Declared:
    """Neutral scales and offsets, and for each scenario the moments of a standard normal."""
    own = declare_batch_norm(scenarios, features)
    return Declared(PartitionedNorm(declare_batch_norm(features).params, own.params), own.state)


def partitioned_norm(
    params: PartitionedNorm,
    moments: Moments,
    blocks: Float[Array, "G R F"],
    groups: Groups,
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "G R F"], Moments]:
    """Rows normalised by their scenario's moments, scaled by γ ⊙ γ_s and moved by β + β_s.

    STAR was published for batches of a single scenario; here a batch may mix them.
    """
    affine = BatchNorm(
        scale=params.shared.scale[None] * params.own.scale,
        offset=params.shared.offset[None] + params.own.offset,
    )
    return block_batch_norm(affine, moments, blocks, groups, mask, mode)


def declare_star_dense(
    scenarios: int, inputs: int, outputs: int, *, near_one: bool = True
) -> StarDense:
    """A Glorot kernel for all, and own kernels that start near 1 or, as others do, as Glorot too.

    The product of two Glorot kernels is far smaller than either, and signals fade in it.
    """
    drawn = glorot(inputs, outputs)
    return StarDense(
        kernel=declare_array((inputs, outputs), drawn),
        bias=declare_array((outputs,)),
        own_kernel=declare_array(
            (scenarios, inputs, outputs), normal(0.01, mean=1.0) if near_one else drawn
        ),
        own_bias=declare_array((scenarios, outputs)),
    )


def star_dense(
    params: StarDense,
    hidden: Float[Array, "B I"],
    scenario: Int[Array, " B"],
    gate: Float[Array, "B 2"] | None = None,
) -> Float[Array, "B O"]:
    """A single `star_blocks`, for rows in the order of the batch."""
    groups = group_rows(scenario, params.own_bias.shape[0])
    gates = None if gate is None else spread(groups, gate)
    return collect(groups, star_blocks(params, spread(groups, hidden), groups, gates))


def star_blocks(
    params: StarDense,
    blocks: Float[Array, "G R I"],
    groups: Groups,
    gate: Float[Array, "G R 2"] | None = None,
    *,
    gate_scale: float = 1.0,
    gate_bias: bool = False,
) -> Float[Array, "G R O"]:
    """`hidden · (W_s ⊙ W) + b_s + b`, with the gate `hidden · (g₀ W_s ⊙ g₁ W) + b_s + b`.

    Both gate values are numbers of the row, so they scale its input and no row needs a kernel
    of its own. `gate_scale` is a factor on their product; `gate_bias` makes the bias
    g₀ b_s + g₁ b.
    """
    if gate is not None:
        blocks = blocks * (gate_scale * gate[..., :1] * gate[..., 1:])
    kernels = Dense(params.own_kernel * params.kernel[None], bias=None)
    outputs = own_dense(kernels, blocks, groups)
    own_bias = owned(params.own_bias, groups.owner)[:, None]
    if gate is not None and gate_bias:
        return outputs + gate[..., :1] * own_bias + gate[..., 1:] * params.bias[None, None]
    return outputs + own_bias + params.bias[None, None]


def star_network(
    layers: Sequence[StarDense],
    blocks: Float[Array, "G R I"],
    groups: Groups,
    gate: Float[Array, "G R 2"] | None,
    options: STAROptions,
) -> Float[Array, "G R"]:
    """Star-shaped layers to the logit, the activation between them; one gate for all."""
    for index, layer in enumerate(layers):
        gated = index == 0 or options.gate_depth == "all"
        blocks = star_blocks(
            layer,
            blocks if index == 0 else jax.nn.relu(blocks),
            groups,
            gate if gated else None,
            gate_scale=options.gate_scale,
            gate_bias=options.gate_bias,
        )
    return blocks.squeeze(-1)


def _build(choice: BackboneChoice) -> Backbone:
    return star(choice.gate_layers, choice.options)


_NEEDS = {name: (D3_HEAD,) for name in ("gate_bias", "gate_depth", "gate_scale")}

_SPACE = {
    "layers": ((64, 32), (128, 64, 32), (256, 128, 64)),
    "auxiliary": ((16,), (32,), (64,)),
    "scenario_init": ("ones", "glorot"),
    "gate_scale": (1.0, 2.0, 4.0),
}

PART = Part(_build, STAROptions, needs=_NEEDS, space=_SPACE)
