"""What the machine can do is measured on the right products and copies."""

from __future__ import annotations

import time

import numpy as np
import pytest

from experiments.bench import limits
from experiments.bench.limits import best_seconds, copy_rate, matrix_rate, measure_limits


def test_the_best_call_counts_and_the_first_does_not() -> None:
    pauses = iter([0.0, 0.05, 0.02, 0.05])
    assert 0.02 <= best_seconds(lambda: time.sleep(next(pauses)), repeats=3) < 0.05


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_products_are_products(library: str) -> None:
    square = np.random.default_rng(0).random((20, 20), np.float32)
    np.testing.assert_allclose(limits._product(library, square)(), square @ square, rtol=1e-5)


def test_rates_by_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "best_seconds", lambda work: 0.5 if work() is not None else 0.0)
    assert matrix_rate("numpy", side=100) == 2 * 100**3 / 0.5
    assert copy_rate(floats=1000) == 2 * 4000 / 0.5


def test_the_best_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"numpy": 2.0, "jax": 3.0, "torch": 1.0, "copy": 5.0}
    monkeypatch.setattr(limits, "_in_child", rates.__getitem__)
    monkeypatch.setattr(limits.importlib.util, "find_spec", lambda name: name)
    assert measure_limits() == (3.0, 5.0, "jax")


def test_a_child_measures() -> None:
    assert 1e8 < limits._in_child("numpy") < 1e14
