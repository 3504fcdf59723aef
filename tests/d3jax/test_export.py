from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from d3jax.cli import main
from d3jax.data.prepared import load_encoder, open_prepared, read_schema
from d3jax.errors import DataError
from d3jax.export import PROGRAM, WEIGHTS, Exported, load_exported
from d3jax.run import open_run
from tests.flags import said

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    main(["export", str(trained), str(folder)])
    return folder


@pytest.fixture(scope="module")
def table(prepared: Path) -> pa.Table:
    """Forty rows in raw values, made of the vocabularies."""
    encoder, rng = load_encoder(open_prepared(prepared)), np.random.default_rng(0)
    columns = {code.name: rng.choice(code.values.to_pylist(), 40) for code in encoder.codes}
    return pa.table(columns)


def test_an_exported_model_says_what_the_run_does(
    exported: Path, trained: Path, table: pa.Table, tmp_path: Path
) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    pa.csv.write_csv(table, rows)
    main(["predict", str(trained), str(rows), "--out", str(out)])
    expected = pa.csv.read_csv(out)["probability"].to_numpy()
    ours = Exported(exported).predict(table)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert ours.std() > 1e-4
    np.testing.assert_allclose(Exported(exported).predict(table.slice(3, 1)), ours[3:4], atol=1e-6)


def test_the_folder_needs_neither_run_nor_checkout(
    exported: Path, table: pa.Table, tmp_path: Path
) -> None:
    """In another process, after moving, with nothing but the two files and `jax`."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported, moved)
    assert sorted(path.name for path in moved.iterdir()) == [
        ".d3jax",
        "checksums.json",
        PROGRAM,
        "schema.json",
        "vocabularies",
        WEIGHTS,
    ]
    encoder = load_encoder(read_schema(moved))
    [batch] = table.to_batches()
    ids, scenario = encoder.encode(batch)
    np.savez(tmp_path / "rows.npz", ids=ids, scenario=scenario)
    script = (
        "import sys, jax, numpy as np\n"
        "from jax import export\n"
        "folder, rows = sys.argv[1], np.load(sys.argv[2])\n"
        f"program = export.deserialize(bytearray(open(folder + '/{PROGRAM}', 'rb').read()))\n"
        f"weights = dict(np.load(folder + '/{WEIGHTS}'))\n"
        "np.save(sys.argv[3], program.call(weights, rows['ids'], rows['scenario']))\n"
        "assert not any(name.startswith('d3jax') for name in sys.modules)\n"
    )
    out = tmp_path / "scores.npy"
    subprocess.run(
        [sys.executable, "-c", script, str(moved), str(tmp_path / "rows.npz"), str(out)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        check=True,
    )
    np.testing.assert_allclose(np.load(out), Exported(exported).predict(table), rtol=0, atol=1e-6)


def test_ids_and_scenarios_out_of_range_are_refused(exported: Path, trained: Path) -> None:
    schema = open_run(trained).schema
    score = load_exported(exported, schema)
    ids = np.zeros((2, schema.num_slots), np.int32)
    ids[1, 0] = 10_000
    with pytest.raises(DataError, match=r"id 10000 in row 1 of the rows to score is outside \[0,"):
        score(ids, np.zeros(2, np.int32))
    with pytest.raises(DataError, match="scenario 9 in row 0 of the rows to score is unknown"):
        score(ids[:1], np.array([9], np.int32))
    with pytest.raises(DataError, match=r"^there are no rows to score; give at least one$"):
        score(ids[:0], np.zeros(0, np.int32))


def test_an_existing_folder_is_not_replaced(exported: Path, trained: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(trained), str(exported)])
    assert "exists; choose another folder, or remove it" in said(capsys)


@pytest.mark.parametrize("name", [PROGRAM, WEIGHTS])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_export_is_refused(
    exported: Path, trained: Path, tmp_path: Path, name: str, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(DataError, match=r"holds no exported model, or a damaged one \(.*\)"):
        load_exported(folder, open_run(trained).schema)
    with pytest.raises(DataError, match=rf"{name} (is missing|has changed: its SHA-256 is)"):
        Exported(folder)


def test_a_damaged_vocabulary_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    path = sorted((folder / "vocabularies").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} has changed: its SHA-256 is"):
        Exported(folder)


def as_frames(table: pa.Table) -> list[Any]:
    """The same rows in everything that a model scores."""
    batch = pa.RecordBatch.from_pylist(table.to_pylist(), table.schema)
    return [table, batch, table.to_pydict(), table.to_pandas()]


def test_rows_come_as_tables_frames_and_dicts(exported: Path, table: pa.Table) -> None:
    model = Exported(exported)
    expected = model.predict(table)
    for rows in as_frames(table):
        np.testing.assert_array_equal(model.predict(rows), expected)


def test_rows_that_cannot_be_scored(exported: Path, table: pa.Table) -> None:
    model = Exported(exported)
    for rows in as_frames(table.slice(0, 0)):
        with pytest.raises(DataError, match="the table has no rows to score; give at least one"):
            model.predict(rows)
    for rows in as_frames(table.drop_columns(["city"])):
        with pytest.raises(
            DataError, match="the table has no column 'city'; it has scenario, user"
        ):
            model.predict(rows)
    with pytest.raises(DataError, match=r"the table is a list; give a data frame, an Arrow table"):
        model.predict([1, 2])
    with pytest.raises(
        DataError, match=r"the table has columns of unequal length: \{'scenario': 4"
    ):
        model.predict({**table.to_pydict(), "city": ["x"]})


def test_values_that_training_never_saw_are_warned_of_once(exported: Path, table: pa.Table) -> None:
    model = Exported(exported)
    strange = {**table.to_pydict(), "user": [f"new {n}" for n in range(40)]}
    model.predict(strange)
    model.predict(strange)
    with pytest.warns(UserWarning, match=r"field 'user': 100.0% of the rows have no"):
        model.predict(strange)
    model.predict(strange)  # and warnings are errors here
    assert model.unknown.report() == "unknown or missing values: user 100.0%"
