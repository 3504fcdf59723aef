"""`predict` gives the model's probabilities of raw rows, or refuses and leaves no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from d3jax.cli import main
from d3jax.data.loader import evaluation_batches
from d3jax.data.prepared import open_prepared
from d3jax.evaluate import evaluate_split, load_best
from d3jax.run import open_run

pytestmark = pytest.mark.trains

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def raw(prepared: Path) -> pa.Table:
    """The raw values behind the test rows; one that training never saw where the id is 0."""
    opened = open_prepared(prepared)
    ids = np.asarray(opened.rows("test").ids)
    values = {
        field.name: np.array(["never seen", *opened.vocabulary(field.name)["value"].to_pylist()])
        for field in opened.schema.fields
    }
    return pa.table({name: values[name][ids[:, i]] for i, name in enumerate(values)})


@pytest.fixture(scope="module")
def expected(trained: Path, prepared: Path) -> np.ndarray:
    """[R] the best weights' probabilities of the encoded test rows, by the training code."""
    loaded = load_best(open_run(trained))
    rows = open_prepared(prepared).rows("test")
    logits = [
        np.asarray(
            loaded.trainer.score_step(loaded.state.params, loaded.state.model_state, batch).logits
        )[batch.mask]
        for batch in evaluation_batches(rows, batch_size=8)
    ]
    return 1 / (1 + np.exp(-np.concatenate(logits).astype(np.float64)))


@pytest.fixture
def rows(raw: pa.Table, tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    pa.csv.write_csv(raw, path)
    return path


def refusal(arguments: list[str], capsys: Said) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["predict", *arguments])
    return capsys.readouterr().err


@pytest.mark.parametrize("given", ["csv", "parquet"])
@pytest.mark.parametrize("wanted", ["csv", "parquet"])
def test_probabilities_are_the_models_in_the_order_of_the_rows(
    given: str,
    wanted: str,
    trained: Path,
    raw: pa.Table,
    expected: np.ndarray,
    tmp_path: Path,
    capsys: Said,
) -> None:
    rows, out = tmp_path / f"rows.{given}", tmp_path / f"out.{wanted}"
    (pa.csv.write_csv if given == "csv" else pq.write_table)(raw, rows)
    main(["predict", str(trained), str(rows), "--out", str(out)])
    table = pa.csv.read_csv(out) if wanted == "csv" else pq.read_table(out)
    assert table.column_names == ["scenario", "probability"]
    assert table["scenario"].to_pylist() == raw["scenario"].to_pylist()
    np.testing.assert_allclose(table["probability"].to_numpy(), expected, rtol=2e-5)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        f"600 rows scored; written to {out} unknown or missing values: user 0.2%"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([rows.name, out.name])


def test_their_auc_is_the_one_of_the_evaluation(
    trained: Path, prepared: Path, rows: Path, tmp_path: Path
) -> None:
    main(["predict", str(trained), str(rows), "--out", str(tmp_path / "out.parquet")])
    probability = pq.read_table(tmp_path / "out.parquet")["probability"].to_numpy()
    loaded = load_best(open_run(trained))
    metrics = evaluate_split(
        loaded.trainer, loaded.state, open_prepared(prepared), "test", 256
    ).metrics
    label, scenario = (np.load(prepared / f"test/{name}.npy") for name in ("label", "scenario"))
    # Rounding a probability may tie a pair of rows.
    assert metrics.overall.auc == pytest.approx(roc_auc_score(label, probability), abs=1e-4)
    home = scenario == 0
    assert metrics.scenarios["home"].auc == pytest.approx(
        roc_auc_score(label[home], probability[home]), abs=1e-4
    )


def test_without_out_they_go_to_standard_output(
    trained: Path, rows: Path, expected: np.ndarray, capfd: Said
) -> None:
    main(["predict", str(trained), str(rows)])
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == '"scenario","probability"'
    assert len(lines) == 601
    probabilities = [float(line.rpartition(",")[2]) for line in lines[1:]]
    np.testing.assert_allclose(probabilities, expected, rtol=2e-5)
    assert captured.err.startswith("600 rows scored\nunknown or missing values: user 0.2%")


