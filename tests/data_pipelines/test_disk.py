"""A full disk is told as one, and nothing of the prepared directory stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, BinaryIO

import ibis
import numpy as np
import pyarrow as pa
import pytest

from d3jax.errors import DataError
from data_pipelines import columns
from data_pipelines.disk import full_disk_named
from data_pipelines.prepare import prepare
from data_pipelines.source import FieldSource, PrepareConfig, Source


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("IO Error: Could not write file: No space left on device"),
        RuntimeError("... this limit was set by the 'max_temp_directory_size' setting"),
    ],
)
def test_what_is_a_full_disk(error: Exception) -> None:
    message = "no space is left on the disk of data, and nothing of out was kept; free about three"
    with pytest.raises(DataError, match=message), full_disk_named(Path("data/out")):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyError("x")])
def test_what_is_not(error: Exception) -> None:
    with pytest.raises(type(error)), full_disk_named(Path("data/out")):
        raise error


def test_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the first array gets its header."""

    def fail(file: BinaryIO, dtype: type[np.generic], shape: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(columns, "_write_header", fail)
    connection = ibis.duckdb.connect()
    numbers = range(100)
    rows = {
        "user": [str(n) for n in numbers],
        "label": [n % 2 for n in numbers],
        "scenario": [0 for _ in numbers],
    }
    connection.con.register("raw", pa.table(rows))
    source = Source(
        rows=connection.table("raw"),
        fields=(FieldSource("user"),),
        scenarios=("a",),
        scenario_field="user",
        scenario_values={},
        key=("user",),
        label_rule="label",
    )
    with pytest.raises(DataError, match=r"no space is left on the disk of .*, and nothing of out"):
        prepare(source, tmp_path / "out", PrepareConfig())
    assert list(tmp_path.iterdir()) == []
