"""Where nobody watches, messages go to the program's log."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from d3jax.console.log import Log, voice
from d3jax.console.terminal import Console, Progress, styled


def test_messages_become_records(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "d3jax")
    log = Log()
    log.print("step 3:", "AUC 50%")
    log.print(styled("damaged:", "bold red"), "checkpoint 7")
    with Progress(console=log) as bar:
        bar.add_task("training", total=2)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("d3jax", "INFO", "step 3: AUC 50%"),
        ("d3jax", "WARNING", "damaged: checkpoint 7"),
    ]
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(voice(), Log)
    monkeypatch.setattr(sys, "stderr", Terminal())
    spoken = voice()
    assert isinstance(spoken, Console)
    assert not isinstance(spoken, Log)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(voice(), Log)
