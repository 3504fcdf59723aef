"""Shuffled, sharded, resumable batches with Grain; the batch of a step is a pure function.

Batches are addressed by the global step, so to resume is to start at the next step, whatever the
number of reader processes then is. An epoch's order is a true permutation of all rows, computed
an index at a time: no array of the data's length is ever made. Rows that don't fit in memory are
read in blocks instead, and shuffled inside a window of them.
"""

from __future__ import annotations

import atexit
from collections.abc import Generator, Iterator
from mmap import mmap
from typing import NamedTuple, SupportsIndex
from weakref import WeakSet

import grain
import numpy as np
from absl import flags
from grain.experimental import DatasetOptions, WithOptionsIterDataset

from d3jax.batch import UNKNOWN, Batch
from d3jax.data.columns import Rows
from d3jax.errors import ConfigError, DataError

MAX_ROWS = 2**32 - 1
"""The shuffle computes in 32 bits, which is twice as fast as in 64."""

BLOCKS_PER_WINDOW = 16
"""A window mixes rows from so many places of the file; a block is the longest run read at once."""

_NO_SHARED_MEMORY = DatasetOptions(min_shm_size=2**62)
"""Batches of some 100 kB cross to this process faster in a pipe than in shared memory, which
Grain 0.2.18 also leaves behind, with a warning, when the program ends."""


