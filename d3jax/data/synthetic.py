"""Made-up click rows with planted domains and a known best AUC: the embedded default data.

Three scenarios of very unequal size share most effects of ten categorical fields on the click.
In each scenario a few fields of its own, the domain-sensitive ones, act in another way: these
are what attention should select and what a model with one set of weights can't fit. The domains
may also be the values of other fields, which a model is not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.special import expit

from d3jax.batch import Field, Schema
from d3jax.data.checksums import write_checksums
from d3jax.data.columns import Rows, write_rows
from d3jax.data.encoder import unknown_rows
from d3jax.data.prepared import building, write_schema
from d3jax.data.vocabularies import write_vocabulary
from d3jax.domains import joined
from d3jax.errors import ConfigError


class Effect(NamedTuple):
    """A field's spread of values (popularity of rank r ~ r^-skew) and its weight in the logit."""

    num_values: int
    skew: float
    strength: float


class Scenario(NamedTuple):
    """A planted domain; `weight` is its share of the rows that the smallest leaves over."""

    weight: float
    click_rate: float
    sensitive: tuple[str, ...]


SCENARIOS = {
    "home": Scenario(0.70, 0.12, ("hour", "category", "city")),
    "detail": Scenario(0.30, 0.20, ("age", "price", "brand")),
    "slot": Scenario(0.00, 0.30, ("age", "device")),
}
"""The last is the smallest; `SyntheticConfig.smallest_share` is its share."""

CATEGORICAL = {
    "age": Effect(8, 0.3, 0.25),
    "city": Effect(30, 0.5, 0.25),
    "hour": Effect(24, 0.3, 0.25),
    "device": Effect(5, 0.5, 0.25),
    "category": Effect(20, 0.5, 0.25),
    "brand": Effect(50, 0.5, 0.25),
    "price": Effect(10, 0.3, 0.25),
}

DOMAIN_SENSITIVE = 3
"""The number of fields that act in another way in a domain that is no scenario."""

ID_SKEW = 1.1
ID_STRENGTH = 0.4
SPECIFIC_STRENGTH = 0.5
"""The deviation, at sensitivity 1, of what a sensitive field adds in its scenario."""

DOMAINS = ("scenario", *CATEGORICAL)
"""The fields whose values may be the domains."""

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
LATE_PERIOD = 40
"""Every 40th user and item appears in the test rows only."""


@dataclass(frozen=True)
class SyntheticConfig:
    """The size and difficulty of the made-up data; raises `ConfigError` outside the ranges.

    `sensitivity` scales the effects that belong to one scenario (0: every scenario is alike);
    `smallest_share` is the smallest scenario's share of the rows. `domain` names the fields whose
    values decide which other fields act differently; by default the scenarios do.
    """

    rows: int = 400_000
    seed: int = 0
    sensitivity: float = 1.0
    smallest_share: float = 0.008
    users: int = 1_000
    items: int = 600
    domain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _in_range("rows", self.rows, 1_000, 100_000_000)
        _in_range("seed", self.seed, 0, 2**63 - 1)
        _in_range("sensitivity", self.sensitivity, 0.0, 10.0)
        _in_range("smallest_share", self.smallest_share, 0.001, 0.2)
        _in_range("users", self.users, LATE_PERIOD, 1_000_000)
        _in_range("items", self.items, LATE_PERIOD, 1_000_000)
        if unknown := [name for name in self.domain if name not in DOMAINS]:
            raise ConfigError(
                f"synthetic.domain is {unknown[0]!r}; it must be among {', '.join(DOMAINS)}"
            )
        if self.rows * self.smallest_share < 20:
            raise ConfigError(
                f"synthetic.smallest_share {self.smallest_share} of {self.rows} rows is fewer "
                "than 20; raise smallest_share or rows"
            )


class SyntheticData(NamedTuple):
    """The rows by split, and the truth they were drawn from.

    `best` holds each row's true click probability [R] float64, whose AUC no model can beat but
    by luck; `sensitive` [S N] marks the fields that act differently in a scenario;
    `vocabulary` holds each field's table of value, id and count, as a prepared directory does.
    """

    schema: Schema
    rows: dict[str, Rows]
    best: dict[str, np.ndarray]
    sensitive: np.ndarray
    vocabulary: dict[str, pa.Table]


