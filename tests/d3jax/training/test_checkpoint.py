"""Checkpoints: which are kept, what is refused and how, and that what comes back is exact."""

import dataclasses
import gc
import re
import shutil
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config import TrainConfig
from d3jax.errors import CheckpointError
from d3jax.parameters import named_leaves
from d3jax.training.checkpoint import Checkpoints
from d3jax.training.fit import build_trainer
from d3jax.training.sharding import make_mesh, place_batch, replicate
from tests.d3jax.training.world import make_batch

IDENTITY = {"config": {"train": {"seed": 0, "epochs": 3}}, "schema": {"scenarios": ["a", "b"]}}


@pytest.fixture
def open_at():
    """`open_at(directory, ...)`: checkpoints that are closed when the test ends."""
    opened = []

    def open_checkpoints(directory, identity=IDENTITY, **options):
        opened.append(Checkpoints(directory, identity, **options))
        return opened[-1]

    yield open_checkpoints
    for checkpoints in opened:
        checkpoints.close()


@pytest.fixture
def checkpoints(tmp_path, open_at):
    return open_at(tmp_path)


@pytest.fixture(scope="module")
def trainer_on(schema, config):
    """`trainer_on(n)`, compiled once for n devices: no D3, but dropout, which needs the key."""
    model = dataclasses.replace(
        config.model, head="own", tower_layers=(3,), bottom_layers=(5,), embedding_dropout=0.2
    )
    config = dataclasses.replace(config, model=model, train=TrainConfig(batch_size=64))
    return cache(lambda number: build_trainer(schema, config, 4, make_mesh(devices(number))))


def devices(number):
    return jax.devices()[:number]


def small(value=1.0):
    """A state of two arrays."""
    arrays = {"kernel": jnp.full((3, 2), value), "step": jnp.int32(value)}
    return replicate(make_mesh(), arrays)


def save_all(checkpoints, bests):
    """Steps 1, 2, ..., each of which knows the given step as the best."""
    for step, best in enumerate(bests, start=1):
        checkpoints.save(step, small(step), {"best_step": best})
    checkpoints.wait()


def host_copy(state):
    return jax.tree.map(np.array, jax.device_get(state))


def assert_equal_bits(ours, theirs):
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert np.asarray(ours[name]).tobytes() == np.asarray(array).tobytes(), name


@pytest.mark.parametrize(
    ("bests", "kept"),
    [
        ([None] * 5, [4, 5]),
        ([None, 2, 2, 2, 2, 2], [2, 5, 6]),
        ([1, 1, 3, 3, 3], [3, 4, 5]),
        ([1, 1, 1, 4], [1, 3, 4]),
        ([1, 1, 1, 4, 4], [4, 5]),
    ],
)
def test_the_latest_two_and_the_best_are_kept(checkpoints, bests, kept):
    save_all(checkpoints, bests)
    assert checkpoints.steps() == kept
    for step in kept:
        assert checkpoints.restore(small(), step).state["step"] == step


def test_more_are_kept_on_request_and_found_when_opened_again(tmp_path, open_at):
    save_all(open_at(tmp_path, keep=3), [1] * 6)
    assert open_at(tmp_path).steps() == [1, 4, 5, 6]


def test_the_newest_is_restored_with_its_progress(checkpoints):
    progress = {"best_step": 1, "best_metric": 0.1 + 0.2, "loss_sum": 1e-300}
    checkpoints.save(1, small(1), {"best_step": None})
    checkpoints.save(12, small(12), progress)
    restored = checkpoints.restore(small(0))
    assert (restored.step, restored.progress) == (12, progress)
    assert_equal_bits(restored.state, small(12))


def test_a_step_saved_again_is_replaced(checkpoints):
    checkpoints.save(3, small(3), {})
    checkpoints.save(3, small(30), {})
    assert checkpoints.restore(small()).state["step"] == 30


def test_differences_of_identity_are_named(checkpoints, tmp_path, open_at):
    save_all(checkpoints, [None])
    theirs = {"config": {"train": {"seed": 7, "epochs": 3}}, "schema": {"scenarios": ["a"]}}
    message = (
        f"checkpoint 1 in {tmp_path} belongs to another configuration or schema "
        "(config.train.seed: 0 -> 7; schema.scenarios: ['a', 'b'] -> ['a']); "
        "start a new run, or restore the old values"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        open_at(tmp_path, theirs).restore(small())


def test_nothing_there(checkpoints, tmp_path):
    message = f"^no checkpoint in {re.escape(str(tmp_path))}; it holds none$"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(small())


def test_a_missing_step_is_told_with_those_that_are_there(checkpoints):
    save_all(checkpoints, [None] * 3)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 1 in .*; it holds \[2, 3\]$"):
        checkpoints.restore(small(), 1)


def truncate(folder, pattern="*"):
    """Cuts every file to half its length."""
    for path in folder.rglob(pattern):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_arrays(folder):
    shutil.rmtree(folder / "state")


def truncate_arrays(folder):
    truncate(folder / "state")


def truncate_data(folder):
    """Only the files that hold numbers: what describes them stays whole."""
    truncate(folder / "state", "d/*")


# Orbax drops the reads that a failed one makes pointless; collected here, they warn here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [delete_arrays, truncate_arrays, truncate_data])
def test_a_damaged_checkpoint_is_told_with_its_cure(checkpoints, tmp_path, open_at, damage):
    save_all(checkpoints, [None, None])
    damage(tmp_path / "2")
    again = open_at(tmp_path)
    message = (
        rf"^checkpoint 2 in {re.escape(str(tmp_path))} can't be read \([^)].*\); "
        "delete the folder 2 to go on from an older one$"
    )
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)):
        again.restore(small())
    gc.collect()
    shutil.rmtree(tmp_path / "2")
    assert open_at(tmp_path).restore(small()).state["step"] == 1


