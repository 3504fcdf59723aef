"""The loader's batches against a row-by-row reading of the same rows, and its shuffle alone."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.batch import Batch
from d3jax.data.columns import Rows
from d3jax.data.loader import (
    BLOCKS_PER_WINDOW,
    MAX_ROWS,
    Gather,
    evaluation_batches,
    shuffle_index,
    steps_per_epoch,
    training_batches,
    window_index,
)
from d3jax.errors import ConfigError, DataError

NUM_ROWS, BATCH = 1003, 64


def numbered(num_rows: int = NUM_ROWS) -> Rows:
    """Rows that say which they are: ids (r + 1, 2r + 2), scenario r mod 3, label r mod 2."""
    row = np.arange(num_rows)
    return Rows(
        np.stack([row + 1, 2 * row + 2], axis=1).astype(np.int32),
        (row % 3).astype(np.int32),
        (row % 2).astype(np.float32),
    )


def mapped(rows: Rows, directory: Path) -> Rows:
    for name, column in zip(Rows._fields, rows, strict=True):
        np.save(directory / f"{name}.npy", column)
    return Rows(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in Rows._fields))


WINDOWS = pytest.mark.parametrize("window", [None, 100, 2000])


def train(rows: Rows, start: int, stop: int, **settings: int | None) -> list[Batch]:
    defaults = {"batch_size": BATCH, "seed": 7}
    return list(training_batches(rows, start_step=start, stop_step=stop, **defaults | settings))


def row_numbers(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.ids[batch.mask, 0] - 1 for batch in batches])


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        for left, right in zip(one, other, strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def feistel_by_hand(index: int, size: int, seed: tuple[int, ...], rounds: int = 4) -> int:
    """`shuffle_index` of one index in Python's unbounded integers."""
    keys = [int(key) for key in np.random.SeedSequence(seed).generate_state(2 * rounds)]
    rows = next(a for a in range(1, size + 1) if a * a >= size)
    cells = -(-size // rows)

    def mix(value: int, key: int) -> int:
        value = (value ^ key) * 0x9E3779B1 % 2**32
        value = (value ^ value >> 15) * 0x85EBCA77 % 2**32
        return value ^ value >> 13

    while True:
        left, right = divmod(index, cells)
        for at in range(rounds):
            left = (left + mix(right, keys[2 * at])) % rows
            right = (right + mix(left, keys[2 * at + 1])) % cells
        index = left * cells + right
        if index < size:
            return index


def window_by_hand(index: int, size: int, seed: tuple[int, int], window_rows: int) -> int:
    """`window_index` of one index, from blocks laid out one after the other."""
    block_rows = math.ceil(window_rows / 16)
    full = size // block_rows
    order = [feistel_by_hand(block, full, (*seed, 1)) for block in range(full)] + [full]
    start = feistel_by_hand(0, size, seed)
    lined_up = [
        (start + row) % size
        for block in order
        for row in range(block * block_rows, min(size, (block + 1) * block_rows))
    ]
    window, place = divmod(index, window_rows)
    rows = min(window_rows, size - window * window_rows)
    shuffled = feistel_by_hand(place, rows, (*seed, 2 + window))
    return lined_up[window * window_rows + shuffled]


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_shuffle_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    places = shuffle_index(np.arange(size), size, (seed, epoch))
    np.testing.assert_array_equal(np.sort(places), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 65_535, 65_536, 65_537, 1_000_003])
def test_shuffle_is_a_bijection_at_awkward_sizes(size: int) -> None:
    assert np.unique(shuffle_index(np.arange(size), size, (0, 0))).size == size


@pytest.mark.parametrize("size", [1, 10, 1003, 70_001])
def test_shuffle_equals_the_scalar_reference(size: int) -> None:
    index = np.unique(np.linspace(0, size - 1, 50).astype(int))
    expected = [feistel_by_hand(int(i), size, (3, 1)) for i in index]
    np.testing.assert_array_equal(shuffle_index(index, size, (3, 1)), expected)


