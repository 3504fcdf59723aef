"""Every flag of every verb is known to the suggestions, and a mistyped name gets the right one."""

from __future__ import annotations

import re

import pytest

from d3jax.cli import load_verb, main, parse
from d3jax.console.suggestions import check_names, choices_of, flags_of
from d3jax.errors import ConfigError
from d3jax.overview import find_verbs
from d3jax.verb import Verb

VERBS = {name: load_verb(name, point) for name, point in find_verbs().items()}
COMMANDS = {name: kind for name, kind in VERBS.items() if name != "prepare"} | {
    f"prepare {name}": kind for name, kind in choices_of(VERBS["prepare"]).items()
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_a_verb_are_those_that_its_help_lists(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    boxed = "[flags]" not in shown.partition("\n")[0]
    own = [] if boxed else re.findall(r"^  (--[a-z]\S*)", shown, re.MULTILINE)
    default = COMMANDS[command].default([]) if hasattr(COMMANDS[command], "default") else None
    kind = type(default) if isinstance(default, Verb) else COMMANDS[command]
    flags = set(flags_of(kind))
    if own:  # a switch is listed in the sense that changes it
        listed = {*own, *(flag.replace("--no-", "--") for flag in own)}
        listed |= {re.sub(r"^--(.*\.)?", r"--\1no-", flag) for flag in own}
        assert set(own) <= flags <= listed
        return
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    listed = re.findall(r"^[│ ]+(--[a-z]\S*?)(?:, (--\S+))?(?: |$)", shown, re.MULTILINE)
    assert {flag for pair in listed for flag in pair if flag} == flags


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_with_a_letter_too_few_is_refused_with_the_flag_itself(command: str) -> None:
    flags = flags_of(COMMANDS[command])
    for flag in flags:
        typo = flag[:-2] + flag[-1]
        if typo in flags or len(flag) < 7:
            continue
        with pytest.raises(ConfigError, match=re.escape(f"d3jax {command} has no {typo}")) as error:
            check_names([*command.split(), "x", typo, "3"], VERBS)
        assert flag in str(error.value) or "did you mean" in str(error.value)
        assert f"d3jax {command} --help lists what it has" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "data", "--lr", "3"],
            "has no --lr (did you mean --learning-rate?); d3jax train",
        ),
        (["train", "--batchsize=3"], "has no --batchsize (did you mean --batch-size?)"),
        (["train", "--mmoe.expert", "3"], "has no --mmoe.expert (did you mean --mmoe.experts"),
        (["train", "--experts", "3"], "did you mean --m2m.experts, --m3oe.experts or --mmoe.e"),
        (["train", "--no-determinstic"], "did you mean --no-deterministic"),
        (["trian"], "d3jax has no 'trian' (did you mean train?); it has prepare, train, "),
        (["trian", "--help"], "d3jax has no 'trian' (did you mean train?)"),
        (["dance"], "d3jax has no 'dance'; it has prepare, train, evaluate, "),
        (["prepare", "tabel", "x", "y"], "d3jax prepare has no 'tabel' (did you mean table?); it"),
        (["prepare", "movielens", "x", "y"], "has no 'movielens' (did you mean movielens-1m?)"),
        (["prepare", "table", "x", "y", "--minn-count", "3"], "(did you mean --min-count?)"),
        (["evaluate", "run", "--splt", "test"], "d3jax evaluate has no --splt (did you mean --spl"),
        (["compare", "data", "--tabel", "1"], "d3jax compare has no --tabel (did you mean --tabl"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(arguments)
    assert message in str(error.value)


def test_values_and_what_follows_two_hyphens_are_no_flags() -> None:
    check_names(["train", "data", "--out=--lr", "--batch_size", "-3", "--", "--lr"], VERBS)
    check_names(["prepare", "table"], VERBS)
    check_names([], VERBS)
    check_names(["--help"], VERBS)
