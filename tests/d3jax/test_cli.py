"""The command line explains itself, and refuses nonsense in one line with exit code 2."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.cli import main, parse
from d3jax.config import AdapterConfig, Config, ModelConfig, OptimizerConfig, TrainConfig
from d3jax.heads import D3Options
from d3jax.presets import PRESETS
from d3jax.reads import flag_of, get, setting_names
from d3jax.registry import ADAPTERS, BACKBONES, REGISTRIES

pytestmark = pytest.mark.trains

Refused = pytest.CaptureFixture[str]


def documented(kind: type) -> list[tuple[str, str]]:
    """(name, its docstring without blanks) of every setting of a class, from its source."""
    [part] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(part, ast.ClassDef)
    return [
        (field.target.id, "".join(text.value.value.split()))
        for field, text in zip(part.body, part.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    ]


def help_of(arguments: list[str], capsys: Refused, monkeypatch: pytest.MonkeyPatch) -> str:
    """The help text, without frames and line breaks."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*arguments, "--help"])
    return " ".join(capsys.readouterr().out.split())


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


CHOICES = [
    *(("backbone", name) for name in BACKBONES.names()),
    ("head", "d3"),
    *(("adapter", name) for name in ADAPTERS.names() if name != "gradnorm"),
    ("adapter", "gradnorm"),
]


@pytest.mark.parametrize(("flag", "name"), CHOICES)
def test_help_of_train_explains_every_setting_of_the_chosen_parts_and_no_other(
    flag: str, name: str, capsys: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--head", "own", "--aggregation", "scenario_sum"] if flag == "adapter" else []
    shown = help_of(["train", f"--{flag}", name, *more], capsys, monkeypatch)
    chosen = {**Config().chosen, **REGISTRIES[flag].find(name).sections(name)}
    kinds = [ModelConfig, AdapterConfig, OptimizerConfig, TrainConfig]
    kinds += [part if isinstance(part, type) else type(part) for part in chosen.values()]
    if more:
        kinds = [kind for kind in kinds if kind not in (D3Options, BalanceOptions)]
    shown = "".join(shown.split())
    missing = [
        setting
        for kind in kinds
        for setting, text in documented(kind)
        if not re.search(
            f"{setting.replace('_', '-')}.{{0,150}}?{re.escape(text[:1])}?{re.escape(text[1:])}",
            shown,
            re.IGNORECASE,
        )
    ]
    assert missing == []
    for other in BACKBONES.names():
        assert (f"--{other.replace('_', '-')}." in shown) == (
            flag == "backbone" and other == name and BACKBONES.find(name).options is not None
        )


DEFAULTS = {
    "synthetic": [[], ["--out", "x"], ["--preset", "synthetic"], ["data", "--preset=synthetic"]],
    "best": [["data"], ["--out", "x", "data", "--epochs", "3"]],
    "official": [["data", "--preset", "official"], ["--preset=official"]],
    "text": [["data", "--preset", "text"]],
}


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [(each, name) for name, calls in DEFAULTS.items() for each in calls],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_train_shows_the_defaults_that_the_call_would_have(
    arguments: list[str], preset: str, flag: str, capsys: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", *arguments, flag])
    shown = capsys.readouterr().out
    expected = PRESETS[preset]
    for name, value in {
        "rank": expected.d3.rank,
        "field-hidden": expected.d3.field_hidden,
        "batch-size": expected.train.batch_size,
        "form": expected.d3.form,
        "weight-decay": expected.optimizer.weight_decay,
    }.items():
        assert f"\n  --{name} {value} " in shown, name


def test_help_shows_the_defaults_of_a_preset_file(
    tmp_path: Path, capsys: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"config": {"train": {"epochs": 77}}}), encoding="utf-8")
    shown = help_of(["train", "data", "--config", str(path)], capsys, monkeypatch)
    assert "--epochs 77 " in shown


