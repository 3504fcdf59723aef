"""What the machine can do is measured on the right products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from experiments.bench import limits
from experiments.bench.limits import (
    best_seconds,
    copy_rate,
    device_copy_rate,
    matrix_rate,
    measure_limits,
    product_rate,
)


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
    rates = {"has accelerator": 0.0, "numpy": 2.0, "jax": 3.0, "torch": 1.0, "copy": 5.0}
    monkeypatch.setattr(limits, "_in_child", rates.__getitem__)
    monkeypatch.setattr(limits.importlib.util, "find_spec", lambda name: name)
    assert measure_limits() == (3.0, 5.0, "jax")


def test_an_accelerator_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"has accelerator": 1.0, "accelerator": 7e14, "device copy": 4e12}
    monkeypatch.setattr(limits, "_in_child", rates.__getitem__)
    assert measure_limits() == (7e14, 4e12, "jax, bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rates_on_a_device_by_a_known_clock(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(work: Callable[[], object]) -> float:
        work()
        return 0.5

    monkeypatch.setattr(limits, "best_seconds", clock)
    assert product_rate(dtype, side=100) == 10 * 2 * 100**3 / 0.5
    assert device_copy_rate(numbers=1000) == 2 * 4000 / 0.5


@pytest.mark.slow
def test_a_child_measures() -> None:
    assert 1e8 < limits._in_child("numpy") < 1e14
    assert limits._in_child("has accelerator") == 0
