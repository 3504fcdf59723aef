"""Sums of files written by hand, and the message of every kind of change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from d3jax.data.checksums import verify_checksums, write_checksums
from d3jax.errors import DataError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ids.npy").write_bytes(b"123")
    (tmp_path / "schema.json").write_bytes(b"{}")
    write_checksums(tmp_path)
    return tmp_path


def test_sums(directory: Path) -> None:
    assert json.loads((directory / "checksums.json").read_text()) == {
        "schema.json": hashlib.sha256(b"{}").hexdigest(),
        "train/ids.npy": hashlib.sha256(b"123").hexdigest(),
    }
    assert verify_checksums(directory) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "train/ids.npy").write_bytes(b"124"),
            r"train/ids.npy has changed: its SHA-256 is 6affdae3b3c1..., and was a665a4592042...",
        ),
        (lambda d: (d / "schema.json").unlink(), "schema.json is missing; copy the directory"),
        (lambda d: (d / "x.npy").write_bytes(b""), "x.npy is no part of the prepared data; remove"),
        (lambda d: (d / "checksums.json").unlink(), "checksums.json is missing, so nothing tells"),
        (
            lambda d: (d / "checksums.json").write_text("{"),
            r"checksums.json is damaged \(.*\)",
        ),
    ],
)
def test_changes(directory: Path, change: Callable[[Path], object], message: str) -> None:
    change(directory)
    with pytest.raises(DataError, match=message):
        verify_checksums(directory)
