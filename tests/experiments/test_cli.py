"""The command line explains itself, and refuses nonsense in one line with exit code 2."""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from d3jax import config, options
from experiments.cli import main, parse
from experiments.presets import BEST

Refused = pytest.CaptureFixture[str]


def documented(*modules: str) -> list[tuple[str, str]]:
    """(name, its docstring without blanks) of every setting, from the modules' source."""
    return [
        (field.target.id, "".join(text.value.value.split()))
        for module in modules
        for part in ast.parse(Path(module).read_text(encoding="utf-8")).body
        if isinstance(part, ast.ClassDef) and part.name != "Config"
        for field, text in zip(part.body, part.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    ]


def help_of(arguments: list[str], capsys: Refused, monkeypatch: pytest.MonkeyPatch) -> str:
    """The help text, without frames and line breaks."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*arguments, "--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", plain).split())


def refusal(arguments: list[str], capsys: Refused) -> str:
    """What is said by a command that exits with 2; its line breaks are made blanks."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join((captured.out + captured.err).split())


def test_help_lists_the_verbs(capsys: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of([], capsys, monkeypatch)
    for verb, about in {
        "prepare": "Turn raw files into a prepared directory.",
        "train": "Train a model; without arguments, D3 on the embedded synthetic data.",
        "evaluate": "Show a run's metrics, overall and per scenario.",
        "predict": "Give the click probability of new rows in their raw values.",
    }.items():
        assert f"{verb} {about}" in shown


def test_help_of_train_explains_every_setting(
    capsys: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of(["train"], capsys, monkeypatch)
    settings = documented(str(config.__file__), str(options.__file__))
    assert len(settings) > 50
    shown = "".join(shown.split())
    missing = [
        name
        for name, text in settings
        if not re.search(f"{name.replace('_', '-')}.{{0,150}}?{re.escape(text)}", shown)
    ]
    assert missing == []


def test_flags_reach_the_configuration() -> None:
    verb = parse(["train", "data", "--preset", "official", "--seed", "7", "--gate-layers", "6"])
    assert str(verb.prepared) == "data"
    assert verb.d3.form == "official"
    assert verb.train.epochs == 1
    assert (verb.train.seed, verb.d3.gate_layers) == (7, (6,))


def test_flags_change_the_preset_that_own_data_has() -> None:
    verb = parse(["train", "data", "--epochs", "3", "--generator-rank", "8"])
    assert verb.d3 == replace(BEST.d3, generator_rank=8)
    assert verb.train == replace(BEST.train, epochs=3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size is 0; it must be"),
        (["--epochs", "-1"], "epochs is -1; it must be"),
        (["--learning-rate", "nan"], "learning_rate is nan; it must be"),
        (["--embedding-dropout", "1"], "embedding_dropout is 1.0; it must be"),
        (["--start-ratio", "1.5"], "start_ratio is 1.5; it must be"),
        (["--bottom-layers", "8", "0"], "bottom_layers"),
        (["--complexity-shift", "0", "--complexity-scale", "0"], "are both 0"),
        (["--batch-size", "many"], "many"),
        (["--backbone", "resnet"], "shared_bottom"),
        (["--preset", "mine"], "official"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--batch-size", "100"], "batch_size is 100, which 8 devices can't share evenly"),
        (["--adapter", "dwa"], "adapter dwa and D3's balance (parts d3) both weigh rows"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made(
    flags: list[str], message: str, prepared: Path, tmp_path: Path, capsys: Refused
) -> None:
    run = tmp_path / "run"
    said = refusal(["train", str(prepared), "--out", str(run), *flags], capsys)
    assert message in said
    assert not run.exists()


def test_no_verb_and_an_unknown_one_are_refused(capsys: Refused) -> None:
    assert "train" in refusal([], capsys)
    assert "dance" in refusal(["dance"], capsys)


def test_a_missing_prepared_directory_is_named(tmp_path: Path, capsys: Refused) -> None:
    said = refusal(["train", str(tmp_path / "no"), "--out", str(tmp_path / "run")], capsys)
    assert f"{tmp_path / 'no' / 'schema.json'} is missing" in said
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(trained: Path, prepared: Path, capsys: Refused) -> None:
    before = (trained / "config.json").read_bytes()
    said = refusal(["train", str(prepared), "--out", str(trained)], capsys)
    assert f"{trained} exists; go on with it by --resume {trained}, choose another --out" in said
    assert (trained / "config.json").read_bytes() == before


def test_overwrite_spares_what_is_no_run(prepared: Path, tmp_path: Path, capsys: Refused) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    said = refusal(["train", str(prepared), "--out", str(tmp_path), "--overwrite"], capsys)
    assert f"{tmp_path} is no run that d3jax made, so it is not replaced" in said
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    "arguments", [["train", "--resume"], ["evaluate"], ["predict", "rows.csv"]]
)
def test_what_is_no_run_is_refused(arguments: list[str], tmp_path: Path, capsys: Refused) -> None:
    arguments.insert(1 if arguments[0] == "predict" else len(arguments), str(tmp_path))
    said = refusal(arguments, capsys)
    assert f"{tmp_path} is no run: {tmp_path / 'config.json'} is missing" in said


@pytest.mark.parametrize("flags", [["--epochs", "9"], ["--preset", "text"], ["--out", "other"]])
def test_resume_takes_no_other_flags(flags: list[str], trained: Path, capsys: Refused) -> None:
    said = refusal(["train", "--resume", str(trained), *flags], capsys)
    assert "--resume takes a run as it is; give it alone, or start a new run" in said


def test_an_edited_configuration_is_named_key_and_values(
    trained: Path, tmp_path: Path, capsys: Refused
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = json.loads((run / "config.json").read_text())
    settings["config"]["optimizer"]["learning_rate"] = 0.5
    (run / "config.json").write_text(json.dumps(settings))
    said = refusal(["train", "--resume", str(run)], capsys)
    assert "checkpoint 18 in" in said
    assert "(config.optimizer.learning_rate: 0.001 -> 0.5)" in said
    assert "start a new run, or restore the old values" in said


def test_an_unknown_key_of_the_configuration_is_named(
    trained: Path, tmp_path: Path, capsys: Refused
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = json.loads((run / "config.json").read_text())
    settings["config"]["train"]["epoch"] = 3
    (run / "config.json").write_text(json.dumps(settings))
    said = refusal(["evaluate", str(run)], capsys)
    assert f"{run / 'config.json'} is damaged (train.epoch is no setting of this d3jax" in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_version": 1}'])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path, capsys: Refused) -> None:
    (tmp_path / "config.json").write_text(text)
    assert f"{tmp_path / 'config.json'} is damaged (" in refusal(
        ["evaluate", str(tmp_path)], capsys
    )
