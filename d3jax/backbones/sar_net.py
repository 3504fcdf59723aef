"""SAR-Net: features seen through the scenario, and a mixture of its own and shared experts.

Shen et al., "SAR-Net: A Scenario-Aware Ranking Network for Personalized Fair Recommendation in
Hundreds of Travel Scenarios" (CIKM 2021), for rows without a behaviour sequence and without a
record of manual promotion: its attention over scenarios and its fairness coefficient need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3jax.backbones.star import StarDense, declare_star_dense, star_dense
from d3jax.base import Backbone, Declared, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.fusion import GateParams, declare_gate, fusion_gate
from d3jax.heads import dense_head
from d3jax.layers.dense import Dense, declare_dense, dense, select, stacked_dense
from d3jax.layers.grouping import own_mlp
from d3jax.layers.normalization import (
    BatchNorm,
    Moments,
    batch_norm,
    declare_batch_norm,
    scenario_batch_norm,
)
from d3jax.needs import D3_HEAD
from d3jax.parameters import Tree, declare_array, ones
from d3jax.registry import Part
from d3jax.typed import check_types

Expert = Literal["relu", "bn_linear"]
GatePlace = Literal["group", "transform"]


@dataclass(frozen=True)
class SARNetOptions:
    """SAR-Net."""

    shared_experts: int = 8
    """Experts that all scenarios share."""
    own_experts: int = 2
    """Experts of each scenario."""
    width: int = 16
    """Output width of an expert."""
    expert: Expert = "relu"
    """An expert is dense and rectifier, or batch norm (one for each group) and dense."""
    scenario_gate: bool = False
    """A mixture gate per scenario instead of one for all."""
    layers: tuple[int, ...] = (32, 32)
    """Dense layers between the mixture and the logit."""
    d3_place: GatePlace = "group"
    """With D3, the gate weighs own against shared experts (group), or the two kernels of a
    star-shaped scenario transform (Eq. 13), which then replaces the plain one."""

    def __post_init__(self) -> None:
        check_types(self, "sar_net.")
        within("sar_net.shared_experts", self.shared_experts, 1, 4096)
        within("sar_net.own_experts", self.own_experts, 1, 4096)
        within("sar_net.width", self.width, 1, 4096)
        widths("sar_net.layers", self.layers)


TRANSFORM_WIDTH = 64
"""Output width of the scenario transform where it is a star-shaped layer."""


class ScenarioAffine(NamedTuple):
    """Each scenario's scale and offset of every feature."""

    scale: Float[Array, "S F"]
    offset: Float[Array, "S F"]


class Experts(NamedTuple):
    """Experts for all scenarios, stacked [N], and of each scenario, stacked [S M]."""

    shared: Dense
    own: Dense


class ExpertNorms(NamedTuple):
    """The batch norm before the shared experts, [F], and before each scenario's own, [S F]."""

    shared: BatchNorm
    own: BatchNorm


class ExpertMoments(NamedTuple):
    """The running moments of `ExpertNorms`."""

    shared: Moments
    own: Moments


class SARNetParams(NamedTuple):
    """In the order of the forward pass; `norms` is None for rectified experts, `gate` is D3's."""

    transform: ScenarioAffine | StarDense
    norms: ExpertNorms | None
    experts: Experts
    mixer: Dense
    head: Tree
    gate: GateParams | None


