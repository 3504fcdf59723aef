"""Checkpoints: which are kept, what is refused and how, and that what comes back is exact."""

import dataclasses
import errno
import gc
import os
import re
import resource
import shutil
import sys
import threading
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config import TrainConfig
from d3jax.errors import CheckpointError
from d3jax.parameters import named_leaves
from d3jax.parts import build_trainer
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.checkpoint.fingerprint import fingerprints
from d3jax.training.checkpoint.integrity import DamagedError
from d3jax.training.checkpoint.storage import LiteralPath
from d3jax.training.sharding import make_mesh, place_batch, replicate
from tests.cases import cases
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
    arrays = {"kernel": jnp.full((3, 2), value, jnp.float32), "step": jnp.int32(value)}
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


def test_a_setting_that_came_later_is_no_difference(checkpoints, tmp_path, open_at):
    save_all(checkpoints, [None])
    train = {**IDENTITY["config"]["train"], "deterministic": True}
    now = {**IDENTITY, "config": {"train": train}}
    assert open_at(tmp_path, now).restore(small()).step == 1
    other = {**IDENTITY, "config": {"train": {**train, "deterministic": False}}}
    with pytest.raises(CheckpointError, match=r"\(config.train.deterministic: True -> False\)"):
        open_at(tmp_path, other).restore(small())


def test_nothing_there(checkpoints, tmp_path):
    message = f"^no checkpoint in {re.escape(str(tmp_path))}; it holds none$"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(small())


def test_a_missing_step_is_told_with_those_that_are_there(checkpoints):
    save_all(checkpoints, [None] * 3)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 1 in .*; it holds \[2, 3\]$"):
        checkpoints.restore(small(), 1)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory of steps 1 and 2, whose arrays are large enough to be stored by themselves."""
    directory = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(directory, IDENTITY)
    for step in (1, 2):
        checkpoints.save(step, large(step), {"step": step, "best_step": 1})
    checkpoints.close()
    return directory


def large(value=1):
    """A state of random numbers, which compression can't make small, in three types."""
    draw = np.random.default_rng(value).normal(size=(200, 80)).astype(np.float32)
    arrays = {
        "bias": jnp.asarray(draw[0], jnp.bfloat16),
        "kernel": jnp.asarray(draw),
        "mask": jnp.asarray(draw[1] > 0),
        "step": jnp.int32(value),
    }
    return replicate(make_mesh(), arrays)


