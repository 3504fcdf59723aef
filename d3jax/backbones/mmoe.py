"""MMoE (Ma et al., KDD 2018): experts for all, mixed by each scenario's own gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import towers
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, select, stacked_dense
from d3jax.parameters import Tree
from d3jax.registry import Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class MMoEOptions:
    """Multi-gate Mixture-of-Experts."""

    experts: int = 4
    """Number of experts."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""
    one_gate: bool = False
    """One gate for all scenarios instead of one each."""

    def __post_init__(self) -> None:
        check_types(self, "mmoe.")
        within("mmoe.experts", self.experts, 1, 4096)
        widths("mmoe.layers", self.layers, empty=False)


class MMoEParams(NamedTuple):
    """Stacked experts, one gate a scenario, and the head."""

    experts: tuple[Dense, ...]
    gates: Dense
    head: Tree


def mmoe(head: Head, options: MMoEOptions | None = None, **settings: Any) -> Backbone:
    """The head reads the row's mixture of experts."""
    options = chosen(MMoEOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        gates = 1 if options.one_gate else sizes.num_scenarios
        params = MMoEParams(
            experts=declare_mlp(sizes.flat, options.layers, stack=(options.experts,)),
            gates=declare_dense(sizes.flat, options.experts, stack=(gates,), bias=None),
            head=declared.params,
        )
        return Declared(params, declared.state)

    def apply(params: MMoEParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        return head.apply(params.head, state, mixture(params, inputs), inputs, mode)

    return Backbone(declare, apply)


def mixture(params: MMoEParams, inputs: Inputs) -> Float[Array, "B W"]:
    """Σ_e q_e expert_e(x), q the softmax of the row's scenario's gate."""
    experts = inputs.flat
    for layer in params.experts:
        experts = jax.nn.relu(stacked_dense(layer, experts))
    scores = stacked_dense(params.gates, inputs.flat)
    shared = params.gates.kernel.shape[0] == 1
    own = scores[:, 0] if shared else select(scores, inputs.scenario)
    return jnp.einsum("be,bew->bw", jax.nn.softmax(own), experts)


def _build(choice: BackboneChoice) -> Backbone:
    return mmoe(choice.head(towers(choice.tower_layers)), choice.options)


_SPACE = {"experts": (2, 4, 8, 16), "layers": ((32,), (64,), (128,), (128, 64))}

PART = Part(_build, MMoEOptions, space=_SPACE)
