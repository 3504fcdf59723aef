"""The division of rows into domains by fields, found in the evidence of the training rows.

Multi-domain models take for granted that the scenarios are the domains. D3 asks which fields of a
row are sensitive to its domain; this asks the question before it: in whose values do the other
fields act differently? An additive logistic model is fitted first, so that what a field does
everywhere is out of the way. What then remains in the cells of a domain and a value is either
noise or an effect δ ~ N(0, τ²) of that cell; the logarithm of the ratio of the two likelihoods,
in Laplace's approximation and at the best τ, is the evidence that the field acts differently
(an empirical Bayes factor: Kass and Raftery, "Bayes Factors", JASA 1995). It punishes a finer
division where a coarser one explains as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d3jax.batch import EMPTY, Schema
from d3jax.data.columns import Rows
from d3jax.domains import joined

MOST_VALUES = 64
"""A field, or two together, of more values than these are no candidates."""
MOST_ROWS = 300_000
"""The most rows that are asked; of more, evenly spaced ones are."""
SWEEPS = 5
"""Passes over the fields until the additive model stands."""
PRIOR = 1.0
"""The precision of the additive model's weights."""
VARIANCES = 4.0 ** np.arange(-7, 2)
"""The τ² that are tried."""
SURE = 10.0
WORTH = 1e-3
"""Other fields than the scenario must have this much more evidence: nats in all, so that it is no
chance, and nats a row, so that it is worth leaving the scenarios."""
DENSE_CELLS = 1 << 22
"""The most cells that are all counted; of more, those that have rows are."""


class Division(NamedTuple):
    """A way to divide the rows: fields (none: the scenarios), the evidence in nats that others act
    differently in its domains, and what each of them adds to that."""

    fields: tuple[str, ...]
    evidence: float
    acting: Mapping[str, float]


class Column(NamedTuple):
    """A field's ids of each row, the share of each in the row, and the number of ids."""

    ids: Int[np.ndarray, "R K"]
    shares: Float[np.ndarray, "R K"]
    size: int


def divisions(schema: Schema, rows: Rows) -> list[Division]:
    """Return all ways to divide these rows that are considered, the one with most evidence first.

    Considered are the scenarios, each field of at most 64 values, and each two of at most 64
    together. A way that is hardly better than the scenarios stands behind them.
    """
    step = -(-len(rows.label) // MOST_ROWS)
    ids, scenario = np.asarray(rows.ids[::step]), np.asarray(rows.scenario[::step])
    label = np.asarray(rows.label[::step], np.float64)
    if not 0 < label.mean() < 1:
        return [Division((), 0.0, {})]
    columns = field_columns(schema, ids)
    own = Column(scenario[:, None], np.ones((len(label), 1)), schema.num_scenarios)
    probability = additive(label, [*columns.values(), own])
    error, spread = label - probability, probability * (1 - probability)
    found = []
    for fields, code in candidates(schema, columns, scenario):
        acting = {
            name: evidence(code, column, error, spread)
            for name, column in columns.items()
            if name not in (fields or (schema.scenario_field,))
        }
        found.append(Division(fields, sum(acting.values()), acting))
    ahead = max(SURE, WORTH * len(label))
    return sorted(found, key=lambda one: -one.evidence - (0.0 if one.fields else ahead))


def candidates(
    schema: Schema, columns: Mapping[str, Column], scenario: Int[np.ndarray, " R"]
) -> Iterator[tuple[tuple[str, ...], Int[np.ndarray, " R"]]]:
    """Yield the fields of each way to divide, and each row's domain in it."""
    yield (), scenario
    few = {
        field.name: field.size - 1
        for field in schema.fields
        if field.slots == 1 and 2 <= field.size - 1 <= MOST_VALUES
    }
    for name, values in few.items():
        if name != schema.scenario_field or values != schema.num_scenarios:
            yield (name,), columns[name].ids[:, 0]
    for names in combinations(few, 2):
        if prod(few[name] for name in names) <= MOST_VALUES:
            sizes = [columns[name].size for name in names]
            yield names, joined([columns[name].ids[:, 0] for name in names], sizes)


def field_columns(schema: Schema, ids: Int[np.ndarray, "R K"]) -> dict[str, Column]:
    """Return each field's ids, an empty slot as the unknown value with a share of 0."""
    found = {}
    for number, field in enumerate(schema.fields):
        own = ids[:, schema.slot_field == number]
        used = own != EMPTY
        shares = used / np.maximum(used.sum(1, keepdims=True), 1)
        found[field.name] = Column(np.where(used, own, 0), shares, field.size)
    return found


def additive(label: Float[np.ndarray, " R"], columns: list[Column]) -> Float[np.ndarray, " R"]:
    """Return the probabilities of a logistic model with a weight for each value of each field,
    fitted field by field with Newton's steps."""
    rate = label.mean()
    logits = np.full(len(label), np.log(rate / (1 - rate)))
    weights = [np.zeros(column.size) for column in columns]
    for _ in range(SWEEPS):
        for weight, column in zip(weights, columns, strict=True):
            probability = 1 / (1 + np.exp(-logits))
            error = (label - probability)[:, None] * column.shares
            spread = (probability * (1 - probability))[:, None] * column.shares**2
            gradient = _sums(column.ids, error, column.size) - PRIOR * weight
            step = gradient / (_sums(column.ids, spread, column.size) + PRIOR)
            weight += step
            logits += (step[column.ids] * column.shares).sum(1)
    return 1 / (1 + np.exp(-logits))


def evidence(
    domain: Int[np.ndarray, " R"],
    column: Column,
    error: Float[np.ndarray, " R"],
    spread: Float[np.ndarray, " R"],
) -> float:
    """Return by how many nats effects of domain and value are likelier than none, at least 0.

    `error` [R] is label minus the additive model's probability p, `spread` p (1 - p).
    """
    cells = domain[:, None].astype(np.int64) * column.size + column.ids
    count = (int(domain.max()) + 1) * column.size
    if count > DENSE_CELLS:
        kept, cells = np.unique(cells, return_inverse=True)
        cells, count = cells.reshape(column.ids.shape), len(kept)
    else:
        kept = np.arange(count)
    slope = _sums(cells, error[:, None] * column.shares, count)
    curve = _sums(cells, spread[:, None] * column.shares**2, count)
    slope = _without_margin(slope, curve, kept // column.size)
    slope = _without_margin(slope, curve, kept % column.size)
    real = curve > 0
    slope, curve = slope[real, None], curve[real, None]
    gains = slope**2 * VARIANCES / (1 + VARIANCES * curve) - np.log1p(VARIANCES * curve)
    return max(0.0, float(gains.sum(0).max()) / 2)


def _sums(places: np.ndarray, values: np.ndarray, size: int) -> Float[np.ndarray, " C"]:
    return np.bincount(places.reshape(-1), values.reshape(-1), minlength=size)


def _without_margin(
    slope: Float[np.ndarray, " C"], curve: Float[np.ndarray, " C"], group: Int[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """Return the slopes without what all cells of a group have in common."""
    total = np.bincount(group, curve)
    common = np.bincount(group, slope) / np.where(total > 0, total, 1)
    return slope - curve * common[group]
