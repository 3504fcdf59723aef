"""A file of a prepared directory is there, or the message says which is missing and the cure."""

from __future__ import annotations

from pathlib import Path

from d3jax.errors import DataError

AGAIN = "prepare the data again"


def existing(path: Path) -> Path:
    """Return `path`. Raises `DataError` when it is no file."""
    if not path.is_file():
        raise DataError(f"{path} is missing; {AGAIN}, or check that the path is right")
    return path
