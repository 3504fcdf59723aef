"""Train, open and ask a run from Python, as a notebook and a service do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import d3jax
from d3jax.data.checksums import write_checksums
from d3jax.data.loader import evaluation_batches
from d3jax.rows import SIZES
from d3jax.run import open_run

pytestmark = pytest.mark.trains

SETTINGS: dict[str, Any] = {
    "batch_size": 256,
    "epochs": 2,
    "log_every": 4,
    "patience": 0,
    "embedding_dim": 4,
    "embedding_dropout": 0.2,
    "bottom_layers": [8, 6],
    "field_hidden": 3,
    "d3": {"width": 5},
    "gate_layers": [6, 4],
}
"""The settings of the fixture `trained`, by name."""


@pytest.fixture(scope="module")
def run(trained: Path) -> d3jax.TrainedRun:
    found = d3jax.load(str(trained))
    assert isinstance(found, d3jax.TrainedRun)
    return found


@pytest.fixture(scope="module")
def exported(run: d3jax.TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> d3jax.Exported:
    found = d3jax.load(run.export(tmp_path_factory.mktemp("exported") / "model"))
    assert isinstance(found, d3jax.Exported)
    return found


@pytest.fixture(scope="module")
def raw(prepared: Path) -> pa.Table:
    """The raw values behind the 600 test rows; one that training never saw where the id is 0."""
    data = d3jax.open_prepared(prepared)
    ids = np.asarray(data.rows("test").ids)
    values = {
        field.name: np.array(["never seen", *data.vocabulary(field.name)["value"].to_pylist()])
        for field in data.schema.fields
    }
    return pa.table({name: values[name][ids[:, i]] for i, name in enumerate(values)})


@pytest.fixture(scope="module")
def scored(run: d3jax.TrainedRun, prepared: Path) -> list[Any]:
    """What the training code says of the encoded test rows, in batches of 600."""
    rows = d3jax.open_prepared(prepared).rows("test")
    return list(run.best.score(evaluation_batches(rows, batch_size=600)))


# Training.


def test_training_from_python_is_the_commands_run(
    trained: Path, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "d3jax")
    ours = d3jax.train(d3jax.open_prepared(prepared), str(tmp_path / "run"), **SETTINGS)
    theirs = open_run(trained)
    assert ours.config == theirs.config
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (ours.directory / name).read_text() == (trained / name).read_text()
    # Nobody watches, so the log is told and nothing is shown.
    assert "step 18: validation AUC" in caplog.text


def test_nothing_is_shown_where_nobody_watches(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    d3jax.train(open_run(trained).data, tmp_path / "run", config=open_run(trained).config)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.slow
def test_a_run_that_stopped_goes_on(trained: Path, prepared: Path, tmp_path: Path) -> None:
    """Its last checkpoint gone, it ends with the metrics that it had, and says where it began."""
    copy, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained, copy)
    shutil.copytree(prepared, moved)
    shutil.rmtree(copy / "checkpoints" / "18")
    (copy / "evaluation.json").unlink()
    run = d3jax.train(moved, copy, **SETTINGS)
    assert run.data == moved.resolve()
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (copy / name).read_text() == (trained / name).read_text()


def test_a_run_of_other_settings_is_refused(trained: Path, prepared: Path) -> None:
    with pytest.raises(
        d3jax.CheckpointError,
        match=r"run was trained with other settings or data \(config\.train\.epochs: 2 -> 3\); "
        "choose another place, or delete it$",
    ):
        d3jax.train(prepared, trained, **{**SETTINGS, "epochs": 3})


def test_a_run_of_other_rows_is_refused(trained: Path, prepared: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    np.save(other / "train/label.npy", 1 - np.load(other / "train/label.npy"))
    write_checksums(other)
    with pytest.raises(d3jax.CheckpointError, match=r"other settings or data \(data: other rows\)"):
        d3jax.train(other, trained, **SETTINGS)


def test_a_folder_of_others_is_left_alone(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        d3jax.OutputError, match=r"exists; it is no run; choose another place, or delete it$"
    ):
        d3jax.train(prepared, tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_thread_trains_too(trained: Path, tmp_path: Path) -> None:
    """A service may train in a thread, which may not touch signals."""
    shutil.copytree(trained, tmp_path / "run")
    known, done = open_run(trained), list[Path]()

    def work() -> None:
        done.append(d3jax.train(known.data, tmp_path / "run", config=known.config).directory)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [tmp_path / "run"]


@pytest.mark.slow
def test_ctrl_c_saves_and_raises(prepared: Path, tmp_path: Path) -> None:
    """A program that trains for long is interrupted, goes on, and keeps its own handlers."""
    script = (
        "import signal, sys, d3jax\n"
        f"settings = {SETTINGS!r} | dict(epochs=2000, batch_size=64, evaluate_every=2000.0)\n"
        "try:\n"
        "    d3jax.train(sys.argv[1], sys.argv[2], **settings)\n"
        "except KeyboardInterrupt as error:\n"
        "    print('interrupted:', error)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(d3jax.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(prepared), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (out / "metrics.jsonl").is_file():
        threading.Event().wait(0.1)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "interrupted: stopped after step" in told
    assert any((out / "checkpoints").iterdir())


# A run that is there.


def test_evaluating_gives_what_training_wrote(run: d3jax.TrainedRun, trained: Path) -> None:
    result = run.evaluate()
    assert result.overall.rows == 600
    written = json.loads((trained / "evaluation.json").read_text())
    assert d3jax.Evaluation.from_json(written) == d3jax.Evaluation(result.overall, result.scenarios)
    assert run.evaluate("validation").overall.rows == 300


def test_an_evaluation_prints_as_its_table(run: d3jax.TrainedRun) -> None:
    result = run.evaluate()
    lines = str(result).splitlines()
    assert lines[0] == f"{run.directory}: test rows, best weights"
    overall = next(line for line in lines if "overall" in line)
    assert f"{result.overall.auc:.4f}" in overall
    assert "best possible AUC" in str(result)


def test_evaluating_what_there_is_not(run: d3jax.TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(d3jax.DataError, match=r"^no split 'tets'; a prepared directory has train"):
        run.evaluate("tets")
    with pytest.raises(d3jax.DataError, match=r"schema\.json is missing"):
        run.evaluate(data=str(tmp_path))


def test_rows_come_in_every_form(
    run: d3jax.TrainedRun, raw: pa.Table, scored: list[Any], tmp_path: Path
) -> None:
    [(_, expected)] = scored
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in (0, 1):
        pq.write_table(raw.slice(300 * part, 300), folder / f"part-{part}.parquet")
    pa.csv.write_csv(raw, tmp_path / "rows.csv")
    forms = [raw, raw.to_pandas(), raw.to_pydict(), folder, str(tmp_path / "rows.csv")]
    answers = [run.predict(form) for form in forms]
    np.testing.assert_allclose(answers[0], 1 / (1 + np.exp(-expected.logits)), atol=1e-6)
    assert answers[0].dtype == np.float32
    assert answers[0].std() > 1e-4
    for answer in answers[1:3]:
        np.testing.assert_array_equal(answer, answers[0])
    for answer in answers[3:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-6)


def test_text_of_another_form(run: d3jax.TrainedRun, raw: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    options = pa.csv.WriteOptions(delimiter="|")
    pa.csv.write_csv(raw, path, options)
    with pytest.raises(d3jax.DataError, match="does not tell what separates its columns"):
        run.predict(path)
    answer = run.predict(path, d3jax.Format(separator="|"))
    np.testing.assert_array_equal(answer, run.predict(raw))


def test_few_programs_score_any_number_of_rows(run: d3jax.TrainedRun, raw: pa.Table) -> None:
    whole = run.predict(raw)
    for count in (1, 2, 15, 16, 17, 100, 600):
        answer = run.predict(raw.slice(0, count))
        np.testing.assert_allclose(answer, whole[:count], atol=1e-6)
    # Evaluation adds programs of its own sizes.
    assert run.best.trainer.score_step._cache_size() <= len(SIZES) + 2


def test_a_run_and_its_export_say_the_same(
    run: d3jax.TrainedRun, exported: d3jax.Exported, raw: pa.Table
) -> None:
    models: list[d3jax.Predictor] = [run, exported]
    answers = [model.predict(raw) for model in models]
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=2e-7)
    for field in ("scenario", "item"):
        mine, yours = run.embeddings(field), exported.embeddings(field)
        np.testing.assert_array_equal(mine.values, yours.values)
        np.testing.assert_array_equal(mine.vectors, yours.vectors)
    assert run.schema == exported.schema


def test_embeddings_are_the_tables_rows(run: d3jax.TrainedRun, prepared: Path) -> None:
    values, vectors = run.embeddings("item")
    known = d3jax.open_prepared(prepared).vocabulary("item")
    assert values.tolist() == [None, *known["value"].to_pylist()]
    schema, loaded = run.schema, run.best
    before = sum(field.size for field in schema.fields[: schema.index("item")])
    table = np.asarray(loaded.trainer.weights(loaded.state).embedding.table)
    np.testing.assert_array_equal(vectors, table[before : before + len(values)])
    with pytest.raises(d3jax.DataError, match=r"^no field 'itm' in the schema; it has \['scena"):
        run.embeddings("itm")


def test_inspected_rows_are_what_scoring_sees(
    run: d3jax.TrainedRun, raw: pa.Table, scored: list[Any]
) -> None:
    [(batch, expected)] = scored
    rows = run.inspect_rows(raw)
    assert rows.attention is not None
    assert rows.scenario.tolist() == [run.schema.scenarios[index] for index in batch.scenario]
    for name in ("logits", "attention", "gate", "weight"):
        np.testing.assert_allclose(getattr(rows, name), getattr(expected, name), atol=2e-6)
    np.testing.assert_allclose(rows.attention.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(rows.probability, run.predict(raw))


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_rows_that_cannot_be_scored(
    kind: str, raw: pa.Table, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: d3jax.Predictor = request.getfixturevalue(kind)
    with pytest.raises(
        d3jax.DataError, match=r"^the table has no rows to score; give at least one"
    ):
        model.predict(raw.slice(0, 0))
    path = tmp_path / "rows.parquet"
    pq.write_table(raw.slice(0, 0), path)
    with pytest.raises(d3jax.DataError, match=r"rows\.parquet has no rows to score; give at least"):
        model.predict(path)
    with pytest.raises(d3jax.DataError, match=r"^the table has no column 'city'; it has scenario"):
        model.predict(raw.drop_columns(["city"]))
    strange = {**raw.to_pydict(), "scenario": ["home"] * 599 + ["drawer"]}
    with pytest.raises(d3jax.DataError, match=r"^the table, row 600: scenario 'drawer' belongs to"):
        model.predict(strange)


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_unknown_values_are_warned_of_once(
    kind: str, trained: Path, raw: pa.Table, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = trained if kind == "run" else request.getfixturevalue("exported").directory
    model = d3jax.load(folder)
    strange = {**raw.to_pydict(), "user": [f"new {n}" for n in range(600)]}
    with pytest.warns(UserWarning, match=r"^field 'user': 100.0% of the rows have no"):
        model.predict(strange)
    model.predict(strange)  # and warnings are errors here
    assert "user 100.0%" in model.unknown.report()
    assert model.unknown.total == 1200


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(
        d3jax.CheckpointError,
        match=r"is neither a run nor an exported model: it holds neither config\.json nor program",
    ):
        d3jax.load(tmp_path)


def test_a_damaged_checkpoint_is_told_to_the_log(
    trained: Path, tmp_path: Path, raw: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for path in (copy / "checkpoints" / "18").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    model = d3jax.load(copy)
    model.predict(raw)
    said = [record for record in caplog.records if record.name == "d3jax"]
    assert said[0].levelname == "WARNING"
    assert "damaged:" in caplog.text


@pytest.mark.slow
def test_nothing_above_is_imported(
    prepared: Path, trained: Path, raw: pa.Table, tmp_path: Path
) -> None:
    """Beside folders of the names that the other rooms have, which would be found first."""
    for room in ("experiments", "data_pipelines"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('mine')\n")
    pq.write_table(raw, tmp_path / "rows.parquet")
    shutil.copytree(trained, tmp_path / "run")
    script = (
        "import sys, d3jax\n"
        "[getattr(d3jax, name) for name in d3jax.__all__]\n"
        "old = d3jax.load('run')\n"
        f"run = d3jax.train({str(prepared)!r}, 'run', config=old.config)\n"
        "run.evaluate('test'); run.predict('rows.parquet'); run.embeddings('item')\n"
        "run.inspect_rows('rows.parquet')\n"
        "d3jax.load(run.export('model')).predict('rows.parquet')\n"
        "assert not {'experiments', 'data_pipelines'} & set(sys.modules)\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(d3jax.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
