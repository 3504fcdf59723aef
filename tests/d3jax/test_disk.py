"""A full or closed disk is told as one, and everything else is left to whom it concerns."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from d3jax.disk import writing
from d3jax.errors import DataError, OutputError

OUT = Path("/data/out")


def failed(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, "why")


@pytest.mark.parametrize(
    "error",
    [
        failed(errno.ENOSPC),
        failed(errno.EDQUOT, "/elsewhere/file"),
        failed(errno.EFBIG),
        RuntimeError("IO Error: Could not write file: No space left on device"),
        RuntimeError("... this limit was set by the 'max_temp_directory_size' setting"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk(error: Exception) -> None:
    message = r"^no space is left on the disk of /data/out; free much, or choose another disk$"
    with pytest.raises(OutputError, match=message), writing(OUT, "much"):
        raise error
    with pytest.raises(OutputError, match="free some, or"), writing(OUT):
        raise RuntimeError("wrapped by a library") from error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failed(errno.EACCES, "/data/out/file"), "Permission denied"),
        (failed(errno.EROFS, "/data"), "Read-only file system"),
        (failed(errno.ENOTDIR, "/data/.d3jax-ab12/new"), "Not a directory"),
        (failed(errno.EROFS), "why"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "readonly database"),
    ],
)
def test_a_place_that_cannot_be_written(error: Exception, told: str) -> None:
    message = rf"^can't write /data/out \({told}\); make it writable, or choose another place$"
    with pytest.raises(OutputError, match=message), writing(OUT):
        raise error


def test_the_outermost_place_is_named() -> None:
    inner = Path("/data/.d3jax-ab12/new/run")
    with (
        pytest.raises(OutputError, match="no space is left on the disk of /data/out; free some"),
        writing(OUT),
        writing(inner),
    ):
        raise failed(errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        failed(errno.EACCES, "/data/raw.csv"),
        failed(errno.ENOENT, "/data/outer/file"),
        failed(errno.ENOENT),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        KeyError("x"),
        DataError("No space left on device, says a message of ours"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_about_something_else(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, writing(OUT):
        raise error
    assert raised.value is error
