"""Seeds trained side by side are the runs that each gives alone."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import d3jax.seeds
from d3jax.cli import main, parse
from d3jax.console.terminal import Console
from d3jax.data.prepared import open_prepared
from d3jax.errors import CheckpointError, ConfigError
from d3jax.evaluate import load_best
from d3jax.parts import build_trainer
from d3jax.run import open_run
from d3jax.seeds import resume_seeds
from d3jax.training.sharding import make_mesh
from tests.flags import SMALL_PLAIN, said

pytestmark = pytest.mark.trains

FLAGS = ["--batch-size", "256", "--epochs", "4", "--patience", "1", "--learning-rate", "0.02"]
FLAGS += ["--log-every", "3"]


@pytest.fixture(scope="module")
def seeds(prepared: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "three"
    main(["train", str(prepared), "--seeds", "3", "--seed", "4", "--out", str(out), *FLAGS, *small])
    return out


@pytest.fixture(scope="module")
def alone(prepared: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    main(["train", str(prepared), "--seed", "5", "--out", str(out), *FLAGS, *small])
    return out


@pytest.mark.slow
def test_a_seed_among_others_is_the_run_it_gives_alone(seeds: Path, alone: Path) -> None:
    ours, theirs = (load_best(open_run(run)) for run in (seeds / "seed-5", alone))
    assert ours.step == theirs.step
    for a, b in zip(
        ours.state.params.network.bottom, theirs.state.params.network.bottom, strict=True
    ):
        np.testing.assert_allclose(a.kernel, b.kernel, rtol=0, atol=2e-5)
    found, expected = (
        json.loads((run / "evaluation.json").read_text()) for run in (seeds / "seed-5", alone)
    )
    assert found["overall"]["auc"] == pytest.approx(expected["overall"]["auc"], abs=1e-4)
    assert found["overall"]["logloss"] == pytest.approx(expected["overall"]["logloss"], abs=1e-5)


@pytest.mark.slow
def test_a_seed_keeps_a_journal_until_its_patience_runs_out(seeds: Path, alone: Path) -> None:
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (seeds / "seed-5", alone)
    )
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert {"train/loss"} < {name for line in ours for name in line}
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, abs=1e-4)


def bits_of(seeds: Path) -> dict[str, bytes]:
    """Every array of every checkpoint of every seed, the journals and the evaluations."""
    found = {}
    for name in ("seed-4", "seed-5", "seed-6"):
        run = open_run(seeds / name)
        with run.checkpoints(writer=False) as checkpoints:
            for step in checkpoints.steps():
                arrays = checkpoints.arrays(step)
                found |= {f"{name}/{step}/{k}": array.tobytes() for k, array in arrays.items()}
        for file in ("metrics.jsonl", "evaluation.json"):
            found[f"{name}/{file}"] = (seeds / name / file).read_bytes()
    return found


@pytest.mark.parametrize("stop", [2, 10, 20])
@pytest.mark.slow
def test_seeds_that_were_stopped_and_resumed_are_those_that_were_not(
    seeds: Path,
    prepared: Path,
    small: list[str],
    tmp_path: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "resumed"
    stopping = [lambda step: step == stop, lambda step: False]
    monkeypatch.setattr(d3jax.seeds, "telling_to_stop", lambda: nullcontext(stopping.pop(0)))
    flags = ["--seeds", "3", "--seed", "4", "--out", str(out), *FLAGS, *small]
    with pytest.raises(SystemExit):
        main(["train", str(prepared), *flags])
    assert not (out / "summary.json").exists()
    # A kill between two seeds' checkpoints leaves one behind the others.
    if stop == 20:
        run = open_run(out / "seed-6")
        shutil.rmtree(run.directory / "checkpoints" / "20")
    main(["train", "--resume", str(out)])
    ours, theirs = bits_of(out), bits_of(seeds)
    assert {name for name in theirs if ours.get(name) != theirs[name]} == set()
    assert (out / "summary.json").read_text() == (seeds / "summary.json").read_text()


def test_a_folder_of_seeds_refuses_what_one_program_cannot_do(seeds: Path) -> None:
    message = rf"^{re.escape(str(seeds))} holds seeds, which take no --debug or --distributed$"
    with pytest.raises(ConfigError, match=message):
        parse(["train", "--resume", str(seeds), "--debug"]).run(Console())


def test_a_folder_without_seeds_is_named(tmp_path: Path) -> None:
    message = rf"^{re.escape(str(tmp_path))} holds no seed; start them again with --overwrite$"
    with pytest.raises(CheckpointError, match=message):
        resume_seeds(tmp_path, Console())


def test_the_seeds_differ_and_their_table_is_their_mean(
    seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((seeds / "summary.json").read_text())
    assert list(summary) == ["seed-4", "seed-5", "seed-6"]
    values = [summary[name]["overall"]["auc"] for name in summary]
    assert len(set(values)) == 3
    for name in summary:
        main(["evaluate", str(seeds / name), "--json"])
        shown = json.loads(capsys.readouterr().out)
        assert shown["overall"]["auc"] == pytest.approx(summary[name]["overall"]["auc"], abs=1e-6)


def test_the_table_shows_mean_and_spread(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--batch-size", "1024", "--epochs", "1", "--backbone", "plain", "--head", "own"]
    out = tmp_path / "two"
    main(["train", str(prepared), "--seeds", "2", "--out", str(out), *flags, *SMALL_PLAIN])
    summary = json.loads((out / "summary.json").read_text())
    values = [each["overall"]["auc"] for each in summary.values()]
    expected = f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert re.search(rf"overall\s*│\s*{expected}", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(prepared), "--seeds", "2", "--out", str(out), *flags, *SMALL_PLAIN])
    assert "go on with it by --resume, choose another --out, or pass --overwrite" in said(capsys)


@pytest.mark.parametrize(
    "flags", [["--seeds", "0"], ["--seeds", "2", "--debug"], ["--seeds", "2", "--resume", "run"]]
)
def test_what_seeds_side_by_side_cannot_do_is_refused(prepared: Path, flags: list[str]) -> None:
    message = (
        r"^seeds is \d; it takes a number from 1 on and a prepared directory, without --resume, "
        r"--debug or --distributed$"
    )
    with pytest.raises(ConfigError, match=message):
        parse(["train", str(prepared), *flags]).run(Console())


def test_models_side_by_side_keep_their_tables_whole(prepared: Path) -> None:
    settings = parse(["train", str(prepared), "--table-layout", "sharded"]).chosen()
    schema, mesh = open_prepared(prepared).schema, make_mesh()
    message = (
        r"^models side by side keep their tables whole; use --table-layout replicated, or train "
        r"one seed at a time$"
    )
    with pytest.raises(ConfigError, match=message):
        build_trainer(schema, settings, 3, mesh, models=2)
