"""The study of planted domains counts what it says it counts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d3jax.config import Config, ModelConfig, TrainConfig
from d3jax.data.prepared import open_prepared
from d3jax.evaluate import best_possible
from d3jax.heads import D3Options
from experiments.evidence.planted import Study, command, main, precision, settings, three_methods

TINY = Config(
    model=ModelConfig(embedding_dim=4, bottom_layers=(8,), tower_layers=(4,)),
    d3=D3Options(field_hidden=2, width=4, gate_layers=(4,)),
    train=TrainConfig(batch_size=1024, epochs=1),
)


def test_precision_is_the_share_of_planted_fields_at_the_top() -> None:
    planted = np.array([True, False, True, False, True])
    everything = range(5)
    assert precision(np.array([9.0, 1, 8, 2, 7]), planted, everything) == (1.0, 0.6)
    assert precision(np.array([9.0, 8, 1, 7, 2]), planted, everything)[0] == pytest.approx(1 / 3)
    # Without the first field two are planted among four.
    assert precision(np.array([0.0, 9, 8, 1, 2]), planted, range(1, 5)) == (0.5, 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_ties_count_as_chance_would_have_them(seed: int) -> None:
    """The mean over many random orders of the fields that tie."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, 7).astype(float)
    planted = rng.random(7) < 0.5
    planted[0] = True
    count = planted.sum()
    orders = scores + rng.random((20_000, 7)) * 0.5
    top = np.argsort(-orders, axis=1)[:, :count]
    expected = planted[top].mean()
    assert precision(scores, planted, range(7))[0] == pytest.approx(expected, abs=0.01)


def test_the_settings_vary_one_thing_at_a_time() -> None:
    found = list(settings(Study(sensitivities=(0.0, 2.0), shares=(0.05,), rows=9000)))
    data = [(one.data.sensitivity, one.data.smallest_share) for one in found]
    assert data == [(0.0, 0.008), (2.0, 0.008), (1.0, 0.05)]
    assert [(one.varied, one.value) for one in found] == [
        ("sensitivity", 0.0),
        ("sensitivity", 2.0),
        ("smallest share", 0.05),
    ]
    assert {one.data.rows for one in found} == {9000}


def test_d3_is_tested_against_its_backbone() -> None:
    table = three_methods("star")
    assert [(m.name, m.base) for m in table.methods] == [
        ("MLP", None),
        ("STAR", None),
        ("STAR + D3", "STAR"),
    ]


def test_the_command_says_what_is_measured() -> None:
    study = Study(sensitivities=(0.0, 2.0), shares=(), rows=9000, seeds=2, out=Path("there"))
    assert command(study) == (
        "python -m experiments.evidence.planted --sensitivities 0.0 2.0 --shares --rows 9000 "
        "--on shared_bottom --seeds 2"
    )


@pytest.mark.slow
def test_the_study_writes_a_table_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(
        sensitivities=(0.0, 2.0), shares=(), rows=9_000, seeds=1, out=tmp_path, settings=TINY
    )
    main(study)
    text = (tmp_path / "planted.md").read_text()
    rows = list(csv.DictReader((tmp_path / "planted.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 4
    # Without sensitivity nothing is planted that attention could find.
    assert not any(row["precision"] for row in rows if row["value"] == "0.0")
    assert "nan" not in text
    rows = [row for row in rows if row["value"] == "2.0"]
    truth = best_possible(open_prepared(tmp_path / "sensitivity-2/data"), "test")
    assert truth is not None
    for row in rows:
        assert float(row["best"]) == pytest.approx(truth.groups[row["group"]].auc)
        seen = row["method"] == "Shared-Bottom + D3" and row["group"] != "overall"
        assert bool(row["precision"]) == seen
    assert {row["chance"] for row in rows if row["group"] == "slot" and row["chance"]} == {
        str(2 / 9)
    }
    assert "| sensitivity | 2 | best possible |" in text
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"planted-gain.png", "planted-gain-mlp.png"}
    capsys.readouterr()
    main(replace(study))
    assert "3 cells, 3 of them finished already" in " ".join(capsys.readouterr().err.split())
