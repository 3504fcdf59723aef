"""PEPNet written a second time, for tests: float64 NumPy, one row at a time.

Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized
Prior Information" (KDD 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.d3jax import reference
from tests.d3jax.reference import Array, Layer

Unit = tuple[Layer, Layer]
"""A gate unit: its hidden layer and its output layer."""


class PEPNet(NamedTuple):
    """`gates` is empty where only the embeddings are gated."""

    table: Array
    embedding_gate: Unit
    layers: Sequence[Layer]
    gates: Sequence[Unit]


def gate(unit: Unit, prior: Array, features: Array) -> Array:
    hidden = reference.relu(reference.dense(unit[0], np.concatenate([prior, features])))
    return 2 * reference.sigmoid(reference.dense(unit[1], hidden))


def gated_embeddings(p: PEPNet, u: Array, scenario: Array, seen: Array) -> Array:
    """EPNet: u times what the gate makes of the scenario and of `seen`, a copy of u."""
    rows = zip(u, scenario, seen, strict=True)
    return np.array([gate(p.embedding_gate, p.table[s], copy) * row for row, s, copy in rows])


def gated_layers(p: PEPNet, o: Array, prior: Array, seen: Array) -> Array:
    """PPNet: layers on o, gated by the prior and by `seen`, a copy of o."""
    rows = []
    for row, ids, copy in zip(o, prior, seen, strict=True):
        for place, layer in enumerate(p.layers):
            row = reference.relu(reference.dense(layer, row))
            if p.gates:
                row = gate(p.gates[place], ids, copy) * row
        rows.append(row)
    return np.array(rows)


def hidden(
    p: PEPNet,
    u: Array,
    scenario: Array,
    prior: Array,
    seen: tuple[Array, Array] | None = None,
) -> Array:
    """The last gated layer [B W]. `seen` is what the gates read in place of u and of EPNet's
    output: held fixed, slopes of this function are gradients that stop at the gates."""
    o = gated_embeddings(p, u, scenario, u if seen is None else seen[0])
    return gated_layers(p, o, prior, o if seen is None else seen[1])


def parameter_count(
    inputs: int, dim: int, scenarios: int, priors: int, layers: Sequence[int], gated: bool = True
) -> int:
    """The scenario table, EPNet's gate, the layers and PPNet's gates."""

    def unit(width: int, outputs: int) -> int:
        return (width + 1) * outputs + (outputs + 1) * outputs

    total = scenarios * dim + unit(dim + inputs, inputs)
    total += sum(a * b + b for a, b in pairwise([inputs, *layers]))
    return total + (sum(unit(priors * dim + inputs, w) for w in layers) if gated else 0)