@pytest.mark.parametrize(
    ("arguments", "name", "cure"),
    [
        ("train data --form official --rank 16", "rank", "use --form text"),
        ("train data --backbone star --width 9", "width", "use a --backbone other than star and"),
        ("train --backbone sar_net --width 9", "width", "use a --backbone other than star and"),
        ("train data --head m2m_wg --width 9", "width", "use --head d3, or leave it out"),
        ("train data --mmoe.experts 3", "mmoe.experts", "use --backbone mmoe, or leave it out"),
        ("chaos --star.gate-bias", "star.gate-bias", "use --backbone star, or leave it out"),
        (
            "train data --embedding-init xavier_table --embedding-scale 0.5",
            "embedding-scale",
            "use --embedding-init normal",
        ),
        ("train data --parts d2 --start-ratio 0.2", "start-ratio", "use --head d3 with --parts d3"),
        (
            "train data --head own --adapter dwa --dtp.row-focus 2",
            "dtp.row-focus",
            "use --adapter dtp",
        ),
        ("compare data --table 3 --mmoe.experts 3", "mmoe.experts", "use --backbone mmoe"),
        (
            "compare data --table 1 --backbone star",
            "backbone",
            "leave it out, for what is compared",
        ),
        ("compare data --table 1 --seed 5", "seed", "leave it out, for what is compared sets it"),
        ("compare data --figure 3 --start-ratio 0.1", "start-ratio", "leave it out, for what is"),
        ("search data --mmoe.experts 3", "mmoe.experts", "use --backbone mmoe, or leave it out"),
        ("search data --table 2 --mmoe.experts 3", "mmoe.experts", "use --backbone mmoe, or leave"),
    ],
)
def test_a_flag_that_does_nothing_is_refused_by_name_with_what_would_make_it_work(
    arguments: str, name: str, cure: str, capsys: Refused
) -> None:
    said = refusal(arguments.split(), capsys)
    assert f"--{name} (" in said
    assert "but nothing here reads it; " in said
    assert cure in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search data --on star", "on is star, but there is no table; use --backbone instead"),
        ("compare data --table 1 --on star", "on is star, but table 1 has its own backbones; l"),
    ],
)
def test_the_backbone_of_a_table_is_refused_where_it_does_nothing(
    arguments: str, message: str, capsys: Refused
) -> None:
    assert message in refusal(arguments.split(), capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        "train data --preset best --backbone star",
        "train data --preset official --form text",
        "train data --backbone star --width 0",
        "train data --backbone star --field-hidden 4",
        "train data --backbone mmoe --mmoe.experts 3",
        "compare data --table 1 --mmoe.experts 3",
        "compare data --table 1 --width 9 --tower-layers 9",
        "compare data --table 2 --dwa.temperature 3 --dtp.row-focus 2 --start-ratio 0.2",
        "search data --table 1 --star.layers 8 --seed 4",
        "search data --backbone star --star.layers 8 --head own",
    ],
)
def test_what_one_method_reads_or_the_preset_has_is_accepted(arguments: str) -> None:
    parse(arguments.split())


def test_a_setting_of_a_file_by_hand_that_nothing_reads_is_refused_with_the_file(
    tmp_path: Path, capsys: Refused
) -> None:
    path = tmp_path / "mine.json"
    settings = {"d3": {"form": "official", "rank": 16}, "mmoe": {"experts": 3}}
    path.write_text(json.dumps({"config": settings}), encoding="utf-8")
    said = refusal(["train", "data", "--config", str(path)], capsys)
    assert f"{path}: --rank (d3.rank) is 16, but nothing here reads it" in said
    # What the flags beside it make of it counts too, in both directions.
    parse(["train", "data", "--config", str(path), "--form", "text", "--backbone", "mmoe"])
    said = refusal(["train", "data", "--config", str(path), "--form", "text"], capsys)
    assert f"{path}: --mmoe.experts (mmoe.experts) is 3, but nothing here reads it" in said
    # What a search or a run wrote has all settings, those for other parts as well.
    path.write_text(json.dumps({"config": settings, "metric": "auc"}), encoding="utf-8")
    parse(["train", "data", "--config", str(path)])