def test_shuffle_is_uniform_and_uncorrelated() -> None:
    size, epochs = 6, 6000
    places = np.stack([shuffle_index(np.arange(size), size, (1, e)) for e in range(epochs)])
    for column in places.T:
        counts = np.bincount(column, minlength=size)
        assert ((counts - epochs / size) ** 2 / (epochs / size)).sum() < 25  # chi2(5), p = 1e-4
    order = shuffle_index(np.arange(100_000), 100_000, (1, 0))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.015


@given(
    size=st.integers(1, 3000),
    window=st.integers(1, 4000),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_windows_are_a_bijection(size: int, window: int, seed: int, epoch: int) -> None:
    places = window_index(np.arange(size), size, (seed, epoch), window)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(np.sort(places), np.arange(size))


@pytest.mark.parametrize(
    ("size", "window"), [(1, 1), (10, 4), (1003, 1), (1003, 100), (1003, 64), (1003, 5000)]
)
def test_windows_equal_the_scalar_reference(size: int, window: int) -> None:
    index = np.unique(np.linspace(0, size - 1, 40).astype(int))
    expected = [window_by_hand(int(i), size, (3, 1), window) for i in index]
    np.testing.assert_array_equal(window_index(index, size, (3, 1), window), expected)


def test_a_window_is_read_in_few_runs() -> None:
    size, window = 100_000, 4096
    places = window_index(np.arange(size), size, (1, 0), window)
    for start in range(0, size - window, window):
        rows = np.sort(places[start : start + window])
        runs = 1 + np.count_nonzero(np.diff(rows) > 1)
        assert runs <= BLOCKS_PER_WINDOW + 1  # one more where the end of the file is in it


def test_windows_mix_their_blocks_and_differ_between_epochs() -> None:
    size, window = 100_000, 16_384
    blocks = window // BLOCKS_PER_WINDOW
    first, second = (window_index(np.arange(size), size, (1, e), window) for e in range(2))
    assert (first == second).mean() < 0.001
    for order in (first, second):
        batch = order[1024:2048]
        counts = np.unique(batch // blocks, return_counts=True)[1]
        assert counts.size >= BLOCKS_PER_WINDOW
        assert counts.max() < 120  # 64 expected of a block
        assert abs(np.corrcoef(batch[:-1], batch[1:])[0, 1]) < 0.15
    windows = [set(order[:window].tolist()) for order in (first, second)]
    shared = len(windows[0] & windows[1]) / window
    assert shared < 0.5  # 0.16 expected
    cuts = [np.flatnonzero(np.diff(np.sort(order[:window])) > 1) for order in (first, second)]
    assert not np.array_equal(*cuts)


@pytest.mark.slow
def test_rows_that_come_first_change_with_the_epoch() -> None:
    size, epochs = 64, 4000
    place = np.zeros(1, int)
    firsts = [int(window_index(place, size, (5, e), 16)[0]) for e in range(epochs)]
    counts = np.bincount(firsts, minlength=size)
    assert ((counts - epochs / size) ** 2 / (epochs / size)).sum() < 115  # chi2(63), p = 1e-4


def test_shuffle_keeps_shape_and_depends_on_every_part_of_the_seed() -> None:
    index = np.arange(1000).reshape(10, 100)
    first = shuffle_index(index, 1000, (5, 0))
    assert first.shape == (10, 100)
    assert first.dtype == np.int64
    np.testing.assert_array_equal(first, shuffle_index(index, 1000, (5, 0)))
    for other in [(5, 1), (6, 0)]:
        assert (first == shuffle_index(index, 1000, other)).mean() < 0.02


def test_shuffle_reaches_the_largest_size_and_no_further() -> None:
    places = shuffle_index(np.arange(MAX_ROWS - 1000, MAX_ROWS), MAX_ROWS, (0,))
    assert np.unique(places).size == 1000
    assert 0 <= places.min() < places.max() < MAX_ROWS
    for size in (0, MAX_ROWS + 1):
        with pytest.raises(DataError, match=rf"can't shuffle {size} rows; there must be 1 to"):
            shuffle_index(np.arange(1), size, (0,))


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (1003, 64, 16)]
)
def test_steps_per_epoch(rows: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch) == steps


