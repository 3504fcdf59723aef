"""Orbax as checkpoints use it: it takes paths as they are, and says nothing beside its errors."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils.epath.gpath import PosixGPath
from orbax.checkpoint import v1 as ocp

from d3jax.errors import CheckpointError


class KeepLatestAndBest:
    """Orbax' preservation policy: the newest checkpoints, and the best as each of them saw it.

    `best_of` maps a step to the best step when it was saved.
    """

    def __init__(self, latest: int, best_of: Mapping[int, int | None]) -> None:
        self.latest = latest
        self.best_of = best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One verdict per checkpoint, oldest first."""
        keep = {checkpoint.step for checkpoint in checkpoints[-self.latest :]}
        keep |= {self.best_of.get(step) for step in keep}
        return [checkpoint.step in keep for checkpoint in checkpoints]


class LiteralPath(PosixGPath):
    """A path whose own characters mean nothing, where Orbax looks for files by a pattern."""

    def glob(self, pattern: str) -> Iterator[LiteralPath]:
        """The files below this folder, however it is called, that match."""
        return map(type(self), Path(self).glob(pattern))

    @property
    def _uri_scheme(self) -> None:
        """No path is a bucket's, also when it begins with the folder /gs or /s3."""


def open_storage(directory: Path, policy: KeepLatestAndBest, writer: bool) -> Any:
    """Orbax' checkpointer for `directory`, which must exist; a `writer` clears unfinished saves.

    Raises `CheckpointError` for a path that can't hold checkpoints.
    """
    check_storable(directory)
    context = ocp.Context()
    # In the background, a folder that can't be made would hold Orbax' threads for five minutes.
    context.asynchronous.create_directories_asynchronously = False
    return ocp.training.Checkpointer(
        LiteralPath(directory.resolve()),
        context=context,
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policy,
        cleanup_tmp_directories=writer,
    )


@contextmanager
def unheard() -> Iterator[None]:
    """Silences what Python says of the coroutines and event loops that a failed read of Orbax
    leaves, when it collects them in the block."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def check_storable(directory: Path) -> None:
    """Raises `CheckpointError` for a path that TensorStore, which writes the arrays, changes."""
    path = directory.resolve()
    flaw = None
    if "\\" in str(path):
        flaw = "has a backslash in it"
    elif any(part.endswith("gs:") for part in path.parts):
        flaw = "has a folder whose name ends in gs:, which stands for a bucket"
    elif not _is_text(str(path)):
        flaw = "is no UTF-8 text"
    if flaw:
        raise CheckpointError(
            f"checkpoints can't be kept in {str(path)!r}: it {flaw}; choose another run directory"
        )


def _is_text(path: str) -> bool:
    """Return whether the path is valid UTF-8; Python has surrogates for those that aren't."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Return whether a message is not Orbax', which logs all that it raises, with a traceback."""
    return "/orbax/" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_of_orbax)
