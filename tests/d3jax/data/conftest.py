"""A prepared directory to spoil; whole runs contain optax, whose bias correction promotes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.d3jax.data.directory import make


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """The usual promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A prepared directory of ten rows in two fields."""
    return make(tmp_path / "prepared")
