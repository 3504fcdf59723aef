"""What `inspect` draws is what the run's weights say, computed here a second way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from d3jax.base import EVALUATION
from d3jax.cli import main
from d3jax.data.loader import evaluation_batches
from d3jax.data.prepared import open_prepared
from d3jax.evaluate import load_best
from d3jax.parts import build_model
from d3jax.pictures.charts import Curve
from d3jax.run import open_run
from d3jax.training.metrics import evaluate_scores
from experiments.pictures.inspection import Observed, figures, observe, read_curves


@pytest.fixture(scope="module")
def observed(trained: Path, prepared: Path) -> Observed:
    run = open_run(trained)
    return observe(run, load_best(run), open_prepared(prepared), "test")


@pytest.mark.slow
def test_every_picture_is_drawn_twice(trained: Path, tmp_path: Path) -> None:
    main(["inspect", str(trained), "--out", str(tmp_path / "new")])
    over_training = ("gates-over-training", "loss-weights-over-training")
    names = ("attention", "calibration", "gates", "learning-curves", "loss-weights", *over_training)
    drawn = sorted(path.name for path in (tmp_path / "new").glob("[!.]*"))
    assert drawn == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    svg = (tmp_path / "new/calibration.svg").read_text()
    assert "http" not in svg.split("<defs>", 1)[1].replace("http://www.w3.org", "")


@pytest.mark.slow
def test_rows_are_seen_once_in_order(observed: Observed, prepared: Path) -> None:
    rows = open_prepared(prepared).rows("test")
    np.testing.assert_array_equal(observed.scores.label, rows.label)
    np.testing.assert_array_equal(observed.scores.scenario, rows.scenario)
    np.testing.assert_array_equal(observed.scores.user, rows.ids[:, 1])
    assert open_prepared(prepared).schema.user_slot == 1


@pytest.mark.slow
def test_weights_are_complexity_times_specificity_within_a_batch(
    observed: Observed, trained: Path, prepared: Path
) -> None:
    run = open_run(trained)
    loaded = load_best(run)
    kept = jax.device_get((loaded.state.params, loaded.state.model_state))
    params, state = jax.tree.map(jax.numpy.asarray, kept)
    first = next(iter(evaluation_batches(open_prepared(prepared).rows("test"), batch_size=256)))
    output, _ = build_model(run.schema, run.config).apply(params, state, first, EVALUATION)
    logits = np.asarray(output.attention, np.float64)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(share * np.log(share)).sum(-1).mean(-1)
    normal = np.clip((entropy - entropy.mean()) / (2 * entropy.std()) + 0.5, 0.1, 1.0)
    gate = np.asarray(output.gate, np.float64)
    assert observed.weight is not None
    assert observed.scores.gate is not None
    expected = (0.5 + normal) * (0.5 + gate[:, 0])
    np.testing.assert_allclose(observed.weight[:256], expected, rtol=2e-3)
    np.testing.assert_allclose(observed.scores.gate[:256], gate[:, 0], rtol=1e-4)


def test_no_text_of_a_picture_is_cut_off(observed: Observed, trained: Path) -> None:
    run = open_run(trained)
    evaluation = evaluate_scores(observed.scores, run.schema.scenarios)
    drawn = dict(figures(run, 14, observed, evaluation, "test"))
    assert len(drawn) == 6
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).draw()
        texts, seen = [*figure.texts], figure.bbox.padded(1)
        for axes in figure.axes:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for text in texts:
            box = text.get_window_extent()
            inside = seen.contains(box.x0, box.y0) and seen.contains(box.x1, box.y1)
            assert inside or not text.get_text(), f"{name}: {text.get_text()!r}"


def test_curves_are_the_journals(trained: Path) -> None:
    training, curves = read_curves(open_run(trained))
    logloss, auc = curves["logloss"], curves["auc"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    key = "validation/slot/auc"
    expected = [(line["step"], line[key]) for line in lines if key in line]
    assert auc["slot"] == Curve(*map(list, zip(*expected, strict=True)))
    assert list(logloss) == ["home", "detail", "slot", "overall"]
    assert training.steps == [4, 8, 12, 16, 18]


def test_gate_and_weight_over_training_end_where_the_run_does(
    trained: Path, prepared: Path
) -> None:
    """Of the evaluation whose weights were kept: the means of what `inspect` sees in the rows."""
    run = open_run(trained)
    loaded = load_best(run)
    observed = observe(run, loaded, open_prepared(prepared), "validation")
    _, curves = read_curves(run)
    assert observed.scores.gate is not None
    assert observed.weight is not None
    for name, values in (("gate", observed.scores.gate), ("weight", observed.weight)):
        assert list(curves[name]) == ["home", "detail", "slot", "overall"]
        for index, group in enumerate(("home", "detail", "slot")):
            curve = curves[name][group]
            found = dict(zip(curve.steps, curve.values, strict=True))[loaded.step]
            mine = values[observed.scores.scenario == index]
            assert found == pytest.approx(mine.mean(dtype=np.float64), rel=1e-4)


@pytest.mark.parametrize(("start", "drawn"), [(0.0, True), (0.5, True), (1.0, False)])
def test_weights_that_were_never_applied_are_not_drawn(
    observed: Observed, trained: Path, start: float, drawn: bool
) -> None:
    """The run has 18 steps; its best weights are taken to be those of step 10."""
    run = open_run(trained)
    balance = dataclasses.replace(run.config.balance, start_ratio=start)
    run = dataclasses.replace(run, config=run.config.changed(balance=balance))
    evaluation = evaluate_scores(observed.scores, run.schema.scenarios)
    names = {name for name, _ in figures(run, 10, observed, evaluation, "test")}
    assert ("loss-weights" in names) == drawn
    assert ("loss-weights-over-training" in names) == drawn
    early = {name for name, _ in figures(run, 9, observed, evaluation, "test")}
    assert ("loss-weights" in early) == (start == 0.0)
