"""SAR-Net written a second time, for tests: float64 NumPy, one row and one expert at a time.

Shen et al., "SAR-Net: A Scenario-Aware Ranking Network for Personalized Fair Recommendation in
Hundreds of Travel Scenarios" (CIKM 2021), with the gate of D3 (Jia et al., AAAI 2024) where asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.d3jax import reference
from tests.d3jax.reference import Array, Layer


class Expert(NamedTuple):
    """A dense layer and, for the linear form, the batch norm before it with its statistics."""

    layer: Layer
    scale: Array | None = None
    offset: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None


class StarTransform(NamedTuple):
    """A dense layer whose kernel is the product, and whose bias the sum, of two."""

    shared: Layer
    own: Layer


class SARNet(NamedTuple):
    """The transform is (scale [S F], offset [S F]) or a star layer; `own` is experts by scenario;
    `mixer` is one layer for all scenarios or stacked over them."""

    transform: tuple[Array, Array] | StarTransform
    shared: Sequence[Expert]
    own: Sequence[Sequence[Expert]]
    mixer: Layer
    head: Sequence[Layer]
    gate: Sequence[Layer] | None


def transformed(p: SARNet, flat: Array, scenario: Array, gates: Array | None) -> Array:
    rows = []
    for b, s in enumerate(scenario):
        if isinstance(p.transform, StarTransform):
            (kernel, bias), (own_kernel, own_bias) = p.transform
            w = (gates[b, 0] * own_kernel[s]) * (gates[b, 1] * kernel)
            rows.append(flat[b] @ w + own_bias[s] + bias)
        else:
            scale, offset = p.transform
            rows.append(flat[b] * scale[s] + offset[s])
    return np.array(rows)


def expert_outputs(
    e: Expert, v: Array, counted: Array, train: bool
) -> tuple[Array, tuple[Array, Array] | None]:
    """An expert's output for every row, and its running moments after a batch in which the rows
    `counted` are its own."""
    if e.scale is None:
        return reference.relu(reference.dense(e.layer, v)), None
    mean, var = e.running_mean, e.running_var
    new = (mean, var)
    if train and counted.sum() >= 2:
        mean, var = reference.batch_moments(v, counted)
        new = (0.9 * e.running_mean + 0.1 * mean, 0.9 * e.running_var + 0.1 * var)
    return reference.dense(e.layer, reference.normalise(v, mean, var, e.scale, e.offset)), new


Moments = list[tuple[Array, Array] | None]


def sar_net(
    p: SARNet, x: Array, scenario: Array, mask: Array, train: bool
) -> tuple[Array, Array | None, Moments, list[Moments]]:
    """Logits [B], gate [B 2] or None, and the running moments of shared and own experts."""
    gates = None if p.gate is None else reference.gate(p.gate, x)
    v = transformed(p, x.reshape(len(x), -1), scenario, gates)
    shared = [expert_outputs(e, v, mask, train) for e in p.shared]
    own = [
        [expert_outputs(e, v, mask & (scenario == s), train) for e in experts]
        for s, experts in enumerate(p.own)
    ]
    grouped = gates is not None and not isinstance(p.transform, StarTransform)
    logits = []
    for b, s in enumerate(scenario):
        kernel, bias = p.mixer
        layer = (kernel[s], bias[s]) if kernel.ndim == 3 else (kernel, bias)
        q = reference.softmax(reference.dense(layer, v[b]))
        group = [*(out[b] for out, _ in shared), *(out[b] for out, _ in own[s])]
        weight = [gates[b, 1]] * len(shared) + [gates[b, 0]] * len(own[s]) if grouped else None
        mixed = sum(
            share * (1.0 if weight is None else weight[j]) * out
            for j, (share, out) in enumerate(zip(q, group, strict=True))
        )
        logits.append(reference.mlp_linear_last(p.head, mixed)[0])
    return (
        np.array(logits),
        gates,
        [moments for _, moments in shared],
        [[moments for _, moments in experts] for experts in own],
    )


def parameter_count(
    inputs: int,
    scenarios: int,
    shared: int,
    own: int,
    width: int,
    layers: Sequence[int],
    gate: Sequence[int] | None,
    *,
    star_width: int | None = None,
    scenario_mixer: bool = False,
    norms: bool = False,
) -> int:
    """Transform, experts, mixture gate, head and D3's gate; `star_width` is that of v."""

    def dense_count(widths: Sequence[int]) -> int:
        return sum(a * b + b for a, b in pairwise(widths))

    features = star_width or inputs
    if star_width:
        transform = (scenarios + 1) * dense_count([inputs, star_width])
    else:
        transform = 2 * scenarios * inputs
    experts = (shared + scenarios * own) * dense_count([features, width])
    if norms:
        experts += (1 + scenarios) * 2 * features
    mixers = (scenarios if scenario_mixer else 1) * dense_count([features, shared + own])
    gates = 0 if gate is None else dense_count([inputs, *gate, 2])
    return transform + experts + mixers + dense_count([width, *layers, 1]) + gates
