"""M3oE: three kinds of experts - of all, of a domain, of a task - fused by learned weights.

Zhang et al., "M3oE: Multi-Domain Multi-Task Mixture-of-Experts Recommendation Framework" (SIGIR
2024). CTR prediction is its case of one task, so there is one task expert and nothing to balance
it with. Assumed or different from the authors' code: the fusion weights are trained with
everything else instead of in turns on held-out rows; there are no layer norms, and the domains'
factors of the first layer start near 1 instead of as a second Glorot draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from d3jax.backbones.star import StarDense, declare_star_dense, star_dense
from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import towers
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, mlp, select, stacked_dense
from d3jax.parameters import Tree, declare_array
from d3jax.registry import Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class M3oEOptions:
    """M3oE."""

    star_width: int = 128
    """Width of the first layer, shared times scenario's weights."""
    width: int = 64
    """Width of what the experts read."""
    experts: int = 4
    """Experts that all scenarios share."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""

    def __post_init__(self) -> None:
        check_types(self, "m3oe.")
        within("m3oe.star_width", self.star_width, 1, 4096)
        within("m3oe.width", self.width, 1, 4096)
        within("m3oe.experts", self.experts, 1, 4096)
        widths("m3oe.layers", self.layers, empty=False)


class ExtractorParams(NamedTuple):
    """The first, star-shaped layer, a dense one over it, and a dense one past both."""

    star: StarDense
    over: Dense
    past: Dense


class FusionWeights(NamedTuple):
    """Numbers before the sigmoid: a domain's own expert against the other domains', and how
    much the domain's and the task's part count beside the shared one."""

    balance: Float[Array, ""]
    domain: Float[Array, ""]
    task: Float[Array, ""]


class M3oEParams(NamedTuple):
    """Extractor; shared experts with a gate per scenario; domain and task experts; the rest."""

    extractor: ExtractorParams
    shared: tuple[Dense, ...]
    gates: Dense
    domain: tuple[Dense, ...]
    task: tuple[Dense, ...]
    fusion: FusionWeights
    head: Tree


def m3oe(head: Head, options: M3oEOptions | None = None, **settings: Any) -> Backbone:
    """The head reads the fused experts.

    A domain's expert also serves the others, so it learns from every row; the factors of the
    first layer and the gate of a scenario that no row belongs to get no gradient.
    """
    options = chosen(M3oEOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        width, scenarios = options.width, sizes.num_scenarios
        params = M3oEParams(
            extractor=ExtractorParams(
                star=declare_star_dense(scenarios, sizes.flat, options.star_width),
                over=declare_dense(options.star_width, width),
                past=declare_dense(sizes.flat, width),
            ),
            shared=declare_mlp(width, options.layers, stack=(options.experts,)),
            gates=declare_dense(width, options.experts, stack=(scenarios,)),
            domain=declare_mlp(width, options.layers, stack=(scenarios,)),
            task=declare_mlp(width, options.layers),
            fusion=FusionWeights(*(declare_array(()) for _ in FusionWeights._fields)),
            head=declared.params,
        )
        return Declared(params, declared.state)

    def apply(params: M3oEParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        hidden = extract(params.extractor, inputs.flat, inputs.scenario)
        fused = fuse_experts(params, hidden, inputs.scenario)
        return head.apply(params.head, state, fused, inputs, mode)

    return Backbone(declare, apply)


def extract(
    params: ExtractorParams, flat: Float[Array, "B I"], scenario: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """Return what all experts read: φ(star_s(x) · W + b) + φ(x · V + c)."""
    own = star_dense(params.star, flat, scenario)
    return jax.nn.relu(dense(params.over, own)) + jax.nn.relu(dense(params.past, flat))


def fuse_experts(
    params: M3oEParams, hidden: Float[Array, "B I"], scenario: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """The gate's mixture of shared experts, plus the domain's and the task's part, weighed."""
    weights = jax.tree.map(jax.nn.sigmoid, params.fusion)
    everyone = stacked_mlp(params.domain, hidden)
    domain = balance_domains(everyone, scenario, weights.balance)
    task = mlp(params.task, hidden)
    return shared_part(params, hidden, scenario) + weights.domain * domain + weights.task * task


def shared_part(
    params: M3oEParams, hidden: Float[Array, "B I"], scenario: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """Σ_e q_e expert_e(h), q the softmax of the row's scenario's gate.

    The gate only reads `hidden` and teaches it nothing, as in the authors' code.
    """
    scores = select(stacked_dense(params.gates, lax.stop_gradient(hidden)), scenario)
    experts = stacked_mlp(params.shared, hidden)
    return jnp.einsum("be,bew->bw", jax.nn.softmax(scores), experts)


def balance_domains(
    experts: Float[Array, "B S W"], scenario: Int[Array, " B"], balance: Float[Array, ""]
) -> Float[Array, "B W"]:
    """β own + (1 - β) · the mean of the other domains' experts, which is 0 where S = 1."""
    own = select(experts, scenario)
    others = (experts.sum(1) - own) / max(experts.shape[1] - 1, 1)
    return balance * own + (1 - balance) * others


def stacked_mlp(layers: tuple[Dense, ...], hidden: Float[Array, "B I"]) -> Float[Array, "B E W"]:
    """Every expert's output for every row."""
    for layer in layers:
        hidden = jax.nn.relu(stacked_dense(layer, hidden))
    return hidden


def _build(choice: BackboneChoice) -> Backbone:
    return m3oe(choice.head(towers(choice.tower_layers)), choice.options)


_SPACE = {
    "star_width": (64, 128, 256),
    "width": (32, 64, 128),
    "experts": (2, 4, 8),
    "layers": ((32,), (64,), (128,)),
}

PART = Part(_build, M3oEOptions, space=_SPACE)