def test_an_exported_model_predicts_as_its_run(
    trained: Path, rows: Path, expected: np.ndarray, tmp_path: Path, capfd: Said
) -> None:
    main(["export", str(trained), str(tmp_path / "model")])
    capfd.readouterr()
    main(["predict", str(tmp_path / "model"), str(rows)])
    captured = capfd.readouterr()
    probabilities = [float(line.rpartition(",")[2]) for line in captured.out.splitlines()[1:]]
    np.testing.assert_allclose(probabilities, expected, rtol=2e-5)
    assert captured.err.startswith("600 rows scored\nunknown or missing values: user 0.2%")


def test_a_folder_that_holds_no_model_is_refused(rows: Path, tmp_path: Path, capsys: Said) -> None:
    assert "is neither a run nor an exported model" in refusal([str(tmp_path), str(rows)], capsys)


def test_a_row_of_values_never_seen_is_scored(
    trained: Path, raw: pa.Table, tmp_path: Path, capfd: Said
) -> None:
    row = {name: ["never seen"] for name in raw.column_names} | {"scenario": ["detail"]}
    pa.csv.write_csv(pa.table(row), tmp_path / "rows.csv")
    main(["predict", str(trained), str(tmp_path / "rows.csv")])
    scenario, probability = capfd.readouterr().out.splitlines()[1].split(",")
    assert scenario == '"detail"'
    assert 0 < float(probability) < 1


def test_a_file_without_rows_gives_one_without(
    trained: Path, raw: pa.Table, tmp_path: Path, capsys: Said
) -> None:
    pq.write_table(raw.slice(0, 0), tmp_path / "rows.parquet")
    out = tmp_path / "out.parquet"
    main(["predict", str(trained), str(tmp_path / "rows.parquet"), "--out", str(out)])
    assert pq.read_table(out).num_rows == 0
    assert "0 rows scored" in capsys.readouterr().err


def test_an_unknown_scenario_is_refused_late_and_leaves_no_file(
    trained: Path, raw: pa.Table, tmp_path: Path, capsys: Said
) -> None:
    names = raw["scenario"].to_pylist()
    names[411] = "drawer"
    changed = raw.set_column(0, "scenario", pa.array(names))
    pq.write_table(changed, tmp_path / "rows.parquet", row_group_size=100)
    out = tmp_path / "out.csv"
    out.write_text("an older result")
    said = refusal([str(trained), str(tmp_path / "rows.parquet"), "--out", str(out)], capsys)
    assert "file rows.parquet, row 412: scenario 'drawer' belongs to no scenario" in said
    assert "known are detail, home, slot" in said
    assert out.read_text() == "an older result"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.parquet", "out.csv"}


def test_a_missing_column_is_named(
    trained: Path, raw: pa.Table, tmp_path: Path, capsys: Said
) -> None:
    pa.csv.write_csv(raw.drop_columns(["city"]), tmp_path / "rows.csv")
    arguments = [str(trained), str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv")]
    said = refusal(arguments, capsys)
    assert "file rows.csv has no column 'city'; it has scenario, user, item" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("rows.json", "out.csv", "rows.json does not tell what separates its columns"),
        ("no.csv", "out.csv", "no.csv is missing; give a file or a directory"),
        ("rows.csv", "out.xlsx", "out.xlsx is neither .csv nor .parquet; name the output"),
        ("rows.csv", "rows.csv", "rows.csv is the same file as"),
        ("rows.csv", "rows.json/out.csv", "rows.json/out.csv"),
    ],
)
def test_files_that_cannot_be_read_or_written_are_refused(
    given: str, wanted: str, message: str, trained: Path, rows: Path, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "rows.json").write_text("{}")
    arguments = [str(trained), str(tmp_path / given), "--out", str(tmp_path / wanted)]
    assert message in refusal(arguments, capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "rows.json"}