def synthetic(config: SyntheticConfig | None = None) -> SyntheticData:
    """Draws rows, true click probabilities and labels, and encodes them as prepared data is.

    The same config gives the same arrays; `None` is the default config.
    """
    config = config or SyntheticConfig()
    rng = np.random.default_rng(config.seed)
    bounds = np.round(np.cumsum([0.0, *SPLITS.values()]) * config.rows).astype(int)
    spans = {split: slice(*bounds[at : at + 2]) for at, split in enumerate(SPLITS)}
    effects = _effects(config)
    codes = _draw_codes(rng, config, effects, test_start=int(bounds[-2]))
    best = expit(_true_logits(rng, config, effects, codes))
    label = (rng.random(config.rows) < best).astype(np.float32)
    encoded = {name: _encode(code, spans["train"]) for name, code in codes.items()}
    ids = np.stack([column for column, _ in encoded.values()], axis=1)
    scenario = codes["scenario"].astype(np.int32)
    return SyntheticData(
        schema=_schema({name: order.size + 1 for name, (_, order) in encoded.items()}),
        rows={split: Rows(ids[at], scenario[at], label[at]) for split, at in spans.items()},
        best={split: best[at] for split, at in spans.items()},
        sensitive=_sensitive(list(codes), 0.0 if config.domain else config.sensitivity),
        vocabulary={
            name: _vocabulary(name, order, codes[name][spans["train"]])
            for name, (_, order) in encoded.items()
        },
    )


def write(
    data: SyntheticData, directory: Path, overwrite: bool = False, kind: str = "prepared"
) -> None:
    """Writes `data` as a prepared directory, the true probabilities beside each split's rows.

    `kind` is what its marker says. Raises `OutputError` when `directory` exists and `overwrite` is
    false, or it is not of that kind.
    """
    with building(directory, overwrite, kind) as path:
        for split, rows in data.rows.items():
            write_rows(path, split, len(rows.label), data.schema.num_slots, [rows])
            np.save(path / split / "truth.npy", data.best[split])
        for field, table in data.vocabulary.items():
            write_vocabulary(path, field, table)
        write_schema(path, data.schema, _provenance(data))
        write_checksums(path)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(
            f"synthetic.{name} is {value}; it must be between {low} and {high}, both included"
        )


def _effects(config: SyntheticConfig) -> dict[str, Effect]:
    """The fields after the scenario, in column order."""
    return {
        "user": Effect(config.users, ID_SKEW, ID_STRENGTH),
        "item": Effect(config.items, ID_SKEW, ID_STRENGTH),
        **CATEGORICAL,
    }


def _shares(smallest: float) -> np.ndarray:
    """[S] the scenarios' shares of the rows."""
    weights = np.array([scenario.weight for scenario in SCENARIOS.values()])
    shares = weights * (1 - smallest)
    shares[-1] = smallest
    return shares


def _draw_codes(
    rng: np.random.Generator, config: SyntheticConfig, effects: dict[str, Effect], test_start: int
) -> dict[str, np.ndarray]:
    """Each field's raw value codes [R]; a late user or item gives way to its more popular
    neighbour in rows before `test_start`."""
    codes = {"scenario": _draw(rng, _shares(config.smallest_share), config.rows)}
    for name, effect in effects.items():
        popularity = np.arange(1, effect.num_values + 1) ** -effect.skew
        codes[name] = _draw(rng, popularity / popularity.sum(), config.rows)
    for name in ("user", "item"):
        early = codes[name][:test_start]
        early[early % LATE_PERIOD == LATE_PERIOD - 1] -= 1
    return codes


def _draw(rng: np.random.Generator, shares: np.ndarray, count: int) -> np.ndarray:
    """[count] codes by inverse transform, several times faster than `rng.choice`."""
    edges = np.cumsum(shares)[:-1]
    return np.searchsorted(edges, rng.random(count), side="right")