def test_damaged_metrics_are_told_when_the_directory_is_opened(checkpoints, tmp_path, open_at):
    save_all(checkpoints, [None, None])
    truncate(tmp_path / "2" / "metrics")
    message = (
        rf"^the checkpoints in {re.escape(str(tmp_path))} can't be listed, for the metrics of one "
        r"are damaged \(.*\); delete the folder of that step, likely the newest$"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path, IDENTITY)
    shutil.rmtree(tmp_path / "2")
    assert open_at(tmp_path).steps() == [1]


@pytest.mark.parametrize("lost", ["delete", "truncate"])
def test_a_checkpoint_without_its_identity_is_refused(checkpoints, tmp_path, open_at, lost):
    save_all(checkpoints, [None])
    path = tmp_path / "1" / "_CHECKPOINT_METADATA"
    path.unlink() if lost == "delete" else path.write_bytes(path.read_bytes()[:-40])
    message = f"^checkpoint 1 in {re.escape(str(tmp_path))} was not written by d3jax; choose"
    with pytest.raises(CheckpointError, match=message):
        open_at(tmp_path).restore(small())


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = (
        rf"^can't write checkpoints to {re.escape(str(tmp_path))}/file \(File exists\); "
        "choose another run directory or make this one writable$"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "file", IDENTITY)
    with pytest.raises(CheckpointError, match=r"file/below \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "below", IDENTITY)


def test_donated_steps_do_not_reach_into_a_save_under_way(checkpoints, schema, trainer_on):
    trainer = trainer_on(8)
    state = trainer.init()
    batches = [place_batch(trainer.mesh, make_batch(schema, 64, seed)) for seed in range(6)]
    state, _ = trainer.train_step(state, batches[0])
    before = host_copy(state)
    checkpoints.save(1, state, {})
    for batch in batches[1:]:
        state, _ = trainer.train_step(state, batch)
    restored = checkpoints.restore(trainer.abstract).state
    assert_equal_bits(restored, before)
    assert not np.array_equal(state.params.embedding.table, before.params.embedding.table)


def test_a_reader_leaves_a_save_under_way_alone_and_the_next_writer_clears_it(tmp_path, open_at):
    save_all(open_at(tmp_path), [None])
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    reader = open_at(tmp_path, writer=False)
    assert reader.steps() == [1]
    assert reader.restore(small()).step == 1
    assert unfinished.exists()
    open_at(tmp_path)
    deadline = time.monotonic() + 30
    while unfinished.exists():  # Orbax removes it in a thread
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def saved_on_eight(schema, trainer_on, tmp_path_factory):
    """The directory, the state saved there, and the losses of the four steps that followed."""
    directory = tmp_path_factory.mktemp("eight")
    trainer = trainer_on(8)
    state, _ = losses_of(trainer, trainer.init(), schema, range(3))
    saved = host_copy(state)
    checkpoints = Checkpoints(directory, IDENTITY)
    checkpoints.save(3, state, {"step": 3})
    checkpoints.close()
    _, losses = losses_of(trainer, state, schema, range(3, 7))
    return directory, saved, losses


def losses_of(trainer, state, schema, steps):
    losses = []
    for step in steps:
        batch = place_batch(trainer.mesh, make_batch(schema, 64, seed=step, padding=5))
        state, info = trainer.train_step(state, batch)
        losses.append(float(info.loss))
    return state, losses


@pytest.mark.parametrize("number", [1, 2, 8])
def test_saved_on_eight_devices_training_goes_on_with_any_number(
    saved_on_eight, open_at, schema, trainer_on, number
):
    directory, saved, expected = saved_on_eight
    trainer = trainer_on(number)
    restored = open_at(directory).restore(trainer.abstract)
    assert_equal_bits(restored.state, saved)
    for leaf in jax.tree.leaves(restored.state):
        assert leaf.sharding.device_set == set(devices(number))
    _, losses = losses_of(trainer, restored.state, schema, range(3, 7))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    if number == 8:
        assert losses == expected, "on as many devices every bit is the same"
