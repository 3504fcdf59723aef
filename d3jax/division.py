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

from collections.abc import Mapping
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
MOST_PAIRED = 12
"""The most fields that are paired, those with most evidence: pairs grow as squares."""
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
    together. A way that is hardly better than the scenarios stands behind them, and behind a way
    that is as good with fewer domains.
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

    def division(fields: tuple[str, ...]) -> Division:
        code = scenario
        if fields:
            sizes = [columns[name].size for name in fields]
            code = joined([columns[name].ids[:, 0] for name in fields], sizes)
        acting = {
            name: evidence(code, column, error, spread)
            for name, column in columns.items()
            if name not in (fields or (schema.scenario_field,))
        }
        return Division(fields, sum(acting.values()), acting)

    few = _few_values(schema)
    alone = {name: division(() if _is_scenario(schema, name) else (name,)) for name in few}
    paired = sorted(few, key=lambda name: -alone[name].evidence)[:MOST_PAIRED]
    found = [
        division(()),
        *(one for one in alone.values() if one.fields),
        *(
            division(names)
            for names in combinations([name for name in few if name in paired], 2)
            if prod(few[name] for name in names) <= MOST_VALUES
        ),
    ]
    ahead = max(SURE, WORTH * len(label))
    ranked = sorted(found, key=lambda one: -one.evidence - (0.0 if one.fields else ahead))
    first = _fewest_domains(schema, ranked)
    return [first, *(one for one in ranked if one is not first)]


def _few_values(schema: Schema) -> dict[str, int]:
    """Return the fields of few values, one in a row, and the number of these."""
    return {
        field.name: field.size - 1
        for field in schema.fields
        if field.slots == 1 and 2 <= field.size - 1 <= MOST_VALUES
    }


def _is_scenario(schema: Schema, name: str) -> bool:
    """Return whether the values of a field are the scenarios."""
    size = schema.fields[schema.index(name)].size
    return name == schema.scenario_field and size - 1 == schema.num_scenarios


def _fewest_domains(schema: Schema, ranked: list[Division]) -> Division:
    """Return, of the ways that are as likely as the first, the one with fewest domains: what acts
    differently by device makes devices differ by it, with the same cells and the same evidence."""
    best = ranked[0]
    if not best.fields:
        return best
    sizes = {field.name: field.size for field in schema.fields}
    alike = [one for one in ranked if one.fields and one.evidence > best.evidence - SURE]
    return min(alike, key=lambda one: prod(sizes[name] for name in one.fields))


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