def _true_logits(
    rng: np.random.Generator,
    config: SyntheticConfig,
    effects: dict[str, Effect],
    codes: dict[str, np.ndarray],
) -> np.ndarray:
    """[R] the sum of what all scenarios share and what one scenario's sensitive fields add,
    shifted within each scenario to its click rate."""
    logits = np.zeros(config.rows)
    for name, effect in effects.items():
        logits += _value_effects(rng, effect)[codes[name]]
    for here, sensitive in _domains(rng, config.domain, effects, codes):
        for name in sensitive:
            specific = rng.normal(size=effects[name].num_values) * SPECIFIC_STRENGTH
            logits[here] += config.sensitivity * specific[codes[name][here]]
    for index, scenario in enumerate(SCENARIOS.values()):
        here = np.flatnonzero(codes["scenario"] == index)
        logits[here] += _bias(logits[here], scenario.click_rate)
    return logits


def _domains(
    rng: np.random.Generator,
    domain: tuple[str, ...],
    effects: dict[str, Effect],
    codes: dict[str, np.ndarray],
) -> Iterator[tuple[np.ndarray, Sequence[str]]]:
    """Yield the rows of each domain and the fields that act differently there: the scenarios and
    theirs, or each value of the fields in `domain` and some that are drawn at random."""
    if not domain:
        for index, scenario in enumerate(SCENARIOS.values()):
            yield np.flatnonzero(codes["scenario"] == index), scenario.sensitive
        return
    others = [name for name in CATEGORICAL if name not in domain]
    sizes = [len(SCENARIOS) if name == "scenario" else effects[name].num_values for name in domain]
    code = joined([codes[name] for name in domain], sizes)
    for number in range(prod(sizes)):
        sensitive = rng.choice(others, DOMAIN_SENSITIVE, replace=False)
        yield np.flatnonzero(code == number), sorted(map(str, sensitive))


def _value_effects(rng: np.random.Generator, effect: Effect) -> np.ndarray:
    """[values] normal effects that shrink where a value is too rare to be learnt from clicks."""
    rank = np.arange(effect.num_values)
    return rng.normal(size=effect.num_values) * effect.strength / np.sqrt(1 + rank / 100)


def _bias(logits: np.ndarray, click_rate: float) -> float:
    """Return what to add to `logits` so that their mean probability is `click_rate`."""
    return brentq(lambda bias: expit(logits + bias).mean() - click_rate, -50.0, 50.0)


def _encode(codes: np.ndarray, train: slice) -> tuple[np.ndarray, np.ndarray]:
    """(ids [R] int32, codes in the order of ids 1, 2, ...): most frequent in train first, ties
    by code; 0 where train never saw the code."""
    counts = np.bincount(codes[train], minlength=codes.max() + 1)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    table = np.zeros(counts.size, np.int32)
    table[order] = np.arange(1, order.size + 1)
    return table[codes], order


def _schema(sizes: dict[str, int]) -> Schema:
    return Schema(
        fields=tuple(Field(name, size) for name, size in sizes.items()),
        scenarios=tuple(SCENARIOS),
        scenario_field="scenario",
        user_field="user",
        item_field="item",
    )


def _sensitive(fields: list[str], sensitivity: float) -> np.ndarray:
    """[S N] True where the field has an effect of its own in the scenario."""
    marks = [[name in scenario.sensitive for name in fields] for scenario in SCENARIOS.values()]
    return np.array(marks) & (sensitivity > 0)


def _vocabulary(name: str, order: np.ndarray, train_codes: np.ndarray) -> pa.Table:
    """The field's values as text, most frequent first, with their ids and counts in train."""
    names = list(SCENARIOS)
    values = [names[code] if name == "scenario" else f"{name}_{code}" for code in order]
    counts = np.bincount(train_codes)[order]
    return pa.table({"value": values, "id": np.arange(1, order.size + 1), "count": counts})


def _provenance(data: SyntheticData) -> dict[str, object]:
    fields = np.array([field.name for field in data.schema.fields])
    planted = zip(data.schema.scenarios, data.sensitive, strict=True)
    ids = data.rows["train"].ids
    unknown = dict(zip(fields.tolist(), unknown_rows(data.schema, ids).tolist(), strict=True))
    return {
        "source": "synthetic",
        "unknown": unknown,
        "label_rule": "drawn from the true click probability in truth.npy",
        "split": SPLITS,
        "rows": {split: len(rows.label) for split, rows in data.rows.items()},
        "scenario": {"field": "scenario", "values": {name: name for name in SCENARIOS}},
        "separators": {},
        "planted": {scenario: fields[marks].tolist() for scenario, marks in planted},
    }