def test_a_preset_by_hand_of_one_method_is_looked_at_too(tmp_path: Path, capsys: Refused) -> None:
    (tmp_path / "mmoe-d3.json").write_text('{"config": {"mmoe": {"experts": 3}}}')
    command = ["compare", "data", "--table", "1", "--configs", str(tmp_path)]
    parse(command)
    (tmp_path / "star-d3.json").write_text('{"config": {"d3": {"width": 9}}}')
    said = refusal(command, capsys)
    assert f"{tmp_path / 'star-d3.json'}: --width (d3.width) is 9, but nothing here" in said


def test_flags_reach_the_configuration() -> None:
    verb = parse(["train", "data", "--preset", "official", "--seed", "7", "--gate-layers", "6"])
    assert str(verb.prepared) == "data"
    assert verb.d3.form == "official"
    assert verb.train.epochs == 1
    assert (verb.train.seed, verb.d3.gate_layers) == (7, (6,))


def test_flags_change_the_preset_that_own_data_has() -> None:
    verb = parse(["train", "data", "--epochs", "3", "--rank", "8"])
    assert verb.d3 == replace(PRESETS["best"].d3, rank=8)
    assert verb.train == replace(PRESETS["best"].train, epochs=3)


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


@pytest.mark.parametrize("arguments", [["train", "--resume"], ["evaluate"], ["inspect"]])
def test_what_is_no_run_is_refused(arguments: list[str], tmp_path: Path, capsys: Refused) -> None:
    arguments = [*arguments, str(tmp_path)]
    said = refusal(arguments, capsys)
    assert f"{tmp_path} is no run: {tmp_path / 'config.json'} is missing" in said


@pytest.mark.parametrize("flags", [["--epochs", "9"], ["--preset", "text"], ["--out", "other"]])
def test_resume_takes_no_other_flags(flags: list[str], trained: Path, capsys: Refused) -> None:
    said = refusal(["train", "--resume", str(trained), *flags], capsys)
    told = "--resume takes a run as it is, with --data where its data have moved and nothing else; "
    assert f"{told}give it so, or start a new run" in said


def test_resume_takes_no_setting_that_has_its_usual_value(tmp_path: Path, capsys: Refused) -> None:
    usual = PRESETS["synthetic"]
    for name in setting_names(usual):
        value = get(usual, name)
        flag = f"--{flag_of(name)}"
        texts = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
        if isinstance(value, bool):
            section, dot, key = flag.rpartition(".")
            key = key.removeprefix("--")
            flag = flag if value else f"{section}{dot}no-{key}" if dot else f"--no-{key}"
            texts = []
        said = refusal(["train", "--resume", str(tmp_path), flag, *texts], capsys)
        assert "--resume takes a run as it is" in said, flag


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
    assert f"{run / 'config.json'} is damaged (config.train.epoch is unknown to this d3jax" in said
    assert "(did you mean epochs?)" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_version": "2"}, "(run_version is '2'; it must be an integer of at most 64 bits)"),
        ({"run_version": True}, "(run_version is True; it must be an integer of at most 64 bits)"),
        ({"data": 3}, "(data is 3; it must be text)"),
        ({"training_rows": "12"}, "(training_rows is '12'; it must be an integer of at most 64 bi"),
        ({"training_rows": -1}, "(training_rows is -1; it must be between 1 and"),
        ({"config": []}, "(config is []; it must be an object)"),
        ({"config": {"train": {"deterministic": "no"}}}, "(config.train.deterministic is 'no'; it"),
        ({"note": 1}, "(note is unknown to this d3jax; it knows"),
    ],
)
def test_the_head_of_a_run_is_typed(
    change: dict[str, object], message: str, trained: Path, tmp_path: Path, capsys: Refused
) -> None:
    settings = json.loads((trained / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    said = refusal(["evaluate", str(tmp_path)], capsys)
    assert f"{tmp_path / 'config.json'} is damaged {message}" in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_version": 4}'])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path, capsys: Refused) -> None:
    (tmp_path / "config.json").write_text(text)
    assert f"{tmp_path / 'config.json'} is damaged (" in refusal(
        ["evaluate", str(tmp_path)], capsys
    )


def test_help_of_train_is_short_and_fits_the_screen(
    capsys: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 110
