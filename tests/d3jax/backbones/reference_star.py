"""STAR written a second time, for tests: float64 NumPy, one row and one layer at a time.

Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR
Prediction" (CIKM 2021), with the gate of D3 (Jia et al., AAAI 2024, Eq. 11-13) where asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.d3jax import reference
from tests.d3jax.reference import Array, Layer


class Star(NamedTuple):
    """Partitioned norm, the star's layers (`own` stacked over scenarios), auxiliary net, gate."""

    scale: Array
    offset: Array
    own_scale: Array
    own_offset: Array
    shared: Sequence[Layer]
    own: Sequence[Layer]
    scenarios: Array
    auxiliary: Sequence[Layer]
    gate: Sequence[Layer] | None
    running_mean: Array
    running_var: Array


def partitioned_norm(
    p: Star, flat: Array, scenario: Array, mask: Array, train: bool
) -> tuple[Array, Array, Array]:
    """Rows by their scenario's moments, and the running mean and variance afterwards."""
    mean, var = p.running_mean, p.running_var
    if train:
        normal, mean, var = reference.scenario_batch_norm(flat, scenario, mask, mean, var)
    else:
        normal = np.array(
            [(h - mean[s]) / np.sqrt(var[s] + 1e-5) for h, s in zip(flat, scenario, strict=True)]
        )
    rows = [
        h * (p.scale * p.own_scale[s]) + (p.offset + p.own_offset[s])
        for h, s in zip(normal, scenario, strict=True)
    ]
    return np.array(rows), mean, var


def star_row(
    p: Star, h: Array, s: int, gate: Array | None, gate_scale: float, bias: bool, depth: str
) -> float:
    """One row through its scenario's centre-and-branch layers; the last has no activation."""
    for index, ((kernel, offset), (own_kernel, own_offset)) in enumerate(
        zip(p.shared, p.own, strict=True)
    ):
        w, b = own_kernel[s] * kernel, own_offset[s] + offset
        if gate is not None and (depth == "all" or index == 0):
            w = gate_scale * (gate[0] * own_kernel[s]) * (gate[1] * kernel)
            if bias:
                b = gate[0] * own_offset[s] + gate[1] * offset
        h = h @ w + b
        if index < len(p.shared) - 1:
            h = reference.relu(h)
    return float(h[0])


def star(
    p: Star,
    x: Array,
    scenario: Array,
    mask: Array,
    train: bool,
    gate_scale: float = 1.0,
    gate_bias: bool = False,
    gate_depth: str = "all",
) -> tuple[Array, Array | None, Array, Array]:
    """Logits [B], gate [B 2] or None, and the running mean and variance afterwards."""
    flat = x.reshape(len(x), -1)
    gates = None if p.gate is None else reference.gate(p.gate, x)
    normal, mean, var = partitioned_norm(p, flat, scenario, mask, train)
    logits = []
    for b, s in enumerate(scenario):
        gate = None if gates is None else gates[b]
        main = star_row(p, normal[b], s, gate, gate_scale, gate_bias, gate_depth)
        side = np.concatenate([flat[b], p.scenarios[s]])
        logits.append(main + reference.mlp_linear_last(p.auxiliary, side)[0])
    return np.array(logits), gates, mean, var


def parameter_count(
    inputs: int,
    dim: int,
    scenarios: int,
    layers: Sequence[int],
    auxiliary: Sequence[int],
    gate: Sequence[int] | None,
) -> int:
    """(S + 1) copies of norm and star, the scenario table, the auxiliary net and the gate."""

    def dense_count(widths: Sequence[int]) -> int:
        return sum(a * b + b for a, b in pairwise(widths))

    copied = 2 * inputs + dense_count([inputs, *layers, 1])
    side = dense_count([inputs + dim, *auxiliary, 1])
    gates = 0 if gate is None else dense_count([inputs, *gate, 2])
    return (scenarios + 1) * copied + scenarios * dim + side + gates
