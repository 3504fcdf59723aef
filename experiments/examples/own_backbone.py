"""A backbone of one's own beside the paper's: registered by a name, then compared like theirs.

python -m experiments.examples.own_backbone PREPARED OUT

The backbone scales each field's embedding by a gate of the row's scenario, 2 sigmoid(g[s, f]),
which starts at 1, and passes all of them through one network. `d3jax.register` gives it a name, by
which training, comparisons and searches of this process know it, with its own settings; a package
that names it in its entry points, as in `residual_package`, makes it known to the command line too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import Array

import d3jax
from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.configure import configure
from d3jax.console.terminal import Console
from d3jax.heads import towers
from d3jax.layers.dense import Dense, declare_mlp, mlp
from d3jax.parameters import Tree, declare_array
from experiments.compare.compare import Plan, compare
from experiments.compare.tables import MLP, Method, Table


@dataclass(frozen=True)
class GatesOptions:
    """Scenario gates."""

    layers: tuple[int, ...] = (64, 32)
    """Widths of the network behind the gates."""


class GatesParams(NamedTuple):
    """A gate for each scenario and field [S N], the network and the head."""

    gates: Array
    network: tuple[Dense, ...]
    head: Tree


def scenario_gates(head: Head, options: GatesOptions) -> Backbone:
    """Return the backbone; the head reads the network's output."""

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        gates = declare_array((sizes.num_scenarios, sizes.num_fields))
        network = declare_mlp(sizes.flat, options.layers)
        return Declared(GatesParams(gates, network, declared.params), declared.state)

    def apply(params: GatesParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        gate = 2 * jax.nn.sigmoid(params.gates[inputs.scenario])
        hidden = mlp(params.network, (gate[:, :, None] * inputs.x).reshape(len(gate), -1))
        return head.apply(params.head, state, hidden, inputs, mode)

    return Backbone(declare, apply)


def build(choice: Any) -> Backbone:
    """Return the backbone with the head that was chosen: its own are towers, as Shared-Bottom's."""
    return scenario_gates(choice.head(towers(choice.tower_layers)), choice.options)


TABLE = Table(
    "scenario-gates",
    "Scenario gates beside the paper's Shared-Bottom",
    (
        MLP,
        Method("Shared-Bottom", "shared_bottom"),
        Method("Scenario gates", "scenario_gates", base="Shared-Bottom"),
        Method("Scenario gates + D3", "scenario_gates", "d3", base="Scenario gates"),
    ),
)


def main(data: Path, out: Path, seeds: int = 3, **settings: Any) -> None:
    """Train every method with every seed, and write the tables; the same call goes on."""
    d3jax.register("backbone", "scenario_gates", build, GatesOptions)
    compare(data, Plan(TABLE, configure("best", **settings), seeds, out), Console())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
