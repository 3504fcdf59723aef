"""checksums.json: the SHA-256 of every other file of a prepared directory but its marker."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from d3jax.errors import DataError
from d3jax.owned import MARKER

_NAME = "checksums.json"
_AGAIN = "copy the directory again, or prepare the data again"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(directory: Path) -> None:
    """Sums up what a directory holds, once it is complete."""
    sums = {str(path.relative_to(directory)): sha256(path) for path in _files(directory)}
    (directory / _NAME).write_text(json.dumps(sums, indent=2, sort_keys=True) + "\n")


def verify_checksums(directory: Path) -> int:
    """Compares every file with its sum and returns how many there are.

    Raises `DataError` naming a file that is missing, changed or was not there when the directory
    was made.
    """
    sums = _read(directory)
    found = {str(file.relative_to(directory)): file for file in _files(directory)}
    for name, expected in sums.items():
        if name not in found:
            raise DataError(f"{directory / name} is missing; {_AGAIN}")
        if (actual := sha256(found[name])) != expected:
            raise DataError(
                f"{directory / name} has changed: its SHA-256 is {actual[:12]}..., and was "
                f"{str(expected)[:12]}... when it was written; {_AGAIN}"
            )
    if strangers := sorted(found.keys() - sums.keys()):
        raise DataError(f"{directory / strangers[0]} is no part of the prepared data; remove it")
    return len(sums)


def data_fingerprint(directory: Path) -> str:
    """Return a hash of what `write_checksums` found of rows and vocabularies; `schema.json`, which
    also says where the rows came from, is left out. Raises `DataError` when it left nothing."""
    sums = {name: value for name, value in _read(directory).items() if name != "schema.json"}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:32]


def _read(directory: Path) -> dict[str, str]:
    path = directory / _NAME
    if not path.is_file():
        raise DataError(f"{path} is missing, so nothing tells what the files held; {_AGAIN}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error


def _files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and path.name not in (_NAME, MARKER)
    )
