"""A full disk, told as such whichever library runs into it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d3jax.errors import DataError

_SAID = ("No space left on device", "max_temp_directory_size")
"""What the engines say, the second one DuckDB of its spilled rows."""


@contextmanager
def full_disk_named(out: Path) -> Iterator[None]:
    """Raises `DataError` with the cure where the block runs out of space for `out`."""
    try:
        yield
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and not any(said in str(error) for said in _SAID):
            raise
        raise DataError(
            f"no space is left on the disk of {out.parent}, and nothing of {out.name} was kept; "
            "free about three times the size of the raw files, or choose another disk"
        ) from error
