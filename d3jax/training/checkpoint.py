"""Checkpoints through Orbax: everything a run needs to go on as if it had never stopped.

A checkpoint holds the train state as a flat dictionary of named arrays, and beside it, as JSON,
the loop's progress and what the run was configured as. Orbax writes each under a temporary name
and renames it when it is whole, so a kill at any moment leaves the previous ones as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from d3jax.config import differences
from d3jax.errors import CheckpointError
from d3jax.parameters import Tree, named_leaves

State = TypeVar("State")


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any
    progress: dict[str, Any]


class KeepLatestAndBest:
    """Orbax' preservation policy: the newest checkpoints, and the best as each of them saw it."""

    def __init__(self, latest: int) -> None:
        self.latest = latest

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One verdict per checkpoint, oldest first."""
        newest = checkpoints[-self.latest :]
        keep = {checkpoint.step for checkpoint in newest}
        keep |= {(checkpoint.metrics or {}).get("best_step") for checkpoint in newest}
        return [checkpoint.step in keep for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, in one directory.

    `identity` is what must be the same for a checkpoint to be continued: the run's configuration
    and schema, as JSON values. Only the process that trains is the `writer`, which removes
    what a kill left unfinished: a reader can't tell that from a save under way.
    """

    def __init__(
        self, directory: Path, identity: dict[str, Any], *, keep: int = 2, writer: bool = True
    ) -> None:
        self._identity = identity
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"can't write checkpoints to {directory} ({error.strerror}); choose another "
                "run directory or make this one writable"
            ) from error
        try:
            self._orbax = ocp.training.Checkpointer(
                directory.resolve(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=KeepLatestAndBest(keep),
                cleanup_tmp_directories=writer,
            )
        except ValueError as error:  # a checkpoint's metrics are not the JSON they were
            raise CheckpointError(
                f"the checkpoints in {directory} can't be listed, for the metrics of one are "
                f"damaged ({error}); delete the folder of that step, likely the newest"
            ) from error

    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, state: Tree, progress: dict[str, Any]) -> None:
        """Starts writing; training goes on meanwhile. Waits for the write before it, if any."""
        self.wait()
        response = self._orbax.save_checkpointables_async(
            step,
            {"state": named_leaves(state)},
            force=True,
            overwrite=True,
            metrics={"best_step": progress.get("best_step")},
            custom_metadata={"progress": progress, "identity": self._identity},
        )
        if response is None:
            raise CheckpointError(f"Orbax declined to save step {step} in {self._directory}")

    def restore(self, like: State, step: int | None = None) -> Restored:
        """The checkpoint of `step` (the newest when None), placed as the arrays of `like` are.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings; any number of devices will
        do. Raises `CheckpointError` when there is none, when it belongs to another configuration
        or schema (naming the differences), or when it can't be read.
        """
        self.wait()
        step = self._existing(step)
        metadata = self._metadata(step)
        if not isinstance(metadata, dict) or "identity" not in metadata:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} was not written by d3jax; "
                "choose another run"
            )
        self._check_identity(step, metadata["identity"])
        target = {name: _abstract(leaf) for name, leaf in named_leaves(like).items()}
        try:
            loaded = self._orbax.load_checkpointables(step, {"state": target})["state"]
        except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
            raise self._unreadable(step, error) from error
        leaves = [loaded[name] for name in target]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, metadata["progress"])

    def wait(self) -> None:
        """Until the write under way is on disk; raises what went wrong with it."""
        try:
            self._orbax.wait()
        except Exception as error:  # a background failure of any kind means it isn't saved
            raise CheckpointError(
                f"writing a checkpoint to {self._directory} failed ({error}); "
                f"those on disk are whole: {self.steps()}"
            ) from error

    def close(self) -> None:
        """Waits, then releases Orbax' threads."""
        self.wait()
        self._orbax.close()

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise CheckpointError(f"no {wanted} in {self._directory}; it holds {steps or 'none'}")
        return steps[-1] if step is None else step

    def _metadata(self, step: int) -> Any:
        try:
            return self._orbax.metadata(step).custom_metadata
        except Exception as error:  # as many kinds as for the arrays
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {step} in {self._directory} can't be read "
            f"({error.__cause__ or error}); delete the folder {step} to go on from an older one"
        )

    def _check_identity(self, step: int, theirs: dict[str, Any]) -> None:
        if changed := differences(theirs, self._identity):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} belongs to another configuration or "
                f"schema ({'; '.join(changed)}); start a new run, or restore the old values"
            )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
