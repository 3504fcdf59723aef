"""The fields that divide the rows are found where they were planted, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from d3jax.batch import EMPTY, Field, Schema
from d3jax.config import Config
from d3jax.configure import configure, settled, settled_for_run
from d3jax.data.columns import Rows
from d3jax.data.prepared import open_prepared
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.division import (
    MOST_PAIRED,
    VARIANCES,
    Column,
    additive,
    divisions,
    evidence,
    field_columns,
)
from d3jax.domains import AUTO
from d3jax.errors import ConfigError, TrainingError
from d3jax.presets import PRESETS

WORLDS = [(), ("device",), ("age", "device"), ("scenario", "device")]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("domain", WORLDS)
def test_planted_domains_are_found_and_the_fields_that_act_differently(
    domain: tuple[str, ...], seed: int
) -> None:
    data = synthetic(SyntheticConfig(120_000, seed, domain=domain))
    best, second, *_ = divisions(data.schema, data.rows["train"])
    assert best.fields == domain
    assert best.evidence > second.evidence + 100
    if not domain:
        planted = {
            field.name
            for field, marks in zip(data.schema.fields, data.sensitive.T, strict=True)
            if marks[:2].any()  # The smallest scenario has some hundred rows.
        }
        assert {name for name, nats in best.acting.items() if nats > 5} == planted


@pytest.mark.parametrize("seed", range(5))
def test_where_all_domains_are_alike_there_is_no_evidence(seed: int) -> None:
    data = synthetic(SyntheticConfig(60_000, seed, sensitivity=0.0))
    found = divisions(data.schema, data.rows["train"])
    assert found[0].fields == ()
    assert max(one.evidence for one in found) < 10


def test_labels_of_one_kind_say_nothing() -> None:
    data = synthetic(SyntheticConfig(4_000))
    rows = data.rows["train"]
    alike = Rows(rows.ids, rows.scenario, np.ones_like(rows.label))
    assert divisions(data.schema, alike) == [((), 0.0, {})]


def test_the_additive_model_is_the_one_of_most_probability() -> None:
    """Its gradient, with the prior's, is zero in every weight of every field."""
    rng = np.random.default_rng(0)
    columns = [
        Column(rng.integers(0, 4, (500, 1)), np.ones((500, 1)), 4),
        Column(rng.integers(0, 3, (500, 2)), np.full((500, 2), 0.5), 3),
    ]
    label = (rng.random(500) < 0.3).astype(float)
    error = label - additive(label, columns)
    for column in columns:
        sums = np.bincount(
            column.ids.ravel(), (error[:, None] * column.shares).ravel(), minlength=column.size
        )
        # The prior pulls each weight to zero by itself: what is left of the slope is the weight.
        assert np.abs(sums).max() < 1.0