def sar_net(
    gate_layers: Sequence[int] | None = None,
    options: SARNetOptions | None = None,
    **settings: Any,
) -> Backbone:
    """Scenario transform, mixture of experts, and dense layers to the logit.

    With `gate_layers` (None: plain SAR-Net) D3's gate reads the embeddings and weighs own against
    shared experts, or the two kernels of a star-shaped transform (`options.d3_place`).
    """
    options = chosen(SARNetOptions, options, settings)
    head = dense_head(options.layers)
    star_shaped = gate_layers is not None and options.d3_place == "transform"

    def declare(sizes: Sizes) -> Declared:
        scenarios, width = sizes.num_scenarios, TRANSFORM_WIDTH if star_shaped else sizes.flat
        norms = Declared(None)
        if options.expert == "bn_linear":
            norms = declare_expert_norms(scenarios, width)
        params = SARNetParams(
            transform=declare_star_dense(scenarios, sizes.flat, width)
            if star_shaped
            else declare_scenario_affine(scenarios, width),
            norms=norms.params,
            experts=declare_experts(scenarios, width, options),
            mixer=declare_dense(
                width,
                options.shared_experts + options.own_experts,
                stack=(scenarios,) if options.scenario_gate else (),
            ),
            head=head.declare(sizes, options.width).params,
            gate=None if gate_layers is None else declare_gate(sizes.flat, gate_layers),
        )
        return Declared(params, norms.state)

    def apply(params: SARNetParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        gate = None if params.gate is None else fusion_gate(params.gate, inputs.x)
        features = transform(params.transform, inputs, gate)
        shared, own, state = expert_outputs(params, state, features, inputs, mode)
        weights = mixture_weights(params.mixer, features, inputs.scenario)
        mixed = mixture(weights, shared, own, None if star_shaped else gate)
        output, _ = head.apply(params.head, (), mixed, inputs, mode)
        return output._replace(gate=gate), state

    return Backbone(declare, apply)


def declare_scenario_affine(scenarios: int, features: int) -> ScenarioAffine:
    """Every scenario starts with the features as they are."""
    shape = (scenarios, features)
    return ScenarioAffine(declare_array(shape, ones), declare_array(shape))


def transform(
    params: ScenarioAffine | StarDense, inputs: Inputs, gate: Float[Array, "B 2"] | None
) -> Float[Array, "B F"]:
    """Return the embeddings as the row's scenario transforms them: `x ⊙ β_s + γ_s`, or a
    star-shaped layer, the only one of the two that the gate acts on."""
    if isinstance(params, StarDense):
        return star_dense(params, inputs.flat, inputs.scenario, gate)
    return inputs.flat * params.scale[inputs.scenario] + params.offset[inputs.scenario]


def declare_experts(scenarios: int, inputs: int, options: SARNetOptions) -> Experts:
    """One dense layer an expert, all of the same width."""
    return Experts(
        shared=declare_dense(inputs, options.width, stack=(options.shared_experts,)),
        own=declare_dense(inputs, options.width, stack=(scenarios, options.own_experts)),
    )


def declare_expert_norms(scenarios: int, features: int) -> Declared:
    """One norm a group of experts: the dense layers after it absorb a scale of their own."""
    shared, own = declare_batch_norm(features), declare_batch_norm(scenarios, features)
    params = ExpertNorms(shared.params, own.params)
    return Declared(params, ExpertMoments(shared.state, own.state))


def expert_outputs(
    params: SARNetParams, state: Tree, features: Float[Array, "B F"], inputs: Inputs, mode: Mode
) -> tuple[Float[Array, "B N W"], Float[Array, "B M W"], Tree]:
    """The shared experts' outputs, those of the row's scenario's own experts, the new state.

    Experts are dense and rectifier or, as published elsewhere, batch norm and dense; the norm of
    a scenario's experts knows its rows only.
    """
    if params.norms is None:
        shared = stacked_dense(params.experts.shared, features)
        own = own_mlp([params.experts.own], features, inputs.scenario)
        return jax.nn.relu(shared), jax.nn.relu(own), state
    for_shared, shared_moments = batch_norm(
        params.norms.shared, state.shared, features, inputs.mask, mode
    )
    for_own, own_moments = scenario_batch_norm(
        params.norms.own, state.own, features, inputs.scenario, inputs.mask, mode
    )
    shared = stacked_dense(params.experts.shared, for_shared)
    own = own_mlp([params.experts.own], for_own, inputs.scenario)
    return shared, own, ExpertMoments(shared_moments, own_moments)


def mixture_weights(
    params: Dense, features: Float[Array, "B F"], scenario: Int[Array, " B"]
) -> Float[Array, "B E"]:
    """Return each expert's weight, shared ones first; from one layer or the scenario's own."""
    if params.kernel.ndim == 3:
        return jax.nn.softmax(select(stacked_dense(params, features), scenario))
    return jax.nn.softmax(dense(params, features))


def mixture(
    weights: Float[Array, "B E"],
    shared: Float[Array, "B N W"],
    own: Float[Array, "B M W"],
    gate: Float[Array, "B 2"] | None = None,
) -> Float[Array, "B W"]:
    """Σ_e q_e expert_e; with D3's gate, g₀ times the own experts' part and g₁ times the rest."""
    if gate is not None:
        own, shared = gate[:, :1, None] * own, gate[:, 1:, None] * shared
    return jnp.einsum("be,bew->bw", weights, jnp.concatenate([shared, own], axis=1))


def _build(choice: BackboneChoice) -> Backbone:
    return sar_net(choice.gate_layers, choice.options)


_NEEDS = {"d3_place": (D3_HEAD,)}

_SPACE = {
    "shared_experts": (4, 8, 16),
    "own_experts": (1, 2, 4),
    "width": (8, 16, 32),
    "layers": ((32,), (32, 32), (64, 32)),
}

PART = Part(_build, SARNetOptions, needs=_NEEDS, space=_SPACE)