def shuffle_index(
    index: np.ndarray, size: int, seed: tuple[int, ...], rounds: int = 4
) -> np.ndarray:
    """Return the place of each `index` in a random permutation of [0, size); int64.

    A Feistel network (Luby and Rackoff, 1988) permutes a x b >= size cells, where a and b are
    near the square root of size; a result outside [0, size) is put through it again, which ends
    because its orbit started inside (cycle walking; Black and Rogaway, 2002). Equal seeds give
    equal permutations. Raises `DataError` when size isn't in [1, 2^32 - 1].
    """
    if not 1 <= size <= MAX_ROWS:
        raise DataError(f"can't shuffle {size} rows; there must be 1 to {MAX_ROWS} in a split")
    keys = np.random.SeedSequence(seed).generate_state(2 * rounds).reshape(rounds, 2)
    left_size = np.uint32(np.ceil(np.sqrt(size)))
    right_size = np.uint32(-(-size // int(left_size)))
    result = np.array(index, np.uint32).ravel()
    walking = np.arange(result.size)
    while walking.size:
        left, right = np.divmod(result[walking], right_size)
        for left_key, right_key in keys:
            left = (left + _mix(right, left_key) % left_size) % left_size
            right = (right + _mix(left, right_key) % right_size) % right_size
        result[walking] = left * right_size + right
        walking = walking[result[walking] >= size]
    return result.astype(np.int64).reshape(np.shape(index))


def window_index(
    index: np.ndarray, size: int, seed: tuple[int, ...], window_rows: int
) -> np.ndarray:
    """Return the place of each `index` in a permutation that a disk can follow; int64.

    Blocks of `window_rows` / 16 neighbouring rows are put in random order, counted from a random
    row and around the end, so that no epoch cuts the rows as another does. The order is cut into
    windows, and places are permuted inside each: to walk through a window reads about 16 blocks
    once. `index` is one-dimensional and sorted. Raises `DataError` as `shuffle_index` does.
    """
    block_rows = -(-window_rows // BLOCKS_PER_WINDOW)
    place = np.empty(len(index), np.int64)
    for window in np.unique(index // window_rows):
        first = window * window_rows
        here = slice(*np.searchsorted(index, (first, first + window_rows)))
        rows = min(window_rows, size - first)
        place[here] = first + shuffle_index(index[here] - first, rows, (*seed, 2 + int(window)))
    block, row = np.divmod(place, block_rows)
    whole = block < size // block_rows  # the rest is shorter than a block and stays at the end
    if whole.any():
        block[whole] = shuffle_index(block[whole], size // block_rows, (*seed, 1))
    start = shuffle_index(np.zeros(1), size, seed)
    return (start + block * block_rows + row) % size


def _mix(value: np.ndarray, key: np.uint32) -> np.ndarray:
    """A hash of 32 bits, with the multipliers of xxHash and MurmurHash3."""
    value = (value ^ key) * np.uint32(0x9E3779B1)
    value ^= value >> np.uint32(15)
    value *= np.uint32(0x85EBCA77)
    return value ^ (value >> np.uint32(13))


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches that hold every row once; the last may be padded."""
    return -(-num_rows // batch_size)


class _OnDisk(NamedTuple):
    """A memory-mapped array by its address, for a reader process to map again."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def _address(array: np.ndarray) -> np.ndarray | _OnDisk:
    """The address of a whole mapped file; an array in memory, or a part of a map, as it is."""
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap)):
        return array
    return _OnDisk(str(array.filename), array.dtype, array.shape, array.offset)


class Gather:
    """Maps a global step to this process's share of its batch.

    Pickled into a reader process, it takes the addresses of memory-mapped columns along and not
    their contents.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        process_index: int,
        process_count: int,
        window_rows: int | None = None,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.window_rows = window_rows
        self.share = batch_size // process_count
        self.first = process_index * self.share

    def __call__(self, step: SupportsIndex) -> Batch:
        """The share [B / P] of the batch of `step`, which counts on across epochs."""
        num_rows = len(self.rows.label)
        epoch, index = divmod(int(step), steps_per_epoch(num_rows, self.batch_size))
        place = _places(num_rows, index * self.batch_size + self.first, self.share)
        return _take(self.rows, self._order(place, num_rows, epoch), self.share)

    def row(self, step: int, position: int) -> int:
        """Return the row of the data at a position of the whole batch of `step`."""
        num_rows = len(self.rows.label)
        epoch, index = divmod(step, steps_per_epoch(num_rows, self.batch_size))
        place = np.array([index * self.batch_size + position])
        return int(self._order(place, num_rows, epoch)[0])

    def _order(self, place: np.ndarray, num_rows: int, epoch: int) -> np.ndarray:
        if self.window_rows is None:
            return shuffle_index(place, num_rows, (self.seed, epoch))
        return window_index(place, num_rows, (self.seed, epoch), self.window_rows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "rows": [_address(column) for column in self.rows]}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        columns = (c.open() if isinstance(c, _OnDisk) else c for c in self.rows)
        self.rows = Rows(*columns)


def training_batches(
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
    window_rows: int | None = None,
) -> Generator[Batch, None, None]:
    """The batches of steps `start_step` to `stop_step - 1`, shuffled anew in each epoch.

    A process yields its contiguous share, B / P rows, of every global batch of `batch_size` rows.
    The stream doesn't depend on `workers`, the number of reader processes (0: a thread of this
    one), nor on `prefetch`, the batches each reads ahead. Where the rows don't fit in memory,
    every row of a batch costs a disk access; with `window_rows` the rows of a batch come from a
    window of so many, which is read in 16 runs of neighbours (`window_index`). Make the window
    fit in memory and a run much longer than the disk reads ahead: a million rows or more.

    Reader processes import the program's main module again, so a script guards its start with
    `if __name__ == "__main__"`. Close the generator when it isn't run to its end. The columns of
    `rows` are C-contiguous, as those of a prepared directory are; others would be copied whole for
    every batch. Raises `ConfigError` for a setting out of range and `DataError` when there are no
    rows.
    """
    _check(rows, batch_size, process_index, process_count)
    _at_least("seed", seed, 0)
    _at_least("workers", workers, 0)
    _at_least("prefetch", prefetch, 1)
    if window_rows is not None:
        _at_least("window_rows", window_rows, 1)
    _at_least("start_step", start_step, 0)
    _at_least("stop_step", stop_step, start_step)
    gather = Gather(rows, batch_size, seed, process_index, process_count, window_rows)
    steps = grain.MapDataset.range(start_step, stop_step).map(gather)
    batches = _closing(_ahead(steps, min(workers, stop_step - start_step), prefetch))
    _unfinished.add(batches)
    return batches


def evaluation_batches(
    rows: Rows, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """All rows once, in order; the last batch is padded to `batch_size`.

    A process yields its contiguous share of every batch, so all yield equally many. Raises
    `ConfigError` for a setting out of range.
    """
    _check(rows, batch_size, process_index, process_count)
    share = batch_size // process_count
    starts = range(process_index * share, len(rows.label) + process_index * share, batch_size)
    return (_take(rows, _places(len(rows.label), start, share), share) for start in starts)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _check(rows: Rows, batch_size: int, process_index: int, process_count: int) -> None:
    if len(rows.label) == 0:
        raise DataError("there are no rows to make batches of; prepare a split that isn't empty")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index {process_index} is outside [0, {process_count})")
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} can't be shared equally by {process_count} processes; "
            f"make it a positive multiple of {process_count}"
        )


_unfinished: WeakSet[Generator[Batch, None, None]] = WeakSet()


@atexit.register
def _close_unfinished() -> None:
    """Python would close them only after it has taken Grain's modules apart, with an error."""
    for batches in list(_unfinished):
        batches.close()


def _closing(dataset: grain.IterDataset[Batch]) -> Generator[Batch, None, None]:
    """Iterates, and stops Grain's threads and processes when the caller is done."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _ahead(steps: grain.MapDataset[Batch], workers: int, prefetch: int) -> grain.IterDataset[Batch]:
    """Reads ahead in `workers` processes, or in a thread of this one."""
    if not workers:
        return steps.to_iter_dataset(grain.ReadOptions(1, prefetch))
    # Grain 0.2.18 reads absl's flags, which a program without absl's main has never parsed.
    flags.FLAGS.mark_as_parsed()
    serial = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    piped = WithOptionsIterDataset(serial, _NO_SHARED_MEMORY)
    return piped.mp_prefetch(grain.MultiprocessingOptions(workers, prefetch))


def _places(num_rows: int, start: int, count: int) -> np.ndarray:
    """The places `start` to `start + count - 1`, as many of them as there are rows for."""
    return np.arange(start, max(start, min(start + count, num_rows)))


def _take(rows: Rows, index: np.ndarray, size: int) -> Batch:
    """The rows at `index` in a batch of `size`; the rest is padding: unknown ids, mask false."""
    batch = Batch(
        ids=np.full((size, rows.ids.shape[1]), UNKNOWN, np.int32),
        scenario=np.zeros(size, np.int32),
        label=np.zeros(size, np.float32),
        mask=np.arange(size) < index.size,
    )
    for source, target in zip(rows, batch[:3], strict=True):
        # `clip` only spares the copy that NumPy makes to check the index: three times as fast.
        np.take(source, index, axis=0, out=target[: index.size], mode="clip")
    return batch
