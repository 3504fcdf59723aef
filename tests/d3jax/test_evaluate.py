"""`evaluate` shows what an independent computation gives, as a table and as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from d3jax.batch import Batch
from d3jax.cli import main
from d3jax.data.prepared import open_prepared, write_schema
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.data.vocabularies import write_vocabulary
from d3jax.evaluate import (
    adding_attention,
    evaluate_split,
    load_best,
    mean_attention,
    planted_fields,
)
from d3jax.run import open_run
from d3jax.training.step import Scored

pytestmark = pytest.mark.trains

Shown = pytest.CaptureFixture[str]
KEYS = {
    "rows",
    "click_rate",
    "auc",
    "auc_interval",
    "gauc",
    "logloss",
    "constant_logloss",
    "pcoc",
    "ece",
    "gate",
    "weight",
}


@pytest.fixture
def one_class(prepared: Path, tmp_path: Path) -> Path:
    """The prepared rows, but nobody clicks on a test row of the slot, which is scenario 2."""
    other = tmp_path / "one-class"
    shutil.copytree(prepared, other)
    label, scenario = np.load(other / "test/label.npy"), np.load(other / "test/scenario.npy")
    np.save(other / "test/label.npy", np.where(scenario == 2, 0, label).astype(label.dtype))
    return other


def shown_json(arguments: list[str], capsys: Shown) -> dict[str, dict]:
    main(["evaluate", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_json_is_what_training_wrote_and_counts_the_rows(
    trained: Path, prepared: Path, capsys: Shown
) -> None:
    shown = shown_json([str(trained)], capsys)
    assert set(shown.pop("unknown")) == {field.name for field in open_run(trained).schema.fields}
    assert shown == json.loads((trained / "evaluation.json").read_text())
    assert shown.keys() == {"overall", "scenarios"}
    assert list(shown["scenarios"]) == ["home", "detail", "slot"]
    assert all(group.keys() == KEYS for group in (shown["overall"], *shown["scenarios"].values()))
    scenario, label = (np.load(prepared / f"test/{name}.npy") for name in ("scenario", "label"))
    assert shown["overall"]["rows"] == len(label) == 600
    for index, group in enumerate(shown["scenarios"].values()):
        assert group["rows"] == (scenario == index).sum()
        assert group["click_rate"] == pytest.approx(label[scenario == index].mean())


def test_a_scenario_of_one_class_has_no_auc(trained: Path, one_class: Path, capsys: Shown) -> None:
    shown = shown_json([str(trained), "--data", str(one_class)], capsys)
    slot = shown["scenarios"]["slot"]
    assert (slot["auc"], slot["click_rate"], slot["constant_logloss"]) == (None, 0.0, 0.0)
    assert slot["logloss"] > 0
    assert shown["overall"]["auc"] is not None
    main(["evaluate", str(trained), "--data", str(one_class)])
    cells = next(line for line in capsys.readouterr().out.splitlines() if "slot" in line)
    assert cells.split("│")[4].strip() == "-"


def test_the_split_decides_the_rows(trained: Path, capsys: Shown) -> None:
    rows = {
        split: shown_json([str(trained), "--split", split], capsys)["overall"]["rows"]
        for split in ("train", "validation", "test")
    }
    assert rows == {"train": 2100, "validation": 300, "test": 600}


def test_the_best_possible_auc_is_that_of_the_planted_truth(trained: Path, prepared: Path) -> None:
    loaded = load_best(open_run(trained))
    result = evaluate_split(loaded.trainer, loaded.state, open_prepared(prepared), "test", 256)
    truth, label = (np.load(prepared / f"test/{name}.npy") for name in ("truth", "label"))
    assert result.best is not None
    assert result.best.overall.auc == pytest.approx(roc_auc_score(label, truth))
    assert result.best.overall.logloss == pytest.approx(log_loss(label, truth), rel=1e-5)


def test_the_batch_size_changes_no_metric(trained: Path, prepared: Path) -> None:
    loaded = load_best(open_run(trained))
    few, many = (
        evaluate_split(loaded.trainer, loaded.state, open_prepared(prepared), "validation", size)
        for size in (64, 256)
    )
    assert few.metrics.overall.rows == many.metrics.overall.rows == 300
    assert few.metrics.overall.logloss == pytest.approx(many.metrics.overall.logloss, rel=1e-6)
    np.testing.assert_allclose(few.attention, many.attention, rtol=1e-5)


def test_best_weights_are_those_of_the_best_validation_logloss(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    key = "validation/overall/logloss"
    best = min((line for line in lines if key in line), key=lambda line: line[key])
    assert load_best(open_run(trained)).step == best["step"]


def test_best_weights_are_not_the_newest(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    run = open_run(tmp_path / "run")
    best = load_best(run)
    worse = best.state._replace(params=jax.tree.map(jnp.zeros_like, best.state.params))
    checkpoints = run.checkpoints(writer=False)
    checkpoints.save(19, worse, {"step": 19, "best_step": best.step})
    checkpoints.close()
    loaded = load_best(run)
    assert loaded.step == best.step < 19
    jax.tree.map(np.testing.assert_array_equal, loaded.state.params, best.state.params)


def test_evaluating_a_run_that_trains_leaves_its_save_under_way_alone(
    trained: Path, tmp_path: Path, capsys: Shown
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    unfinished = run / "checkpoints" / "19.orbax-checkpoint-tmp"
    unfinished.mkdir()
    shown_json([str(run)], capsys)
    assert unfinished.exists()


def refusal(run: Path, data: Path, capsys: Shown) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["evaluate", str(run), "--data", str(data)])
    return capsys.readouterr().err


def test_data_with_other_vocabulary_sizes_is_refused_naming_the_fields(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    other = tmp_path / "other"
    write(synthetic(SyntheticConfig(rows=1000, users=40, items=40, smallest_share=0.05)), other)
    ours, theirs = (open_prepared(path).schema.fields[1].size for path in (prepared, other))
    assert ours != theirs
    said = refusal(trained, other, capsys)
    assert f"{other} encodes rows in another way than the data of the run {trained}: " in said
    assert f"field 'user' has {theirs - 1} values instead of {ours - 1}" in said
    assert "Give the data that it was trained on, or the raw rows to d3jax predict" in said


def test_data_of_equal_sizes_and_other_ids_are_refused(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    """As another seed of the split gives them."""
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    known = open_prepared(other)
    table = known.vocabulary("user")
    turned = table.set_column(0, "value", table["value"].combine_chunks()[::-1])
    write_vocabulary(other, "user", turned)
    write_schema(other, known.schema, known.provenance)
    assert "field 'user' gives its values other ids" in refusal(trained, other, capsys)
    write_vocabulary(other, "user", table)
    write_schema(other, known.schema, {**known.provenance, "label_rule": "rating<3"})
    said = refusal(trained, other, capsys)
    assert "the rule for the scenario or the label is another" in said


def test_ids_beyond_the_vocabulary_are_refused(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    ids = np.load(other / "test/ids.npy")
    ids[7, 1] = 2_000_000_000
    np.save(other / "test/ids.npy", ids)
    assert "field 'user': id 2000000000 in row 7 of" in refusal(trained, other, capsys)


def test_unknown_values_are_told_by_field_and_warned_of(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    ids = np.load(other / "test/ids.npy")
    ids[:300, 1] = 0
    np.save(other / "test/ids.npy", ids)
    main(["evaluate", str(trained), "--data", str(other)])
    said = " ".join(capsys.readouterr().err.split())
    assert "unknown or missing values: user 50." in said
    assert "warning: field 'user': 50." in said
    assert "written as in the training data?" in said


def test_data_with_other_scenarios_is_refused(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    content = json.loads((other / "schema.json").read_text())
    content["schema"]["scenarios"][2] = "drawer"
    (other / "schema.json").write_text(json.dumps(content))
    said = refusal(trained, other, capsys)
    assert "scenarios is ('home', 'detail', 'drawer') instead of ('home', 'detail', 'slot')" in said


def test_mean_attention_averages_within_scenarios() -> None:
    pieces = [
        (scored_batch([0, 1]), Scored(np.zeros(2), np.array([[0.2, 0.8], [0.5, 0.5]]), None)),
        (scored_batch([0]), Scored(np.zeros(1), np.array([[0.6, 0.4]]), None)),
    ]
    received = np.zeros((3, 2))
    assert list(adding_attention(received, pieces)) == pieces
    np.testing.assert_allclose(received, [[0.8, 1.2], [0.5, 0.5], [0.0, 0.0]])
    mean = mean_attention(received, np.array([0, 1, 0]))
    np.testing.assert_allclose(mean, [[0.4, 0.6], [0.5, 0.5], [np.nan, np.nan]])


def test_a_model_without_attention_has_no_mean_of_it() -> None:
    received = np.zeros((2, 3))
    list(adding_attention(received, [(scored_batch([0, 1]), Scored(np.zeros(2), None, None))]))
    assert mean_attention(received, np.array([0, 1])) is None


def scored_batch(scenario: list[int]) -> Batch:
    rows = len(scenario)
    return Batch(
        ids=np.zeros((rows, 2), np.int32),
        scenario=np.array(scenario, np.int32),
        label=np.zeros(rows, np.float32),
        mask=np.ones(rows, bool),
    )


def test_planted_fields_are_those_of_the_provenance(prepared: Path) -> None:
    planted = planted_fields(open_prepared(prepared))
    names = [field.name for field in open_prepared(prepared).schema.fields]
    assert planted is not None
    assert {names[i] for i in np.flatnonzero(planted[2])} == {"age", "device"}
