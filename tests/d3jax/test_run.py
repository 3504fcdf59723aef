"""A run directory holds what a run was started with, and guards it."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from d3jax.config import Config, TrainConfig
from d3jax.data.checksums import write_checksums
from d3jax.data.prepared import Prepared, open_prepared
from d3jax.errors import CheckpointError, DataError, OutputError
from d3jax.owned import exclusive
from d3jax.run import check_run_free, create_run, fresh_directory, open_run
from data_pipelines.prepare import prepare
from data_pipelines.raw.engine import duckdb_engine
from data_pipelines.source import PrepareConfig
from data_pipelines.sources.table import TableConfig, read_table

pytestmark = pytest.mark.trains


def test_a_run_opens_as_it_was_created(prepared: Path, tmp_path: Path) -> None:
    config = Config(train=TrainConfig(seed=3, epochs=4))
    created = create_run(tmp_path / "a" / "run", config, open_prepared(prepared), overwrite=False)
    opened = open_run(tmp_path / "a" / "run")
    assert opened.config == config
    assert opened.schema == open_prepared(prepared).schema
    assert opened.identity == created.identity
    assert opened.prepared().directory == prepared.resolve()
    ages = open_prepared(prepared).vocabulary("age")
    assert opened.described.vocabulary("age").equals(ages)


def test_overwriting_leaves_nothing_of_the_old_run(prepared: Path, tmp_path: Path) -> None:
    data = open_prepared(prepared)
    run = create_run(tmp_path / "run", Config(), data, overwrite=False)
    run.path("checkpoints", "7", "array").write_text("old")
    create_run(tmp_path / "run", Config(), data, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".d3jax",
        "config.json",
        "schema.json",
        "vocabularies",
    ]


def test_an_empty_directory_is_free_and_a_file_is_not(tmp_path: Path) -> None:
    check_run_free(tmp_path, overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file exists; go on with it by --resume"):
        check_run_free(tmp_path / "file", overwrite=False)
    with pytest.raises(OutputError, match="file is no run that d3jax made, so it is not replaced"):
        check_run_free(tmp_path / "file", overwrite=True)


def test_a_place_that_cannot_be_made_is_named(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write .*file/run \(File exists\); make it"):
        create_run(tmp_path / "file" / "run", Config(), open_prepared(prepared), overwrite=False)


def test_a_run_of_another_version_is_refused(prepared: Path, tmp_path: Path) -> None:
    create_run(tmp_path / "run", Config(), open_prepared(prepared), overwrite=False)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_version": 99}))
    told = r"config.json has version 99; this d3jax reads 4; train again \(d3jax train /"
    with pytest.raises(CheckpointError, match=told):
        open_run(tmp_path / "run")


def test_json_is_replaced_as_a_whole(prepared: Path, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", Config(), open_prepared(prepared), overwrite=False)
    run.write_json("result.json", {"auc": None})
    with pytest.raises(ValueError, match="Out of range float"):
        run.write_json("result.json", {"auc": float("nan")})
    assert json.loads((run.directory / "result.json").read_text()) == {"auc": None}
    assert not list(run.directory.glob("*.tmp"))


def test_fresh_directories_are_numbered(tmp_path: Path) -> None:
    assert fresh_directory(tmp_path, "ml").name == "ml"
    for name in ("ml", "ml-2"):
        (tmp_path / name).mkdir()
    assert fresh_directory(tmp_path, "ml").name == "ml-3"


def test_the_lock_names_its_holder_and_ends_with_it(prepared: Path, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", Config(), open_prepared(prepared), overwrite=False)
    held = rf"process {os.getpid()} is training .*/run already; wait for it, or stop it"
    place = run.directory
    with exclusive(place), pytest.raises(OutputError, match=held), exclusive(place):
        pytest.fail("two hold the lock")
    with exclusive(place):
        assert (run.directory / "lock").read_text() == str(os.getpid())


def prepared_with(folder: Path, seed: int = 0, rating: int = 3) -> Path:
    """Forty made-up ratings of ten items; the seed moves rows, the label rule turns clicks."""
    draw = random.Random(0)
    lines = [f"{n % 10},{draw.choice('ab')},{draw.randrange(1, 6)}" for n in range(400)]
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("\n".join(["item,tab,rating", *lines]))
    config = TableConfig(label=f"rating>{rating}", scenario="tab", fields=("item",))
    rows = read_table(duckdb_engine(folder, threads=1), folder / "log.csv", folder, config)
    return prepare(rows, folder / "out", PrepareConfig(seed=seed), overwrite=True).directory


def test_a_run_knows_its_data_again_where_they_have_moved(tmp_path: Path) -> None:
    data = prepared_with(tmp_path / "data")
    create_run(tmp_path / "run", Config(), open_prepared(data), overwrite=False)
    run = open_run(tmp_path / "run")
    assert run.training_data().directory == data
    shutil.move(data, tmp_path / "moved")
    message = (
        "data/out, the data of the run .*, is not there; if it has moved, name its place by --d"
    )
    with pytest.raises(DataError, match=message):
        run.training_data()
    assert run.training_data(tmp_path / "moved").directory == tmp_path / "moved"
    # Raw files of another name give the same rows.
    assert run.training_data(prepared_with(tmp_path / "again")).fingerprint == run.fingerprint


@pytest.mark.parametrize("changed", [{"seed": 1}, {"rating": 2}])
def test_a_run_refuses_data_that_were_prepared_again(
    changed: dict[str, int], tmp_path: Path
) -> None:
    data = prepared_with(tmp_path / "data")
    create_run(tmp_path / "run", Config(), open_prepared(data), overwrite=False)
    run = open_run(tmp_path / "run")
    prepared_with(tmp_path / "data", **changed)
    message = (
        "encodes rows in another way than the data of the run .*: (field .item. gives|the rule)"
    )
    with pytest.raises(DataError, match=message):
        run.training_data()
    with pytest.raises(DataError, match=message):
        run.prepared(data)


def test_other_rows_with_the_same_ids_are_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    data = prepared_with(tmp_path / "data")
    create_run(tmp_path / "run", Config(), open_prepared(data), overwrite=False)
    run = open_run(tmp_path / "run")
    label = np.load(data / "train" / "label.npy")
    np.save(data / "train" / "label.npy", 1 - label)
    write_checksums(data)
    assert run.prepared(data).directory == data
    for refused in (run.prepared, run.training_data, lambda: run.training_data(data)):
        with pytest.raises(DataError, match=r"holds other rows than when the run .* was made: it"):
            refused()


@pytest.mark.slow
def test_rows_of_the_same_files_in_another_split_are_doubted(tmp_path: Path) -> None:
    """With hashed fields another split has the same ids, and training rows among its test rows."""

    def hashed(name: str, seed: int, rows: int = 400) -> Prepared:
        folder = tmp_path / name
        folder.mkdir()
        lines = [f"{n % 10},{'ab'[n % 2]},{n % 3 % 2}" for n in range(rows)]
        (folder / "log.csv").write_text("\n".join(["item,tab,click", *lines]))
        config = TableConfig(label="click", scenario="tab", hash=("item=50", "tab=9"))
        rows_read = read_table(duckdb_engine(folder, threads=1), folder / "log.csv", folder, config)
        return prepare(rows_read, folder / "out", PrepareConfig(seed=seed))

    own = hashed("own", 0)
    create_run(tmp_path / "run", Config(), own, overwrite=False)
    run = open_run(tmp_path / "run")
    assert run.doubt(own) is None
    told = run.doubt(run.prepared(hashed("again", 1).directory))
    assert told is not None
    assert "was prepared from files of the run's own data (log.csv) and is split in anoth" in told
    assert run.doubt(run.prepared(hashed("other", 1, 440).directory)) is None
