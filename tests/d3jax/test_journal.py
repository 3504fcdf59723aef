"""The journal of a resumed run is the one of a run that never stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from d3jax.config import Config
from d3jax.data.prepared import open_prepared
from d3jax.journal import Journal, Silence
from d3jax.run import Run
from d3jax.training.loop import Observer
from d3jax.training.metrics import Evaluation, Metrics

OVERALL = Metrics(rows=30, click_rate=0.2, auc=0.625, logloss=0.5, constant_logloss=0.5)
ONE_CLASS = Metrics(rows=3, click_rate=0.0, auc=None, logloss=0.25, constant_logloss=0.0)
EVALUATION = Evaluation(OVERALL, {"home": OVERALL, "slot": ONE_CLASS})


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Run:
    return Run(tmp_path, Config(), open_prepared(prepared), prepared, "", 2100)


def told(run: Run, start: int, stop: int) -> str:
    """Logs steps start + 1 to stop, an evaluation at each fourth; returns what is printed."""
    screen = io.StringIO()
    with Journal(run, Console(file=screen, width=200), start, 8, 64) as journal:
        for step in range(start + 1, stop + 1):
            journal.stepped(step)
            journal.logged(step, 1 / step)
            if step % 4 == 0:
                journal.evaluated(step, EVALUATION, step == 4)
    return screen.getvalue()


def lines(run: Run) -> list[dict[str, float]]:
    text = (run.directory / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_journal_is_an_observer(run: Run) -> None:
    with Journal(run, Console(file=io.StringIO()), 0, 8, 64) as journal:
        assert isinstance(journal, Observer)
    assert isinstance(Silence(), Observer)


def test_it_writes_one_line_a_step_without_undefined_values(run: Run) -> None:
    told(run, 0, 4)
    written = lines(run)
    assert written[:4] == [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3, 4)]
    assert written[4] == {
        "step": 4,
        "validation/overall/auc": 0.625,
        "validation/overall/logloss": 0.5,
        "validation/home/auc": 0.625,
        "validation/home/logloss": 0.5,
        "validation/slot/logloss": 0.25,
    }
    assert len(written) == 5


@pytest.mark.parametrize("cut", ["", '{"step": 7, "trai', '{"step": 3'])
def test_a_resumed_run_drops_later_lines_and_a_half_written_one(run: Run, cut: str) -> None:
    path = run.directory / "metrics.jsonl"
    told(run, 0, 8)
    whole = path.read_bytes()
    told(run, 0, 0)
    assert path.read_bytes() == b""
    told(run, 0, 6)
    with path.open("a") as file:
        file.write(cut)
    told(run, 4, 4)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 4]
    told(run, 4, 8)
    assert path.read_bytes() == whole


def test_what_precedes_a_checkpoint_is_on_disk_before_it(run: Run) -> None:
    with Journal(run, Console(file=io.StringIO()), 0, 8, 64) as journal:
        journal.logged(1, 0.5)
        journal.saving(1)
        assert (run.directory / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.5}\n'


def test_the_screen_tells_the_validation_and_what_was_best(run: Run) -> None:
    screen = told(run, 0, 8)
    assert "step 4: validation AUC 0.6250, logloss 0.5000 (best logloss so far)" in screen
    assert "step 8: validation AUC 0.6250, logloss 0.5000\n" in screen


def test_tensorboard_gets_the_same_numbers(run: Run) -> None:
    told(run, 0, 4)
    (path,) = (run.directory / "tensorboard").glob("events.out.tfevents.*")
    content = path.read_bytes()
    assert content.count(b"train/loss") == 4
    assert b"validation/slot/logloss" in content
    assert b"validation/slot/auc" not in content