@WINDOWS
def test_an_epoch_holds_every_row_once_with_its_own_scenario_and_label(window: int | None) -> None:
    batches = train(numbered(), 0, 16, window_rows=window)
    seen = row_numbers(batches)
    np.testing.assert_array_equal(np.sort(seen), np.arange(NUM_ROWS))
    real = [Batch(*(column[batch.mask] for column in batch)) for batch in batches]
    np.testing.assert_array_equal(np.concatenate([b.ids[:, 1] for b in real]), 2 * seen + 2)
    np.testing.assert_array_equal(np.concatenate([b.scenario for b in real]), seen % 3)
    np.testing.assert_array_equal(np.concatenate([b.label for b in real]), seen % 2)


def test_the_last_batch_is_padded() -> None:
    last = train(numbered(), 15, 16)[0]
    real = NUM_ROWS - 15 * BATCH
    np.testing.assert_array_equal(last.mask, np.arange(BATCH) < real)
    for column in last:
        assert column.shape[0] == BATCH
        assert not column[real:].any()


@WINDOWS
def test_epochs_and_seeds_have_orders_of_their_own(window: int | None) -> None:
    rows = numbered()
    first, second = (
        row_numbers(train(rows, 0, 16, window_rows=window)),
        row_numbers(train(rows, 16, 32, window_rows=window)),
    )
    np.testing.assert_array_equal(np.sort(second), np.arange(NUM_ROWS))
    assert (first == second).mean() < 0.02
    assert (first == row_numbers(train(rows, 0, 16, seed=8, window_rows=window))).mean() < 0.02


def test_a_batch_is_the_shuffled_places_of_its_step() -> None:
    places = np.arange(3 * BATCH, 4 * BATCH)
    expected = [feistel_by_hand(int(place), NUM_ROWS, (7, 2)) for place in places]
    np.testing.assert_array_equal(row_numbers(train(numbered(), 35, 36)), expected)


def test_a_batch_of_windows_is_the_places_of_its_step() -> None:
    """Steps 3 to 5 of epoch 2, across the end of a window of 200 rows and into the next."""
    places = np.arange(3 * BATCH, 6 * BATCH)
    expected = [window_by_hand(int(place), NUM_ROWS, (7, 2), 200) for place in places]
    batches = train(numbered(), 35, 38, window_rows=200)
    np.testing.assert_array_equal(row_numbers(batches), expected)


@WINDOWS
def test_resuming_continues_the_same_stream(window: int | None) -> None:
    rows = numbered()
    whole = train(rows, 0, 40, window_rows=window)
    start = train(rows, 0, 13, window_rows=window)
    rest = train(rows, 13, 40, prefetch=1, window_rows=window)
    assert_same(start + rest, whole)
    assert train(rows, 5, 5) == []


@pytest.mark.parametrize("count", [2, 4])
@WINDOWS
def test_processes_share_the_global_batches(count: int, window: int | None) -> None:
    rows = numbered()
    shares = [
        train(rows, 10, 20, process_index=p, process_count=count, window_rows=window)
        for p in range(count)
    ]
    joined = [
        Batch(*(np.concatenate(part) for part in zip(*step, strict=True)))
        for step in zip(*shares, strict=True)
    ]
    assert_same(joined, train(rows, 10, 20, window_rows=window))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.slow
def test_reader_processes_give_the_same_stream_and_stop_when_closed(
    tmp_path: Path, window: int | None
) -> None:
    rows = mapped(numbered(), tmp_path)
    assert_same(
        train(rows, 9, 30, workers=2, window_rows=window),
        train(numbered(), 9, 30, window_rows=window),
    )
    settings = {
        "batch_size": BATCH,
        "seed": 7,
        "start_step": 0,
        "stop_step": 10**9,
        "window_rows": window,
    }
    with closing(training_batches(rows, workers=2, **settings)) as batches:
        first = next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    assert type(first.ids) is np.ndarray
    assert_same([first], train(rows, 0, 1, window_rows=window))


def test_a_thread_reader_stops_when_closed() -> None:
    before = set(threading.enumerate())
    settings = {"batch_size": BATCH, "seed": 7, "start_step": 0, "stop_step": 10**9}
    with closing(training_batches(numbered(), **settings)) as batches:
        next(batches)
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left if "Pool" not in thread.name)