def test_evidence_is_the_likelihood_ratio_of_normal_effects() -> None:
    """Against numerical integration over each cell's effect, margins being zero by symmetry."""
    slope, curve = 6.0, 9.0
    rows = 400
    domain = np.repeat([0, 0, 1, 1], rows // 4)
    value = np.tile(np.repeat([0, 1], rows // 4), 2)
    sign = np.where(domain == value, 1.0, -1.0)
    error, spread = sign * slope / (rows // 4), np.full(rows, curve / (rows // 4))
    column = Column(value[:, None], np.ones((rows, 1)), 2)

    def gain(variance: float) -> float:
        ratio, _ = quad(
            lambda d: np.exp(slope * d - curve * d**2 / 2) * norm.pdf(d, scale=variance**0.5),
            -20,
            20,
            points=[slope / curve],
        )
        return 4 * np.log(ratio)

    assert evidence(domain, column, error, spread) == pytest.approx(max(map(gain, VARIANCES)))


def test_cells_that_no_row_has_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthetic(SyntheticConfig(5_000, sensitivity=3.0))
    dense = divisions(data.schema, data.rows["train"])
    monkeypatch.setattr("d3jax.division.DENSE_CELLS", 0)
    sparse = divisions(data.schema, data.rows["train"])
    assert [one.fields for one in sparse] == [one.fields for one in dense]
    np.testing.assert_allclose(
        [one.evidence for one in sparse], [one.evidence for one in dense], rtol=1e-9, atol=1e-9
    )


def test_an_empty_slot_has_no_share() -> None:
    schema = Schema((Field("tags", 5, slots=3), Field("city", 4)), ("only",))
    ids = np.array([[2, 4, EMPTY, 1], [EMPTY, EMPTY, EMPTY, EMPTY]], np.int32)
    columns = field_columns(schema, ids)
    np.testing.assert_array_equal(columns["tags"].shares, [[0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_array_equal(columns["tags"].ids, [[2, 4, 0], [0, 0, 0]])
    np.testing.assert_array_equal(columns["city"].shares, [[1], [0]])


def test_auto_is_settled_by_the_rows_and_only_where_a_model_divides_them(tmp_path) -> None:
    write(synthetic(SyntheticConfig(60_000, domain=("device",))), tmp_path / "devices")
    prepared = open_prepared(tmp_path / "devices")
    assert PRESETS["best"].model.domain == AUTO
    assert settled(PRESETS["best"], prepared).model.domain == ("device",)
    model = dataclasses.replace(PRESETS["best"].model, wide="none")
    assert settled(PRESETS["best"].changed(model=model), prepared).model.domain == ()
    assert settled(Config(), prepared) == Config()


def made(fields: dict[str, int], act: tuple[str, str], rows: int = 4_000) -> tuple[Schema, Rows]:
    """Rows of fields with so many values, two of which act on each other and nothing else does."""
    rng = np.random.default_rng(3)
    ids = np.stack([rng.integers(1, 1 + size, rows) for size in fields.values()], 1)
    effect = rng.normal(size=[1 + fields[name] for name in act])
    first, second = (ids[:, list(fields).index(name)] for name in act)
    click = rng.random(rows) < 1 / (1 + np.exp(-2 * effect[first, second]))
    schema = Schema(tuple(Field(name, 1 + size) for name, size in fields.items()), ("a", "b"))
    scenario = rng.integers(0, 2, rows).astype(np.int32)
    return schema, Rows(ids.astype(np.int32), scenario, click.astype(np.float32))


@pytest.mark.parametrize("order", [("device", "tab"), ("tab", "device")])
def test_of_two_fields_that_act_on_each_other_the_one_of_fewer_values_divides(
    order: tuple[str, ...],
) -> None:
    """Their cells, and thus their evidence, are the same but for rounding."""
    sizes = {"device": 3, "tab": 9}
    schema, rows = made({name: sizes[name] for name in order}, ("device", "tab"))
    assert divisions(schema, rows)[0].fields == ("device",)


def test_of_many_fields_those_with_most_evidence_are_paired() -> None:
    fields = {f"noise {n}": 2 for n in range(MOST_PAIRED + 3)} | {"device": 3, "tab": 4}
    found = divisions(*made(fields, ("device", "tab")))
    pairs = [one.fields for one in found if len(one.fields) == 2]
    assert len(pairs) == MOST_PAIRED * (MOST_PAIRED - 1) // 2
    assert ("device", "tab") in pairs
    assert len([one for one in found if len(one.fields) == 1]) == len(fields)


def test_domains_that_are_named_and_divide_nothing_are_refused(tmp_path, monkeypatch) -> None:
    write(synthetic(SyntheticConfig(3_000)), tmp_path / "clicks")
    prepared = open_prepared(tmp_path / "clicks")
    monkeypatch.setattr("d3jax.configure.is_split_at_random", lambda _: False)
    config = configure("best", domain=["device"])
    message = (
        r"^--domain device divides nothing: rows that were not split at random get no terms by "
        r"--wide auto, and shared_bottom divides none itself; use --wide crosses or residual, or "
        r"leave it out$"
    )
    with pytest.raises(ConfigError, match=message):
        settled_for_run(config, prepared)
    assert settled(config, prepared).model.domain == ()
    for other in ({"wide": "residual"}, {"backbone": "mmoe", "head": "own"}):
        chosen = configure("best", domain=["device"], **other)
        assert settled_for_run(chosen, prepared).model.domain == ("device",)
    assert settled_for_run(configure("best"), prepared).model.domain == ()


def test_validation_rows_of_one_class_are_refused_before_a_run_is_made(tmp_path) -> None:
    data = synthetic(SyntheticConfig(3_000))
    rows = data.rows["validation"]
    slot = rows.scenario == 2
    alike = rows._replace(label=np.where(slot, np.float32(1), rows.label))
    write(data._replace(rows={**data.rows, "validation": alike}), tmp_path / "clicks")
    prepared = open_prepared(tmp_path / "clicks")
    settled_for_run(configure("best"), prepared)
    message = (
        r"^auc isn't defined on the validation rows of 'slot', which hold one class only; use "
        r"--monitor logloss, or more validation rows$"
    )
    with pytest.raises(TrainingError, match=message):
        settled_for_run(configure("best", monitor_scenario="slot"), prepared)
