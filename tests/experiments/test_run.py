"""A run directory holds what a run was started with, and guards it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from d3jax.config import Config, TrainConfig
from d3jax.errors import CheckpointError, OutputError
from d3jax.owned import exclusive
from data_pipelines.columns import open_prepared
from experiments.run import check_run_free, create_run, fresh_directory, open_run


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
    with pytest.raises(CheckpointError, match=r"config.json has version 99; this d3jax reads 2"):
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
