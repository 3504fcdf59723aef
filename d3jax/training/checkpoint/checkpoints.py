"""Checkpoints through Orbax: everything a run needs to go on as if it had never stopped.

A checkpoint holds the train state as a flat dictionary of named arrays, and beside it, as JSON,
the loop's progress, what the run was configured as and a fingerprint of every array. Orbax writes
each under a temporary name and renames it when it is whole, so a kill at any moment leaves the
previous ones as they were. What comes back is compared with its fingerprints: of damaged
checkpoints none is used.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from d3jax.config import completed, differences
from d3jax.errors import CheckpointError
from d3jax.parameters import Tree, named_leaves
from d3jax.training.checkpoint.fingerprint import Fingerprint, fingerprints, parse_fingerprints
from d3jax.training.checkpoint.integrity import (
    DamagedError,
    array_flaw,
    metadata_flaw,
    reading_flaw,
    sealed,
    unsealed,
)
from d3jax.training.checkpoint.storage import KeepLatestAndBest, open_storage, unheard

State = TypeVar("State")

DAMAGED = "damaged"
"""The folder, among the checkpoints, that damaged ones are moved to."""


class Restored(NamedTuple):
    """A checkpoint read back; `damaged` tells of each newer one that could not be used."""

    step: int
    state: Any
    progress: dict[str, Any]
    damaged: tuple[str, ...] = ()


class Writing(NamedTuple):
    """A write under way: of which step, and Orbax' promise of its end."""

    step: int
    response: Any


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run, in one directory.

    `identity` is what must be the same for a checkpoint to be continued: the run's configuration
    and schema, as JSON values. Only the process that trains is the `writer`, which removes
    what a kill left unfinished, and moves aside what is damaged: a reader can't tell the former
    from a save under way.
    """

    def __init__(
        self, directory: Path, identity: dict[str, Any], *, keep: int = 2, writer: bool = True
    ) -> None:
        self._identity = identity
        self._directory = directory
        self._writer = writer
        self._best_of: dict[int, int | None] = {}
        self._writing: Writing | None = None
        self._proven = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._orbax = open_storage(directory, KeepLatestAndBest(keep, self._best_of), writer)
        except OSError as error:
            raise CheckpointError(
                f"can't write checkpoints to {directory} ({error.strerror}); choose another "
                "run directory or make this one writable"
            ) from error
        if writer:
            self._best_of.update({step: self._best_step(step) for step in self.steps()})

    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, state: Tree, progress: dict[str, Any]) -> None:
        """Starts writing; training goes on meanwhile. Waits for the write before it, if any."""
        self.wait()
        arrays = named_leaves(state)
        metadata = {
            "progress": progress,
            "identity": self._identity,
            "fingerprints": fingerprints(arrays),
        }
        self._best_of[step] = progress.get("best_step")
        try:
            response = self._orbax.save_checkpointables_async(
                step,
                {"state": arrays},
                force=True,
                overwrite=True,
                custom_metadata=sealed(metadata),
            )
        except OSError as error:
            raise self._unwritable(error) from error
        if response is None:
            raise CheckpointError(f"Orbax declined to save step {step} in {self._directory}")
        self._writing = Writing(step, response)

    def restore(self, like: State, step: int | None = None) -> Restored:
        """The checkpoint of `step` (the newest whole one when None), placed as `like` is.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings; any number of devices will
        do. Raises `CheckpointError` when there is none, when it belongs to another configuration
        or schema (naming the differences), and `DamagedError` when the one asked for, or each of
        those on disk, is damaged.
        """
        self.wait()
        if step is not None:
            return self._read(self._existing(step), like)
        self._existing(None)
        flaws: dict[int, str] = {}
        for candidate in reversed(self.steps()):
            try:
                restored = self._read(candidate, like)
            except DamagedError as error:
                flaws[candidate] = error.flaw
            else:
                return restored._replace(damaged=self._pass_over(flaws, candidate))
        told = "; ".join(f"{step}: {flaw}" for step, flaw in flaws.items())
        raise CheckpointError(
            f"every checkpoint in {self._directory} is damaged ({told}); put one back from a "
            "copy, or start the run again"
        )

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of `step`, compared with its fingerprint: on the host, without a model.

        Raises `DamagedError`, or `CheckpointError` when it belongs to another configuration.
        """
        self.wait()
        saved = self._metadata(self._existing(step))["fingerprints"]
        target = {name: np.empty(array.shape, array.dtype) for name, array in saved.items()}
        return self._load(step, target, saved)

    def wait(self) -> None:
        """Until the write under way is on disk; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        try:
            with ExitStack() as stack:
                if writing is not None:
                    # Its thread and its event loop stay until the result is asked for.
                    stack.callback(writing.response.result)
                self._orbax.wait()
        except Exception as error:  # a background failure of any kind means it isn't saved
            raise self._unwritable(error) from error
        if writing is not None and not self._proven:
            self.prove(writing.step)

    def prove(self, step: int) -> None:
        """Raises `CheckpointError` unless all of `step` is found on disk, without reading it all.

        The first checkpoint is proven as soon as it is written, before hours go into others.
        """
        self._existing(step)

        def find() -> list[str]:
            found = self._orbax.checkpointables_metadata(step)
            arrays = found.metadata["state"] or {}
            return sorted(found.custom_metadata["fingerprints"].keys() - arrays.keys())

        if missing := self._reading(step, self._unreadable, find):
            raise self._unreadable(step, f"{len(missing)} arrays are missing, first {missing[0]}")
        self._proven = True

    def __exit__(self, *exception: object) -> None:
        """Closes them."""
        self.close()

    def close(self) -> None:
        """Waits, then releases Orbax' threads, also when the write has failed."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _read(self, step: int, like: State) -> Restored:
        metadata = self._metadata(step)
        target = {name: _abstract(leaf) for name, leaf in named_leaves(like).items()}
        self._check_layout(step, target, metadata["fingerprints"])
        loaded = self._load(step, target, metadata["fingerprints"])
        leaves = [loaded[name] for name in target]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, metadata["progress"])

    def _load(
        self, step: int, target: dict[str, Any], saved: dict[str, Fingerprint]
    ) -> dict[str, Any]:
        """The arrays, as the target has them, once they are known to be what was saved."""
        loaded = self._reading(
            step,
            self._damaged,
            lambda: self._orbax.load_checkpointables(step, {"state": target})["state"],
        )
        if flaw := array_flaw(fingerprints(loaded), saved):
            raise self._damaged(step, flaw)
        return loaded

    def _reading(
        self, step: int, refusal: Callable[[int, str], CheckpointError], read: Callable[[], Any]
    ) -> Any:
        """Return what `read` gives; raise a `refusal` where Orbax finds a file not as it was."""
        with unheard():
            try:
                return read()
            except Exception as error:  # of many kinds
                flaw = reading_flaw(error, self._folder(step))
            gc.collect()
        # Not from the error, which would hold what the failed read has left.
        raise refusal(step, flaw)

    def _metadata(self, step: int) -> dict[str, Any]:
        """The metadata of `step`, found whole, of this version and of this configuration."""
        metadata = self._reading(
            step,
            self._damaged,
            lambda: self._orbax.checkpointables_metadata(step).custom_metadata,
        )
        if unsealed(metadata):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} was written by an older version of "
                "d3jax, without fingerprints; start the run again"
            )
        if flaw := metadata_flaw(metadata):
            raise self._damaged(step, flaw)
        self._check_identity(step, metadata["identity"])
        return {**metadata, "fingerprints": parse_fingerprints(metadata["fingerprints"])}

    def _best_step(self, step: int) -> int | None:
        """The best step as `step` saw it; None where that can't be told."""
        try:
            return self._metadata(step)["progress"].get("best_step")
        except CheckpointError:
            return None

    def _pass_over(self, flaws: dict[int, str], used: int) -> tuple[str, ...]:
        """One message a damaged step; the writer moves their folders aside."""
        told = []
        for step, flaw in flaws.items():
            moved = f" Its folder is now {self._move_aside(step)}." if self._writer else ""
            told.append(
                f"checkpoint {step} in {self._directory} is damaged: {flaw}. "
                f"Step {used} is used instead.{moved}"
            )
        if flaws and self._writer:
            multihost_utils.sync_global_devices("damaged checkpoints are moved aside")
            self._orbax.reload()
        return tuple(told)

    def _move_aside(self, step: int) -> Path:
        """The first process moves the folder of `step` aside, so that it never counts again."""
        parent = self._directory / DAMAGED
        names = [str(step), *(f"{step}-{number}" for number in range(2, 1000))]
        target = next(parent / name for name in names if not (parent / name).exists())
        if jax.process_index() == 0:
            try:
                parent.mkdir(exist_ok=True)
                self._folder(step).rename(target)
            except OSError as error:
                raise self._unwritable(error) from error
        return target

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise CheckpointError(f"no {wanted} in {self._directory}; it holds {steps or 'none'}")
        return steps[-1] if step is None else step

    def _folder(self, step: int) -> Path:
        return self._directory.resolve() / str(step)

    def _damaged(self, step: int, flaw: str) -> DamagedError:
        return DamagedError(step, self._directory, flaw)

    def _unwritable(self, error: Exception) -> CheckpointError:
        self._orbax.reload()
        return CheckpointError(
            f"writing a checkpoint to {self._directory} failed ({error}); those on disk are whole: "
            f"{self.steps()}. Free some space or make the place writable, then resume"
        )

    def _unreadable(self, step: int, flaw: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {step} in {self._directory} was written, but can't be restored ({flaw}); "
            "choose another run directory, on another disk"
        )

    def _check_identity(self, step: int, theirs: dict[str, Any]) -> None:
        if changed := differences(completed(theirs), completed(self._identity)):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} belongs to another configuration or "
                f"schema ({'; '.join(changed)}); start a new run, or restore the old values"
            )

    def _check_layout(
        self, step: int, target: dict[str, Any], saved: dict[str, Fingerprint]
    ) -> None:
        ours, theirs = (
            {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
            for arrays in (target, saved)
        )
        if changed := differences(theirs, ours):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} has other arrays than this version of "
                f"d3jax trains ({'; '.join(changed)}); start the run again"
            )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
