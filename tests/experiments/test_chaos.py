"""Killing runs on purpose: what counts as a difference, what is refused, and a few real kills."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from rich.console import Console

from d3jax.cli import main, parse
from d3jax.config import Config
from d3jax.errors import ConfigError, OutputError, TrainingError
from d3jax.evaluate import trainer_for
from d3jax.run import open_run
from experiments import chaos
from experiments.chaos import Kill, Plan, differences, kill_table


@pytest.fixture
def other(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(trained, tmp_path / "other")
    return tmp_path / "other"


def plan_of(out: Path, kills: int = 1) -> Plan:
    return Plan(None, Config(), kills, out)


def test_equal_runs_have_no_differences(trained: Path, other: Path) -> None:
    assert differences(trained, other) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json"])
def test_a_byte_of_a_file_is_a_difference(trained: Path, other: Path, name: str) -> None:
    path = other / name
    path.write_bytes(path.read_bytes() + b" ")
    assert differences(trained, other) == [name]


@pytest.mark.slow
def test_one_number_of_an_array_is_a_difference(trained: Path, other: Path) -> None:
    opened = open_run(other)
    checkpoints = opened.checkpoints(writer=True)
    restored = checkpoints.restore(trainer_for(opened).abstract)
    key = restored.state.key.at[0].add(jnp.uint32(1))
    checkpoints.save(18, restored.state._replace(key=key), restored.progress)
    checkpoints.close()
    assert differences(trained, other) == ["checkpoint 18, key"]


def test_a_checkpoint_that_only_one_run_has_is_a_difference(trained: Path, other: Path) -> None:
    shutil.rmtree(other / "checkpoints" / "9")
    names = differences(trained, other)
    assert names
    assert all(name.startswith("checkpoint 9, ") for name in names)


def test_differences_are_told_by_run(tmp_path: Path) -> None:
    message = (
        f"killed runs differ from the undisturbed one (victim-2: metrics.jsonl, checkpoint 9, key);"
        f" all are kept in {tmp_path}"
    )
    differing = {1: [], 2: ["metrics.jsonl", "checkpoint 9, key"]}
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        chaos._conclude(plan_of(tmp_path), differing, Console(quiet=True))


def test_what_can_not_be_laid_out_is_refused(tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    with pytest.raises(ConfigError, match=r"^kills is 0; it must be at least 1$"):
        chaos.chaos(plan_of(tmp_path / "new", 0), quiet)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"^{tmp_path} exists; choose another --out$"):
        chaos.chaos(plan_of(tmp_path), quiet)


def test_the_table_has_a_line_for_each_kill() -> None:
    console = Console(record=True, width=100, quiet=False)
    with console.capture() as captured:
        console.print(
            kill_table([Kill(1, 0.5, "starting", 0), Kill(2, 7.25, "evaluating, saving step 9", 6)])
        )
    shown = captured.get()
    assert re.search(r"1 │ +1 │ +0.50 │ starting +│ +the start", shown)
    assert re.search(r"2 │ +2 │ +7.25 │ evaluating, saving step 9 +│ +step 6", shown)


def test_chaos_adds_in_one_order_whatever_the_preset_says(tmp_path: Path) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"config": {"train": {"deterministic": False}}}))
    verb = parse(["chaos", "--config", str(preset)])
    assert verb.chosen().train.deterministic


def test_chaos_takes_the_flags_of_train_and_saves_often() -> None:
    verb = parse(["chaos", "--kills", "3", "--backbone", "adi", "--checkpoint-every", "5"])
    config = verb.chosen()
    assert (verb.kills, config.model.backbone, config.train.checkpoint_every) == (3, "adi", 5)
    assert (config.train.evaluate_every, config.train.patience) == (0.5, 0)
    assert config.train.batch_size == parse(["train"]).chosen().train.batch_size


@pytest.mark.slow
def test_killed_runs_come_to_the_same_bits(
    prepared: Path,
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("XLA_FLAGS", "")
    flags = ["--kills", "4", "--batch-size", "64", "--epochs", "8", *small]
    main(["chaos", str(prepared), "--out", str(tmp_path / "out"), *flags])
    captured = capsys.readouterr()
    assert len(re.findall(r"│ +\d+ │ +\d+ │ +\d+\.\d\d │ \w", captured.out)) == 4
    assert "the same to the last bit" in captured.err
    settings = json.loads((tmp_path / "out" / "victim-1" / "config.json").read_text())
    assert settings["config"]["train"]["batch_size"] == 64


@pytest.mark.slow
def test_a_run_that_ends_by_itself_is_told(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    plan = Plan(tmp_path / "nothing", Config(), 1, tmp_path / "out")
    message = r"^undisturbed ended by itself with exit code 2; see .*/out/undisturbed.log$"
    with pytest.raises(TrainingError, match=message):
        chaos.chaos(plan, Console(quiet=True))
    assert "nothing" in (tmp_path / "out" / "undisturbed.log").read_text()