@pytest.mark.slow
def test_a_program_that_leaves_early_ends_quietly(tmp_path: Path) -> None:
    script = tmp_path / "leave.py"
    script.write_text(
        "import jax\n"
        "import numpy as np\n"
        "from d3jax.data.columns import Rows\n"
        "from d3jax.data.loader import training_batches\n"
        "if __name__ == '__main__':\n"
        "    rows = Rows(np.ones((999, 3), 'i4'), np.zeros(999, 'i4'), np.ones(999, 'f4'))\n"
        "    for workers in (0, 2):\n"
        "        batches = training_batches(rows, batch_size=8, seed=0, start_step=0,\n"
        "                                   stop_step=10**6, workers=workers)\n"
        "        print(next(batches).label.sum())\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout == "8.0\n8.0\n"
    assert done.stderr == ""


def test_a_pickled_gather_carries_addresses_not_rows(tmp_path: Path) -> None:
    gather = Gather(mapped(numbered(50_000), tmp_path), BATCH, 7, 0, 1)
    pickled = pickle.dumps(gather)
    assert len(pickled) < 2000
    assert_same([pickle.loads(pickled)(5)], [gather(5)])


def test_a_part_of_a_map_keeps_its_place_when_pickled(tmp_path: Path) -> None:
    whole = mapped(numbered(), tmp_path)
    gather = Gather(Rows(*(column[100:500] for column in whole)), BATCH, 7, 0, 1)
    again = pickle.loads(pickle.dumps(gather))
    assert_same([again(1)], [gather(1)])
    assert again(1).ids[:, 0].min() > 100


@WINDOWS
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, window: int | None) -> None:
    count = 20_000_000
    ids = np.lib.format.open_memmap(tmp_path / "ids.npy", "w+", np.int32, (count, 4))
    label = np.lib.format.open_memmap(tmp_path / "label.npy", "w+", np.float32, (count,))
    gather = Gather(Rows(ids, label.view(np.int32), label), 1024, 0, 0, 1, window)
    tracemalloc.start()
    gather(3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_reads_in_order_and_pads_the_end(count: int) -> None:
    rows = numbered(130)
    shares = [
        list(evaluation_batches(rows, batch_size=64, process_index=p, process_count=count))
        for p in range(count)
    ]
    assert [len(share) for share in shares] == [3] * count
    steps = zip(*shares, strict=True)
    joined = [Batch(*(np.concatenate(part) for part in zip(*step, strict=True))) for step in steps]
    np.testing.assert_array_equal(row_numbers(joined), np.arange(130))
    assert [int(batch.mask.sum()) for batch in joined] == [64, 64, 2]
    for batch in joined:
        assert batch.ids.shape == (64, 2)
    for column in joined[-1]:
        assert not column[2:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 can't be shared equally by 1 processes"),
        (
            {"batch_size": 10, "process_count": 4},
            "batch_size 10 can't be shared equally by 4 .*; make it a positive multiple of 4",
        ),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 is outside \[0, 2\)"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"prefetch": 0}, "prefetch is 0; it must be at least 1"),
        ({"window_rows": 0}, "window_rows is 0; it must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(numbered(), 0, 1, **settings)


def test_steps_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="start_step is -1; it must be at least 0"):
        train(numbered(), -1, 1)
    with pytest.raises(ConfigError, match="stop_step is 3; it must be at least 4"):
        train(numbered(), 4, 3)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to make batches of; prepare a split that isn't"):
        train(numbered(0), 0, 1)
    with pytest.raises(DataError, match="no rows to make batches of; prepare a split that isn't"):
        evaluation_batches(numbered(0), batch_size=4)


@WINDOWS
def test_a_row_of_a_batch_can_be_looked_up_without_the_batch(window: int | None) -> None:
    rows = numbered()
    gather = Gather(rows, BATCH, seed=7, process_index=0, process_count=1, window_rows=window)
    for step in (0, 14, 15, 16, 40):
        [batch] = train(rows, step, step + 1, window_rows=window)
        for position in (0, 17, int(batch.mask.sum()) - 1):
            assert gather.row(step, position) == batch.ids[position, 0] - 1
