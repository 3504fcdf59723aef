"""PLE, progressive layered extraction: experts of one scenario beside experts of all, in levels.

Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for
Personalized Recommendations" (RecSys 2020), with a scenario where the paper has a task.
"""

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
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, select, stacked_dense
from d3jax.parameters import Tree
from d3jax.registry import Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class PLEOptions:
    """Progressive layered extraction."""

    levels: int = 2
    """Levels of experts."""
    own_experts: int = 2
    """Experts of each scenario in a level."""
    shared_experts: int = 2
    """Experts in a level that all scenarios share."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""

    def __post_init__(self) -> None:
        check_types(self, "ple.")
        within("ple.levels", self.levels, 1, 4096)
        within("ple.own_experts", self.own_experts, 1, 4096)
        within("ple.shared_experts", self.shared_experts, 1, 4096)
        widths("ple.layers", self.layers, empty=False)


class LevelParams(NamedTuple):
    """One level: a stack of each scenario's experts, scenario by scenario, and one of those that
    all share; a gate per scenario, and one for the shared path (None on the last level)."""

    own: tuple[Dense, ...]
    shared: tuple[Dense, ...]
    gates: Dense
    shared_gate: Dense | None


class PLEParams(NamedTuple):
    """The levels from the embeddings up, and the head."""

    levels: tuple[LevelParams, ...]
    head: Tree


class Paths(NamedTuple):
    """The flow between levels: a representation for each scenario, and one for all."""

    own: Float[Array, "B S I"]
    shared: Float[Array, "B I"]


def ple(head: Head, options: PLEOptions | None = None, **settings: Any) -> Backbone:
    """The head reads what the last level extracted for the row's scenario.

    The shared path mixes every scenario's experts, so a scenario without rows in a batch still
    learns through its experts below the last level; its gates and its last experts don't.
    """
    options = chosen(PLEOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        inputs = (sizes.flat, *[options.layers[-1]] * (options.levels - 1))
        levels = tuple(
            declare_level(width, sizes.num_scenarios, options, last=level == options.levels - 1)
            for level, width in enumerate(inputs)
        )
        return Declared(PLEParams(levels, declared.params), declared.state)

    def apply(params: PLEParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        scenarios = params.levels[0].gates.kernel.shape[0]
        paths = Paths(jnp.repeat(inputs.flat[:, None], scenarios, axis=1), inputs.flat)
        for level in params.levels:
            paths = extract(level, paths)
        return head.apply(params.head, state, select(paths.own, inputs.scenario), inputs, mode)

    return Backbone(declare, apply)


def declare_level(inputs: int, scenarios: int, options: PLEOptions, *, last: bool) -> LevelParams:
    """Experts and gates over paths of width `inputs`; gates have no bias, as in the paper."""
    own = scenarios * options.own_experts
    seen = options.own_experts + options.shared_experts
    shared_gate = declare_dense(inputs, own + options.shared_experts, bias=None)
    return LevelParams(
        own=declare_mlp(inputs, options.layers, stack=(own,)),
        shared=declare_mlp(inputs, options.layers, stack=(options.shared_experts,)),
        gates=declare_dense(inputs, seen, stack=(scenarios,), bias=None),
        shared_gate=None if last else shared_gate,
    )


def extract(params: LevelParams, paths: Paths) -> Paths:
    """One level up: each path becomes its gate's mixture of the experts it sees.

    A scenario sees its own experts and the shared ones; the shared path sees all, and ends on
    the last level.
    """
    rows, scenarios, _ = paths.own.shape
    per_scenario = params.own[0].kernel.shape[0] // scenarios
    own = expert_outputs(params.own, jnp.repeat(paths.own, per_scenario, axis=1))
    shared = expert_outputs(params.shared, paths.shared)
    gates = jax.nn.softmax(stacked_dense(params.gates, paths.own))
    grouped = own.reshape(rows, scenarios, per_scenario, -1)
    mixed = jnp.einsum("bse,bsew->bsw", gates[..., :per_scenario], grouped)
    mixed += jnp.einsum("bse,bew->bsw", gates[..., per_scenario:], shared)
    if params.shared_gate is None:
        return Paths(mixed, paths.shared)
    gate = jax.nn.softmax(dense(params.shared_gate, paths.shared))
    everyone = jnp.concatenate([own, shared], axis=1)
    return Paths(mixed, jnp.einsum("be,bew->bw", gate, everyone))


def expert_outputs(
    experts: tuple[Dense, ...], hidden: Float[Array, "B *E I"]
) -> Float[Array, "B E W"]:
    """Each expert's output; `hidden` is one for all experts or one for each."""
    for layer in experts:
        hidden = jax.nn.relu(stacked_dense(layer, hidden))
    return hidden


def _build(choice: BackboneChoice) -> Backbone:
    return ple(choice.head(towers(choice.tower_layers)), choice.options)


_SPACE = {
    "levels": (1, 2, 3),
    "own_experts": (1, 2, 4),
    "shared_experts": (1, 2, 4),
    "layers": ((32,), (64,), (128,)),
}

PART = Part(_build, PLEOptions, space=_SPACE)
