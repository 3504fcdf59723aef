"""Whatever ends a command, it says so in a few lines and with a documented code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d3jax.cli import main
from d3jax.console import endings
from d3jax.console.endings import ending, without_debug
from d3jax.console.exits import FAILED, PREEMPTED, UNFORESEEN
from d3jax.console.terminal import Console
from d3jax.errors import D3jaxError, DataError, Preempted
from tests.cases import cases

Captured = pytest.CaptureFixture[str]


def told(error: BaseException, capsys: Captured, *arguments: str) -> tuple[int | str | None, str]:
    """Exit code and words of a command that ends with an error."""
    with pytest.raises(SystemExit) as raised, ending(arguments, Console(stderr=True, width=80)):
        raise error
    return raised.value.code, capsys.readouterr().err


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file counts as one of d3jax's."""
    monkeypatch.setattr(endings, "_ROOMS", ("tests",))


@pytest.mark.parametrize(
    "error", [ValueError("odd [/b]"), KeyError("x"), RuntimeError(), MemoryError()]
)
def test_an_unforeseen_error_says_what_was_done_and_what_to_do(
    error: Exception, capsys: Captured, ours: None
) -> None:
    code, said = told(error, capsys, "evaluate", "my run", "[/b]")
    assert code == UNFORESEEN
    assert f"unforeseen error: {type(error).__name__}: " in said
    assert "while running: d3jax evaluate 'my run' '[/b]'\n" in said
    assert "this is d3jax's fault, in test_endings.py, line " in said
    assert "please report these lines, and what the same command says with --debug," in said
    assert "where you got d3jax (d3jax " in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 3


def test_a_fault_of_somebodys_own_file_is_not_called_ours(capsys: Captured) -> None:
    code, said = told(ValueError("odd"), capsys, "train", "data", "--backbone", "mine")
    assert code == UNFORESEEN
    assert "it comes from test_endings.py, line " in said
    assert said.endswith("(told), which is none of d3jax's; --debug shows the way there\n")
    assert "report" not in said


@pytest.mark.parametrize("way", ["--debug", "1", "0"])
def test_debug_shows_the_traceback(
    way: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch, ours: None
) -> None:
    if way != "--debug":
        monkeypatch.setenv("D3JAX_DEBUG", way)
    _, said = told(ValueError("odd"), capsys, "evaluate", way)
    assert ("Traceback" in said) == (way != "0")
    assert ("says with --debug" in said) == (way == "0")


def test_what_the_system_refuses_is_named(capsys: Captured, tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011
        (tmp_path / "a\nb").read_text()
    code, said = told(raised.value, capsys)
    assert code == FAILED
    assert f"error: {tmp_path}/a\\nb: No such file or directory; check the path" in said
    code, said = told(OSError(errno.ENOSPC, "No space left on device"), capsys)
    assert (code, said) == (
        FAILED,
        "error: No space left on device; is a disk full, or the standard output closed?\n",
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("file [/b], line\n3"), FAILED, "error: file [/b], line\\n3\n"),
        (Preempted("[red]saved"), PREEMPTED, "[red]saved\n"),
    ],
)
def test_what_is_refused_on_purpose_is_said_as_it_is(
    error: D3jaxError, code: int, said: str, capsys: Captured
) -> None:
    assert told(error, capsys) == (code, said)


def test_every_verb_takes_debug(capsys: Captured) -> None:
    assert without_debug(["--debug", "evaluate", "x", "--debug"]) == ["evaluate", "x"]
    assert without_debug(["train", "x", "--debug"]) == ["train", "x", "--debug"]
    for verb in ("describe", "check", "evaluate", "inspect", "export", "predict"):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([verb, "nowhere", *(["x"] if verb in ("export", "predict") else []), "--debug"])
        assert "error: nowhere" in capsys.readouterr().err


def run(*arguments: str, close: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a shell that closes or redirects what `close` says."""
    line = f'exec "$0" -m d3jax "$@" {close}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *arguments],
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("close", "reason"),
    cases(
        [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
        quick=[(">/dev/full", "No space left on device")],
    ),
)
def test_a_standard_output_that_takes_nothing_is_told(
    close: str, reason: str, tmp_path: Path, trained: Path
) -> None:
    done = run("evaluate", str(trained), "--json", close=close)
    assert done.returncode == FAILED
    assert done.stderr.endswith(
        f"error: {reason}; is a disk full, or the standard output closed?\n"
    )


@pytest.mark.parametrize("close", cases(["2>&-", "2>/dev/full", "<&-"], quick=["2>&-"]))
def test_a_closed_standard_error_hides_words_only(close: str, trained: Path) -> None:
    done = run("evaluate", str(trained), "--json", close=close)
    assert done.returncode == 0
    assert done.stdout.startswith("{")


def test_no_encoding_of_the_screen_is_too_small(prepared: Path) -> None:
    done = run("describe", str(prepared), env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
