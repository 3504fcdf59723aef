"""M2M written a second time, for tests: float64 NumPy, every row with weights of its own.

Zhang et al., "Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for
Advertiser Modeling" (WSDM 2022), for one task and rows without a behaviour sequence. `M2M` holds
what is not generated; generated layers come as sites, so that M2M's meta units and D3's layers
(Jia et al., AAAI 2024) are two ways of making the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.d3jax import reference
from tests.d3jax.reference import Array, Layer

Site = tuple[Array, Array]
"""One generated layer: every row's kernel [B I O] and bias [B O]."""


class M2M(NamedTuple):
    experts: Sequence[Layer]
    task: Array
    view: Layer
    score: Array
    head: Sequence[Layer]


def meta_sites(
    table: Array,
    knowledge: Layer,
    generators: Sequence[tuple[Layer, Layer]],
    inputs: Sequence[int],
    scenario: Array,
) -> list[Site]:
    """Every row's knowledge of its scenario, and the layers it generates; a generator is the
    linear map to a flat kernel and the one to a bias."""
    rows = np.array([reference.leaky_relu(reference.dense(knowledge, table[s])) for s in scenario])
    return [
        reference.specific_parts(weight, bias, rows, width)
        for (weight, bias), width in zip(generators, inputs, strict=True)
    ]


def meta_unit(sites: Sequence[Site], row: int, h: Array, last: bool = True) -> Array:
    """One row's vector through its generated layers; `last` keeps the final activation."""
    for place, (kernels, biases) in enumerate(sites):
        h = h @ kernels[row] + biases[row]
        if last or place < len(sites) - 1:
            h = reference.leaky_relu(h)
    return h


def m2m(
    p: M2M,
    x: Array,
    attention: Sequence[Site],
    tower: Sequence[Sequence[Site]],
    inner_activation: bool = False,
) -> Array:
    """Logits [B]."""
    view = reference.leaky_relu(reference.dense(p.view, p.task))
    logits = []
    for row, flat in enumerate(x.reshape(len(x), -1)):
        experts = [reference.leaky_relu(reference.dense(layer, flat)) for layer in p.experts]
        scores = [
            p.score @ meta_unit(attention, row, np.concatenate([expert, view]))
            for expert in experts
        ]
        h = reference.softmax(np.array(scores)) @ np.array(experts)
        for sites in tower:
            h = reference.leaky_relu(meta_unit(sites, row, h, inner_activation) + h)
        logits.append(reference.mlp_linear_last(p.head, h)[0])
    return np.array(logits)


def plain_attention(experts: Sequence[Layer], score: Array, x: Array) -> Array:
    """The mixture [B W] of an attention that knows no scenario: softmax of v · tanh(expert)."""
    mixed = []
    for flat in x.reshape(len(x), -1):
        outputs = [reference.leaky_relu(reference.dense(layer, flat)) for layer in experts]
        weights = reference.softmax(np.array([score @ np.tanh(output) for output in outputs]))
        mixed.append(weights @ np.array(outputs))
    return np.array(mixed)


def parameter_count(
    inputs: int,
    dim: int,
    scenarios: int,
    experts: int,
    width: int,
    knowledge: int,
    meta_layers: int,
    blocks: int,
    layers: Sequence[int],
) -> int:
    """Experts, task view, attention's vector, scenario knowledge, meta units, output."""

    def generator(p: int) -> int:
        return (knowledge + 1) * (p * p + p)

    mixture = experts * (inputs + 1) * width + dim + (dim + 1) * width + 2 * width
    known = scenarios * dim + (dim + 1) * knowledge
    units = meta_layers * (generator(2 * width) + blocks * generator(width))
    output = sum(a * b + b for a, b in pairwise([width, *layers, 1]))
    return mixture + known + units + output
