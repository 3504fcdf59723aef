"""Runs whose checkpoints are damaged: what is used instead, what is said, and `d3jax check`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.cli import main
from d3jax.console.terminal import Console
from d3jax.evaluate import load_best, trainer_for
from d3jax.run import open_run
from d3jax.running import best_state, newest_state
from d3jax.training.loop import Progress
from experiments.chaos import differences
from tests.cases import cases
from tests.flags import said

Capture = pytest.CaptureFixture[str]

# Orbax drops the reads that a failed one makes pointless; collected here, they warn here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, whose checkpoints are those of its two evaluations."""
    shutil.copytree(trained, tmp_path / "run")
    assert saved(tmp_path / "run") == [9, 18]
    return tmp_path / "run"


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def lose_metadata(run: Path, step: int) -> None:
    (run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").unlink()


def spoil_arrays(run: Path, step: int) -> None:
    """Cuts the files that hold numbers."""
    for path in (run / "checkpoints" / str(step) / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-50])


def add_checkpoints(run: Path, bests: dict[int, int]) -> None:
    """Steps with the numbers of step 18 but for weights that are their step, and their bests."""
    opened = open_run(run)
    checkpoints = opened.checkpoints(writer=True)
    state = checkpoints.restore(trainer_for(opened).abstract).state
    for step, best in bests.items():
        params = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), state.params)
        progress = {**Progress(step=step, best_step=best).to_json()}
        checkpoints.save(step, state._replace(params=params), progress)
    checkpoints.close()


@pytest.mark.slow
def test_training_goes_on_from_the_older_one_to_the_same_end(
    run: Path, trained: Path, capsys: Capture
) -> None:
    spoil_arrays(run, 18)
    main(["train", "--resume", str(run)])
    told = said(capsys)
    assert re.search(r"damaged: checkpoint 18 in \S+ is damaged: .*\"state/d/\w+\"", told)
    assert f"Step 9 is used instead. Its folder is now {run}/checkpoints/damaged/18." in told
    assert "resuming after step 9" in told
    assert differences(trained, run) == []


def test_a_run_of_which_nothing_is_whole_is_told_and_left_alone(run: Path, capsys: Capture) -> None:
    for step in (9, 18):
        lose_metadata(run, step)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["train", "--resume", str(run)])
    assert "error: every checkpoint in" in said(capsys)
    assert saved(run) == [9, 18]


def test_newest_weights_stand_in_when_the_best_are_damaged(run: Path, capsys: Capture) -> None:
    opened = open_run(run)
    trainer = trainer_for(opened)
    checkpoints = opened.checkpoints(writer=True)
    settings = opened.config.train
    state, [progress] = newest_state(trainer, [checkpoints], [0], settings, Console(stderr=True))
    console = Console(stderr=True, width=1000)
    assert best_state(trainer, checkpoints, state, Progress(18, 18), console)[1] == "best weights"
    older, weights = best_state(trainer, checkpoints, state, Progress(18, 9), console)
    assert (int(older.step), weights) == (9, "best weights")
    assert said(capsys) == ""
    lose_metadata(run, 9)
    same, weights = best_state(trainer, checkpoints, state, Progress(18, 9), console)
    checkpoints.close()
    assert same is state
    assert weights == "newest weights"
    told = said(capsys)
    assert "checkpoint 9 in" in told
    assert "weights of step 18, the newest, are evaluated instead of the best, those of" in told
    assert progress.step == 18


@pytest.mark.parametrize(
    ("bests", "lost", "used"),
    cases(
        [
            ((19, 19, 21), (), 21),
            ((19, 19, 21), (19,), 21),
            ((19, 19, 21), (21,), 19),
            ((19, 19, 21), (19, 21), 20),
            ((19, 19, 19), (), 19),
            ((19, 19, 19), (19,), 21),
        ],
        quick=[((19, 19, 21), (19, 21), 20)],
    ),
)
def test_the_best_of_the_newest_whole_checkpoint_is_scored_with(
    run: Path, capsys: Capture, bests: tuple[int, ...], lost: tuple[int, ...], used: int
) -> None:
    add_checkpoints(run, dict(zip((19, 20, 21), bests, strict=True)))
    assert saved(run) == [19, 20, 21]
    for step in lost:
        lose_metadata(run, step)
    capsys.readouterr()
    loaded = load_best(open_run(run))
    assert loaded.step == used
    assert {float(np.ravel(leaf)[0]) for leaf in jax.tree.leaves(loaded.state.params)} == {used}
    told = said(capsys)
    needed = {step for step in lost if step in (21, bests[2], bests[1] if 21 in lost else 21)}
    assert {int(step) for step in re.findall(r"checkpoint (\d+) in", told)} == needed
    best_of_newest_is_lost = bests[1 if 21 in lost else 2] in lost
    assert (f"weights of step {used} are used instead" in told) == best_of_newest_is_lost
    assert saved(run) == [19, 20, 21], "a reader moves nothing"


@pytest.mark.slow
def test_evaluation_of_a_damaged_run_goes_to_standard_output_alone(
    run: Path, trained: Path, capsys: Capture
) -> None:
    main(["evaluate", str(trained), "--json"])
    whole = capsys.readouterr().out
    add_checkpoints(run, {19: load_best(open_run(run)).step})
    lose_metadata(run, 19)
    capsys.readouterr()
    main(["evaluate", str(run), "--json"])
    captured = capsys.readouterr()
    assert captured.out == whole
    assert "damaged: checkpoint 19 in" in captured.err


def test_check_shows_each_checkpoint(trained: Path, capsys: Capture) -> None:
    main(["check", str(trained)])
    shown = capsys.readouterr().out
    checkpoints = open_run(trained).checkpoints(writer=False)
    arrays = checkpoints.arrays(18).values()
    checkpoints.close()
    size = f"{sum(array.nbytes for array in arrays):,}"
    for step in (9, 18):
        assert re.search(rf"│ +{step} │ +{len(arrays)} │ +{size} │ ok +│", shown), shown


@pytest.mark.parametrize("damage", [lose_metadata, spoil_arrays])
def test_check_names_what_is_damaged(
    run: Path, capsys: Capture, damage: Callable[[Path, int], None]
) -> None:
    damage(run, 9)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["check", str(run)])
    captured = capsys.readouterr()
    assert re.search(r"│ +9 │ +- │ +- │ checkpoint 9 in", captured.out)
    assert re.search(r"│ +18 │ +\d+ │ +[\d,]+ │ ok", captured.out)
    told = " ".join(captured.err.split())
    assert f"error: of 2 checkpoints in {run} damaged: 9; put their folders back" in told
    assert saved(run) == [9, 18]


def test_check_of_a_run_without_checkpoints(run: Path, capsys: Capture) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["check", str(run)])
    assert f"{run} has no checkpoint yet; train it by --resume" in said(capsys)


def test_check_still_takes_a_prepared_directory(prepared: Path, capsys: Capture) -> None:
    main(["check", str(prepared)])
    assert "rows are as they were written" in said(capsys)