def flip(path, place=None):
    """Turns one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def files_below(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


# Orbax drops the reads that a failed one makes pointless; collected here, they warn here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", cases([flip, truncate, empty, delete], quick=[flip, delete]))
def test_damage_to_any_file_is_named_or_harmless(two_steps, tmp_path, damage):
    files = [path.relative_to(two_steps) for path in files_below(two_steps / "2")]
    assert len(files) >= 10
    harmless = set()
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(two_steps, copy)
        damage(copy / name)
        reader = Checkpoints(copy, IDENTITY, writer=False)
        restored = reader.restore(large(0))
        reader.close()
        assert_equal_bits(restored.state, large(restored.step))
        assert restored.progress["step"] == restored.step
        if restored.step == 2:
            harmless.add(name.name)
            assert restored.damaged == ()
        else:
            (told,) = restored.damaged
            assert re.fullmatch(
                rf"checkpoint 2 in {re.escape(str(copy))} is damaged: .*(state/|_METADATA|"
                r"array (bias|kernel|mask|step)).*\. Step 1 is used instead\.",
                told,
            ), told
            assert "/tmp" not in told.partition("is damaged")[2]
    gc.collect()
    assert harmless <= {
        "commit_success.txt",
        "_sharding",
        "process_0",
        *names_of_process(two_steps),
    }


def names_of_process(directory):
    """The files that Orbax leaves behind when it merges what each process wrote."""
    return {path.name for path in (directory / "2" / "state" / "ocdbt.process_0").rglob("*")}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_any_byte_of_the_arrays_may_be_wrong(two_steps, tmp_path, open_at):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    reader = open_at(tmp_path, writer=False)
    file = max(files_below(tmp_path / "2" / "state"), key=lambda path: path.stat().st_size)
    size, told = file.stat().st_size, []
    for place in range(5, size, size // 25):
        flip(file, place)
        restored = reader.restore(large(0))
        assert_equal_bits(restored.state, large(restored.step))
        told += restored.damaged
        flip(file, place)
    gc.collect()
    silent = [message for message in told if "array kernel has other numbers" in message]
    assert len(silent) > 15, "Orbax gives most of them back without a word"
    assert reader.restore(large(0)).step == 2


def test_the_array_whose_numbers_changed_is_named(tmp_path, open_at):
    checkpoints = open_at(tmp_path)
    save_all(checkpoints, [None])
    metadata = tmp_path / "1" / "_CHECKPOINT_METADATA"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "d3jax.training.checkpoint.checkpoints.fingerprints",
            lambda arrays: fingerprints({**arrays, "kernel": arrays["kernel"] + 1}),
        )
        checkpoints.save(2, small(2), {})
        checkpoints.wait()
    message = (
        f"checkpoint 2 in {tmp_path} is damaged: array kernel has other numbers than were "
        "written; put its folder back from a copy, or delete it to go on from an older one"
    )
    with pytest.raises(DamagedError, match=f"^{re.escape(message)}$"):
        checkpoints.restore(small(), 2)
    with pytest.raises(DamagedError, match=f"^{re.escape(message)}$"):
        checkpoints.arrays(2)
    assert metadata.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"best_step": 1', '"best_step": 2'),
        ('"seed": 0', '"seed": 1'),
        ("float32", "float64"),
        ('"digest"', '"digesu"'),
        ('"fingerprints"', '"fingerprinta"'),
        ('"custom_metadata"', '"custom_metadatb"'),
    ],
)
def test_metadata_that_changed_is_damage(two_steps, tmp_path, open_at, old, new):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "2" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    restored = open_at(tmp_path, writer=False).restore(large())
    assert restored.step == 1
    assert "is damaged: _CHECKPOINT_METADATA " in restored.damaged[0]


def test_the_writer_moves_damaged_folders_aside_and_saves_those_steps_again(tmp_path, open_at):
    save_all(open_at(tmp_path, keep=4), [None] * 4)
    for step in (3, 4):
        delete(tmp_path / str(step) / "_CHECKPOINT_METADATA")
    reader = open_at(tmp_path, writer=False)
    assert [told.partition(" is")[0] for told in reader.restore(small()).damaged] == [
        f"checkpoint {step} in {tmp_path}" for step in (4, 3)
    ]
    assert reader.steps() == [1, 2, 3, 4]
    writer = open_at(tmp_path, keep=4)
    told = writer.restore(small()).damaged
    assert told[0].endswith(f"Step 2 is used instead. Its folder is now {tmp_path}/damaged/4.")
    assert writer.steps() == [1, 2]
    for step in (3, 4):
        writer.save(step, small(step), {})
    writer.wait()
    delete(tmp_path / "4" / "_CHECKPOINT_METADATA")
    assert writer.restore(small()).damaged[0].endswith(f"is now {tmp_path}/damaged/4-2.")
    assert writer.steps() == open_at(tmp_path).steps() == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "4", "4-2"]


def test_when_all_are_damaged_each_is_told_and_none_is_moved(tmp_path, open_at):
    writer = open_at(tmp_path)
    save_all(writer, [None, None])
    for step in (1, 2):
        empty(tmp_path / str(step) / "_CHECKPOINT_METADATA")
    flaw = "_CHECKPOINT_METADATA is missing or unreadable, or it was not written by d3jax"
    message = (
        f"every checkpoint in {tmp_path} is damaged (2: {flaw}; 1: {flaw}); "
        "put one back from a copy, or start the run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        writer.restore(small())
    assert writer.steps() == [1, 2]
    assert not (tmp_path / "damaged").exists()


def test_a_damaged_best_does_not_make_the_policy_forget_the_other(tmp_path, open_at):
    save_all(open_at(tmp_path), [1, 1, 1])
    delete(tmp_path / "3" / "_CHECKPOINT_METADATA")
    again = open_at(tmp_path)
    assert again.restore(small()).step == 2
    again.save(3, small(3), {"best_step": 1})
    again.save(4, small(4), {"best_step": 3})
    again.wait()
    assert again.steps() == [1, 3, 4]


def test_another_configuration_is_no_damage(checkpoints, tmp_path, open_at):
    save_all(checkpoints, [None, None])
    theirs = {**IDENTITY, "schema": {"scenarios": ["a"]}}
    with pytest.raises(CheckpointError, match="belongs to another configuration") as caught:
        open_at(tmp_path, theirs).restore(small())
    assert not isinstance(caught.value, DamagedError)


def test_other_arrays_are_no_damage(checkpoints, tmp_path):
    save_all(checkpoints, [None])
    other = replicate(make_mesh(), {"kernel": jnp.ones((3, 4)), "step": jnp.int32(0)})
    message = (
        f"checkpoint 1 in {tmp_path} has other arrays than this version of d3jax trains "
        "(kernel: float32[3, 2] -> float32[3, 4]); start the run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$") as caught:
        checkpoints.restore(other)
    assert not isinstance(caught.value, DamagedError)


def test_a_checkpoint_without_fingerprints_is_refused(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "d3jax.training.checkpoint.checkpoints.sealed",
        lambda metadata: {name: metadata[name] for name in ("progress", "identity")},
    )
    monkeypatch.setattr(Checkpoints, "prove", lambda self, step: None)
    save_all(checkpoints, [None])
    message = (
        f"checkpoint 1 in {tmp_path} was written by an older version of d3jax, "
        "without fingerprints; start the run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$") as caught:
        checkpoints.restore(small())
    assert not isinstance(caught.value, DamagedError)


def test_arrays_are_read_on_the_host_without_a_model(two_steps, open_at):
    arrays = open_at(two_steps, writer=False).arrays(2)
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert_equal_bits(arrays, large(2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_arrays_tells_of_damage_without_moving_anything(two_steps, tmp_path, open_at):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    for path in files_below(tmp_path / "2" / "state" / "d"):
        truncate(path)
    checkpoints = open_at(tmp_path)
    flaw = r"is damaged: .* local file \"state/d/[0-9a-f]+\": Requested byte range"
    with pytest.raises(DamagedError, match=flaw):
        checkpoints.arrays(2)
    gc.collect()
    assert checkpoints.steps() == [1, 2]
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 in .*; it holds \[1, 2\]$"):
        checkpoints.arrays(9)


def test_what_a_failed_read_leaves_is_collected_in_silence(checkpoints, monkeypatch):
    """Such as coroutines of Orbax, of which Python complains when it comes across them."""
    save_all(checkpoints, [None])

    async def never_awaited():
        pass

    def fail(*arguments, **options):
        cycle = [never_awaited()]
        cycle.append(cycle)
        raise ValueError("no zarr.json")

    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    monkeypatch.setattr(checkpoints._orbax, "load_checkpointables", fail)
    with pytest.raises(DamagedError, match=r"no zarr\.json") as raised:
        checkpoints.restore(small(), 1)
    gc.collect()
    assert not complaints
    assert raised.value.__context__ is None
    never_awaited().close()


@pytest.fixture
def small_files():
    """No file may grow beyond 100,000 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_checkpoints_before_are_whole(tmp_path, open_at, small_files):
    checkpoints = open_at(tmp_path)
    save_all(checkpoints, [None])
    noise = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
    huge = replicate(make_mesh(), {"kernel": jnp.asarray(noise), "step": jnp.int32(2)})
    checkpoints.save(2, huge, {})
    message = (
        rf"^writing a checkpoint to {re.escape(str(tmp_path))} failed \(.*File too large.*\); "
        r"those on disk are whole: \[1\]\. Free"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.wait()
    small_files()
    assert checkpoints.restore(small()).step == 1
    checkpoints.save(2, small(2), {})
    assert checkpoints.restore(small()).step == 2


def test_a_directory_that_became_read_only_is_told(tmp_path, open_at, monkeypatch):
    checkpoints = open_at(tmp_path)
    save_all(checkpoints, [None])

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    with monkeypatch.context() as patch:
        for maker in ("mkdir", "makedirs"):
            patch.setattr(os, maker, refuse)
        message = r"failed \(.*Read-only file system.*\); those on disk are whole: \[1\]\. Free"
        with pytest.raises(CheckpointError, match=message):
            checkpoints.save(2, small(2), {})
    assert checkpoints.restore(small()).step == 1


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


def resources():
    """How many files are open, and how many threads run."""
    gc.collect()
    return len(os.listdir("/dev/fd")), threading.active_count()


def assert_no_more_than(then):
    """At once, or soon: a thread that was told to end takes a moment, also one of another test."""
    deadline = time.monotonic() + 5
    while (now := resources()) != then and time.monotonic() < deadline:
        if all(ours <= theirs for ours, theirs in zip(now, then, strict=True)):
            return
        time.sleep(0.02)
    assert now == then


def test_saves_leave_no_file_and_no_thread_behind(tmp_path, open_at, small_files):
    before = resources()
    checkpoints = open_at(tmp_path)
    save_all(checkpoints, [None])
    opened = resources()
    save_all(checkpoints, [None] * 10)
    assert_no_more_than(opened)
    noise = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
    huge = replicate(make_mesh(), {"kernel": jnp.asarray(noise), "step": jnp.int32(2)})
    for step in range(11, 14):
        checkpoints.save(step, huge, {})
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.wait()
    assert_no_more_than(opened)
    checkpoints.save(14, huge, {})
    with pytest.raises(CheckpointError, match="File too large"):
        checkpoints.close()
    assert_no_more_than(before)


def test_a_first_checkpoint_that_does_not_come_back_is_told_at_once(tmp_path, open_at, monkeypatch):
    checkpoints = open_at(tmp_path)
    with monkeypatch.context() as patch:
        # As where a name means something to Orbax: it writes elsewhere than it reads.
        patch.setattr(LiteralPath, "glob", lambda self, pattern: iter(()))
        checkpoints.save(1, small(1), {})
        message = (
            rf"^checkpoint 1 in {re.escape(str(tmp_path))} was written, but can't be restored "
            r"\(2 arrays are missing, first kernel\); "
            "choose another run directory, on another disk$"
        )
        with pytest.raises(CheckpointError, match=message):
            checkpoints.wait()
    checkpoints.save(2, small(2), {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "2" / "state")
    with pytest.raises(CheckpointError, match=r"checkpoint 2 .* can't be restored"):
        checkpoints.prove(2)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*; it holds \[1, 2\]"):
        checkpoints.prove(3)


@pytest.mark.slow
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
