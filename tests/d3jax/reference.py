"""D3 written a second time, for tests: float64 NumPy, one row at a time where that reads best.

Nothing here imports d3jax. Arguments are plain arrays; a dense layer is the pair `(kernel, bias)`
with bias None where there is none. Equation numbers are those of D3 (Jia et al., AAAI 2024);
"official" is what the authors' released code computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Layer = tuple[Array, Array | None]
Activation = Callable[[Array], Array]


def relu(h: Array) -> Array:
    return np.where(h > 0, h, 0.0)


def leaky_relu(h: Array) -> Array:
    return np.where(h > 0, h, 0.01 * h)


def identity(h: Array) -> Array:
    return h


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def dense(layer: Layer, h: Array) -> Array:
    kernel, bias = layer
    return h @ kernel if bias is None else h @ kernel + bias


def mlp(layers: Sequence[Layer], h: Array) -> Array:
    """An activation after every layer."""
    for layer in layers:
        h = relu(dense(layer, h))
    return h


def mlp_linear_last(layers: Sequence[Layer], h: Array) -> Array:
    return dense(layers[-1], mlp(layers[:-1], h))


def embed(tables: Sequence[Array], slots: Sequence[int], ids: Array) -> Array:
    """Eq. 2-4 with one table a field: the mean over those of its slots that hold an id."""
    rows = []
    for row in ids:
        fields, start = [], 0
        for table, width in zip(tables, slots, strict=True):
            held = [table[i] for i in row[start : start + width] if i >= 0]
            fields.append(np.mean(held, axis=0))
            start += width
        rows.append(fields)
    return np.array(rows)


def attention_logits(query: Layer, key: Layer, x: Array, scaled: bool = False) -> Array:
    """Eq. 6 and the argument of the softmax in Eq. 7."""
    rows = [dense(query, row) @ dense(key, row).T for row in x]
    return np.array(rows) / (np.sqrt(x.shape[-1]) if scaled else 1.0)


def selected_text(logits: Array, x: Array) -> Array:
    """Eq. 8 as printed."""
    return np.array([softmax(a) @ row + row for a, row in zip(logits, x, strict=True)])


def selected_official(logits: Array, x: Array, value: Layer) -> Array:
    """The authors' code: the residual is the projected value."""
    rows = [dense(value, row) for row in x]
    return np.array([softmax(a) @ v + v for a, v in zip(logits, rows, strict=True)])


def selected_danet(logits: Array, x: Array, value: Layer, gamma: float) -> Array:
    """The position attention of Fu et al. (2019)."""
    rows = [gamma * softmax(a) @ dense(value, row) + row for a, row in zip(logits, x, strict=True)]
    return np.array(rows)


def selected_by_row(
    query: Layer, key: Layer, x: Array, scaled: bool = False
) -> tuple[Array, Array]:
    """Each field by the row's one question; the logits as every field asks them."""
    selected, logits = [], []
    for row in x:
        asked = dense(key, row) @ dense(query, row.mean(0))
        asked = asked / (np.sqrt(x.shape[-1]) if scaled else 1.0)
        selected.append(row + len(row) * softmax(asked)[:, None] * row)
        logits.append([asked] * len(row))
    return np.array(selected), np.array(logits)


def generator_hidden(
    field_kernels: Array, field_biases: Array, inner: Layer, selected: Array, outer: bool = True
) -> Array:
    """Eq. 9, and Eq. 10 up to the last linear map. `outer` keeps the outer activation."""
    rows = []
    for fields in selected:
        parts = [fields[j] @ field_kernels[j] + field_biases[j] for j in range(len(fields))]
        h = np.concatenate(parts)
        r = h + relu(dense(inner, h))
        rows.append(relu(r) if outer else r)
    return np.array(rows)


def specific_parts(weight: Layer, bias: Layer, hidden: Array, inputs: int) -> tuple[Array, Array]:
    """The last linear map of Eq. 10: kernels [B I O], the input index slowest, and biases [B O]."""
    flat = dense(weight, hidden)
    outputs = flat.shape[1] // inputs
    kernels = np.empty((len(hidden), inputs, outputs))
    for b in range(len(hidden)):
        for i in range(inputs):
            for o in range(outputs):
                kernels[b, i, o] = flat[b, i * outputs + o]
    return kernels, dense(bias, hidden)


def gate(layers: Sequence[Layer], features: Array) -> Array:
    """Eq. 11-12 from x' or x, [B N D]; specific first."""
    return softmax(mlp_linear_last(layers, features.reshape(len(features), -1)))


def fuse(gates: Array, specific: Array, shared: Array | None, form: str) -> Array:
    """Eq. 13 for kernels or biases: `multiplicative`, `additive`, or `specific` alone."""
    rows = []
    for (own, common), part in zip(gates, specific, strict=True):
        if form == "multiplicative":
            part = (own * part) * (common * shared)
        elif form == "additive":
            part = own * part + common * shared
        rows.append(part)
    return np.array(rows)


def layer(u: Array, kernels: Array, biases: Array, activation: Activation = relu) -> Array:
    """Eq. 14: a dense layer whose kernel differs from row to row."""
    rows = [row @ w + b for row, w, b in zip(u, kernels, biases, strict=True)]
    return activation(np.array(rows))


def entropy_minus_log_n(logits: Array) -> Array:
    """[B] the mean of the row entropies less ln N, with 0 ln 0 = 0 (Eq. 15, prose sign)."""
    n = logits.shape[-1]
    result = []
    for rows in logits:
        a = softmax(rows)
        positive = np.where(a > 0, a, 1.0)
        result.append(-np.sum(a * np.log(n * positive)) / n)
    return np.array(result)


