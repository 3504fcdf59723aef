"""ADI written a second time, for tests: float64 NumPy, one row and one network at a time.

Jiang et al., "Adaptive Domain Interest Network for Multi-domain Recommendation" (CIKM 2022), as a
model of clicks: its tower reads all fields and ends in a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.d3jax import reference
from tests.d3jax.reference import Array, Layer


class Norm(NamedTuple):
    """A batch norm of every scenario, each array [S F]."""

    scale: Array
    offset: Array
    mean: Array
    var: Array


class Adaptation(NamedTuple):
    """The norm of the input, and each scenario's two layers over the fields' means."""

    norm: Norm
    squeeze: Sequence[Layer]
    excite: Sequence[Layer]


class Network(NamedTuple):
    """One network's layers and, where they are normed, the norm after each."""

    layers: Sequence[Layer]
    norms: Sequence[Norm] = ()


class Interest(NamedTuple):
    """ADI's own networks; `own`, `forward`, `for_own` and `for_shared` by scenario."""

    table: Array
    shared: Sequence[Network]
    mixer: Layer | None
    own: Sequence[Sequence[Layer]]
    own_norms: Sequence[Norm]
    for_own: Array
    for_shared: Array
    forward: Sequence[Layer]
    shared_forward: Layer | None
    head: Sequence[Layer]


Moments = tuple[Array, Array]


def normed(p: Norm, h: Array, scenario: Array, mask: Array, train: bool) -> tuple[Array, Moments]:
    """Rows by their own scenario's moments, and the running moments afterwards."""
    mean, var = p.mean, p.var
    if train:
        h, mean, var = reference.scenario_batch_norm(h, scenario, mask, mean, var)
    else:
        h = np.array(
            [(row - mean[s]) / np.sqrt(var[s] + 1e-5) for row, s in zip(h, scenario, strict=True)]
        )
    rows = [row * p.scale[s] + p.offset[s] for row, s in zip(h, scenario, strict=True)]
    return np.array(rows), (mean, var)


def adapted(
    p: Adaptation,
    x: Array,
    scenario: Array,
    mask: Array,
    train: bool,
    excitation: str = "linear",
) -> tuple[Array, Moments]:
    """The adapted embeddings [B N D], and the input's running moments afterwards."""
    flat, moments = normed(p.norm, x.reshape(len(x), -1), scenario, mask, train)
    rows = []
    for fields, s in zip(flat.reshape(x.shape), scenario, strict=True):
        means = np.array([field.sum() / len(field) for field in fields])
        alpha = reference.dense(p.excite[s], reference.relu(reference.dense(p.squeeze[s], means)))
        if excitation != "linear":
            alpha = reference.sigmoid(alpha)
        if excitation == "2sigmoid":
            alpha = 2 * alpha
        rows.append([a * field for a, field in zip(alpha, fields, strict=True)])
    return np.array(rows), moments


def shared_network(
    p: Network, u: Array, scenario: Array, mask: Array, train: bool
) -> tuple[Array, list[Moments]]:
    """A network that all rows pass, normed scenario by scenario where it is normed at all."""
    moments = []
    for place, layer in enumerate(p.layers):
        u = reference.dense(layer, u)
        if p.norms:
            u, new = normed(p.norms[place], u, scenario, mask, train)
            moments.append(new)
        u = reference.relu(u)
    return u, moments


def own_network(
    p: Interest, u: Array, scenario: Array, mask: Array, train: bool
) -> tuple[Array, list[Moments]]:
    """Each row through its scenario's network."""
    moments = []
    for place in range(len(p.own[0])):
        u = np.array(
            [reference.dense(p.own[s][place], row) for row, s in zip(u, scenario, strict=True)]
        )
        if p.own_norms:
            u, new = normed(p.own_norms[place], u, scenario, mask, train)
            moments.append(new)
        u = reference.relu(u)
    return u, moments


def interest(
    p: Interest,
    u: Array,
    scenario: Array,
    mask: Array,
    train: bool,
    mixture: str = "softmax",
) -> tuple[Array, list[list[Moments]], list[Moments]]:
    """Logits [B], and the running moments of each shared network's layers and of the own one's."""
    shared = [shared_network(network, u, scenario, mask, train) for network in p.shared]
    own, own_moments = own_network(p, u, scenario, mask, train)
    logits = []
    for b, s in enumerate(scenario):
        f = p.table[s]
        weights = np.ones(1)
        if p.mixer is not None:
            scores = reference.dense(p.mixer, f)
            weights = reference.softmax(scores) if mixture == "softmax" else scores / scores.sum()
        common = sum(w * out[b] for w, (out, _) in zip(weights, shared, strict=True))
        mine = reference.sigmoid(f @ p.for_own[s]) * own[b]
        common = reference.sigmoid(f @ p.for_shared[s]) * common
        kernel, bias = p.forward[s]
        if p.shared_forward is not None:
            kernel, bias = kernel * p.shared_forward[0], bias + p.shared_forward[1]
        fused = np.concatenate([mine, mine * common, common])
        out = reference.relu(reference.dense((kernel, bias), fused))
        logits.append(reference.mlp_linear_last(p.head, out)[0])
    return np.array(logits), [moments for _, moments in shared], own_moments


def parameter_count(
    fields: int,
    dim: int,
    scenarios: int,
    layers: Sequence[int],
    forward: int,
    head: Sequence[int],
    shared: int = 1,
) -> int:
    """Norm, adaptation, scenario table, networks, mixture, importance, forward network, head."""

    def dense_count(widths: Sequence[int]) -> int:
        return sum(a * b + b for a, b in pairwise(widths))

    inputs, squeezed = fields * dim, max(4, -(-fields // 2))
    adaptation = scenarios * (2 * inputs + dense_count([fields, squeezed, fields]))
    networks = (shared + scenarios) * dense_count([inputs, *layers])
    mixer = dense_count([dim, shared]) if shared > 1 else 0
    importance = 2 * scenarios * dim
    last = scenarios * dense_count([3 * layers[-1], forward]) + dense_count([forward, *head, 1])
    return adaptation + scenarios * dim + networks + mixer + importance + last
