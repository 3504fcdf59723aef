"""A prepared directory to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.d3jax.data.directory import make


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A prepared directory of ten rows in two fields."""
    return make(tmp_path / "prepared")
