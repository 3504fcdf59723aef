"""Whole runs: they contain optax, whose bias correction promotes dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """The usual promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
