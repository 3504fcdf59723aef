"""A disk that is full or read-only, told as such whichever library runs into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d3jax.errors import D3jaxError, OutputError

DRAFT = ".d3jax-"
"""The beginning of a name of what is not yet whole."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_SAID = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "max_temp_directory_size",
    "database or disk is full",
)
"""The words of DuckDB (the fourth of its spilled rows), TensorStore and SQLite."""
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_CLOSED_SAID = (
    "Read-only file system",
    "readonly database",
    "unable to open database file",
    "disk I/O error",
)


@contextmanager
def writing(out: Path, need: str = "some") -> Iterator[None]:
    """Raises `OutputError`, with the cure, where the block can't write `out` or what is beside it.

    `need` says how much space to free. What has nothing to do with `out` goes through.
    """
    try:
        yield
    except Exception as error:
        # An error of ours says enough, but where it names what has a passing name only.
        if isinstance(error, D3jaxError) and f"/{DRAFT}" not in str(error):
            raise
        roots = list(_causes(error))
        if any(_is_full(root) for root in roots):
            raise OutputError(
                f"no space is left on the disk of {out}; free {need}, or choose another disk"
            ) from error
        if told := next((said for root in roots if (said := _closed(root, out))), None):
            raise OutputError(
                f"can't write {out} ({told}); make it writable, or choose another place"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_full(error: BaseException) -> bool:
    is_full = isinstance(error, OSError) and error.errno in _FULL
    return is_full or any(said in str(error) for said in _FULL_SAID)


def _closed(error: BaseException, out: Path) -> str | None:
    """Why `out` can't be written; None when the error is about something else."""
    if not isinstance(error, OSError):
        return next((said for said in _CLOSED_SAID if said in str(error)), None)
    if error.filename is None:
        return error.strerror if error.errno in _CLOSED else None
    return error.strerror if _is_part(Path(os.fsdecode(error.filename)), out) else None


def _is_part(path: Path, out: Path) -> bool:
    """Return whether a path is `out`, below it, above it, or its name before it is whole."""
    path, out = path.absolute(), out.absolute()
    draft = any(part.startswith(DRAFT) for part in path.parts)
    return draft or path.is_relative_to(out) or out.is_relative_to(path)