def entropy_of_mean(logits: Array, epsilon: float = 0.0) -> Array:
    """[B] the entropy of the mean attention row: the form of the authors' code (epsilon 1e-9)."""
    result = []
    for rows in logits:
        mean = softmax(rows).mean(axis=0)
        positive = np.where((mean > 0) | (epsilon > 0), mean + epsilon, 1.0)
        result.append(-np.sum(mean * np.log(positive)))
    return np.array(result)


def normalised_complexity(c: Array, mask: Array, lower: float = 0.1, upper: float = 1.0) -> Array:
    """Eq. 16 over the rows that count; 1/2 where all complexities are the same."""
    counted = c[mask]
    if len(set(counted.tolist())) <= 1:
        return np.full(len(c), np.clip(0.5, lower, upper))
    centred = (c - counted.mean()) / (2 * counted.std()) + 0.5
    return np.clip(centred, lower, upper)


def weighted_loss(logits: Array, label: Array, weights: Array, mask: Array) -> float:
    """Eq. 19: not divided by the sum of the weights."""
    loss = np.logaddexp(0, logits) - label * logits
    return float(np.sum(loss * weights * mask) / mask.sum())


def batch_moments(h: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and population variance over the rows that count."""
    return h[mask].mean(axis=0), h[mask].var(axis=0)


def normalise(h: Array, mean: Array, var: Array, scale: Array, offset: Array) -> Array:
    return (h - mean) / np.sqrt(var + 1e-5) * scale + offset


class Block(NamedTuple):
    """A hidden block of the authors' code: dense, batch norm, LeakyReLU."""

    layer: Layer
    scale: Array
    offset: Array
    running_mean: Array
    running_var: Array


def block(params: Block, h: Array, mask: Array, train: bool) -> Array:
    h = dense(params.layer, h)
    if train:
        mean, var = batch_moments(h, mask)
    else:
        mean, var = params.running_mean, params.running_var
    return leaky_relu(normalise(h, mean, var, params.scale, params.offset))


class Official(NamedTuple):
    """The authors' model after the embedding. `fields` has one block a field."""

    query: Layer
    key: Layer
    value: Layer
    fields: Sequence[Block]
    inner: Block
    weight: Block
    bias: Block
    gate: Sequence[Block]
    shared: Array
    head: Sequence[Block]
    output: Layer


def official(
    p: Official, x: Array, u: Array, mask: Array, train: bool, part: str = "d3"
) -> tuple[Array, Array, Array]:
    """Logits [B], attention logits [B N N], gate [B 2]; d1 has neither gate nor shared weights."""
    logits = attention_logits(p.query, p.key, x)
    chosen = selected_official(logits, x, p.value)
    h = np.concatenate(
        [block(q, chosen[:, j], mask, train) for j, q in enumerate(p.fields)], axis=1
    )
    r = h + block(p.inner, h, mask, train)
    flat = block(p.weight, r, mask, train)
    kernels = flat.reshape(len(x), u.shape[1], -1)
    biases = block(p.bias, r, mask, train)
    gates = np.full((len(x), 2), np.nan)
    if part != "d1":
        v = x.reshape(len(x), -1)
        for q in p.gate:
            v = block(q, v, mask, train)
        gates = softmax(v)
        kernels = fuse(gates, kernels, p.shared, "multiplicative")
    a = layer(u, kernels, biases, identity)
    for q in p.head:
        a = block(q, a, mask, train)
    return dense(p.output, a)[:, 0], logits, gates


def scenario_batch_norm(
    h: Array,
    scenario: Array,
    mask: Array,
    running_mean: Array,
    running_var: Array,
    momentum: float = 0.9,
) -> tuple[Array, Array, Array]:
    """Training form of a batch norm with its own moments a scenario, before scale and offset.

    Returns the normalised rows and the new running mean and variance. A scenario with fewer than
    two rows keeps its running statistics and is normalised by them.
    """
    out, new_mean, new_var = np.zeros_like(h), running_mean.copy(), running_var.copy()
    for s in range(len(running_mean)):
        rows = h[mask & (scenario == s)]
        mean, var = running_mean[s], running_var[s]
        if len(rows) >= 2:
            mean, var = rows.mean(axis=0), rows.var(axis=0)
            new_mean[s] = momentum * running_mean[s] + (1 - momentum) * mean
            new_var[s] = momentum * running_var[s] + (1 - momentum) * var
        here = scenario == s
        out[here] = (h[here] - mean) / np.sqrt(var + 1e-5)
    return out, new_mean, new_var


def towers(
    hidden: Sequence[Sequence[Layer]], output: Sequence[Layer], u: Array, scenario: Array
) -> Array:
    """Logits [B]: each row through the tower of its own scenario (both arguments by scenario)."""
    rows = []
    for row, s in zip(u, scenario, strict=True):
        rows.append(dense(output[s], mlp(hidden[s], row))[0])
    return np.array(rows)


def d3_parameter_count(
    fields: int,
    width: int,
    hidden: int,
    inputs: int,
    outputs: int,
    gate_hidden: Sequence[int] = (64, 16),
) -> int:
    """Numbers in one D3 head of the default form, by its parts in the order of the forward pass."""
    m = fields * hidden
    attention = 2 * width * width
    generator = fields * (width * hidden + hidden) + (m * m + m)
    generated = (m * inputs * outputs + inputs * outputs) + (m * outputs + outputs)
    sizes = [fields * width, *gate_hidden, 2]
    gates = sum(a * b + b for a, b in itertools.pairwise(sizes))
    shared = inputs * outputs + outputs
    return attention + generator + generated + gates + shared + (outputs + 1)


def numeric_gradient(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Central differences, one entry at a time."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient
