"""The limits of the machine: matrix products and copies, by the best library.

On a computer's own cores float32 products, and copies by all threads; on an accelerator, where
jax has one, its bfloat16 products and its copies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

SIDE, COPIED = 3072, 2**27
"""Side of the square matrices, and the number of floats in the copied array (0.5 GB)."""


class Limits(NamedTuple):
    """Floating-point operations and bytes a second, and who reached them."""

    flops: float
    bandwidth: float
    flops_by: str


def best_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """The least time that `work` takes, after one call to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def matrix_rate(library: str, side: int = SIDE) -> float:
    """FLOP/s of a product of two square matrices by numpy, jax or torch."""
    square = np.random.default_rng(0).random((side, side), np.float32)
    return 2 * side**3 / best_seconds(_product(library, square))


def _product(library: str, square: np.ndarray) -> Callable[[], object]:
    match library:
        case "jax":
            import jax

            placed, dot = jax.device_put(square), jax.jit(jax.numpy.matmul)
            return lambda: dot(placed, placed).block_until_ready()
        case "torch":
            import torch

            tensor = torch.from_numpy(square)
            return lambda: tensor @ tensor
        case _:
            return lambda: square @ square


def copy_rate(floats: int = COPIED) -> float:
    """Bytes a second, read and written, of a copy by as many threads as there are cores (the
    copy of STREAM, McCalpin, 1995)."""
    source, target = np.ones(floats, np.float32), np.zeros(floats, np.float32)
    threads = os.cpu_count() or 1
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = best_seconds(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    return 2 * source.nbytes / seconds


ACCELERATED = 8192, 2**29
"""Side and numbers that keep an accelerator busy."""


def product_rate(dtype: str, precision: str | None = None, side: int = ACCELERATED[0]) -> float:
    """FLOP/s of a product of two square matrices of random numbers on jax' device.

    By default an accelerator rounds the factors of a float32 product; `precision` "highest" tells
    it not to.
    """
    import jax

    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision=precision))

    def several() -> None:  # One alone may be shorter than the time to start it.
        jax.block_until_ready([product(square, square) for _ in range(10)])

    return 10 * 2 * side**3 / best_seconds(several)


def device_copy_rate(numbers: int = ACCELERATED[1]) -> float:
    """Bytes a second, read and written, of changing every number of an array on jax' device."""
    import jax

    array = jax.numpy.ones(numbers, "float32")
    change = jax.jit(lambda values: values + 1)
    return 2 * array.nbytes / best_seconds(lambda: jax.block_until_ready(change(array)))


def measure_limits() -> Limits:
    """Each library in a process of its own, those that are installed."""
    if _in_child("has accelerator"):
        return Limits(_in_child("accelerator"), _in_child("device copy"), "jax, bfloat16")
    rates = {
        library: _in_child(library)
        for library in ("numpy", "jax", "torch")
        if importlib.util.find_spec(library)
    }
    best = max(rates, key=lambda library: rates[library])
    return Limits(rates[best], _in_child("copy"), best)


def _in_child(what: str) -> float:
    command = [sys.executable, "-m", "experiments.bench.limits", what]
    # A kernel that was chosen for an older numpy would hide what this one can do.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _measured(what: str) -> float:
    match what:
        case "has accelerator":
            import jax

            return float(jax.default_backend() != "cpu")
        case "copy":
            return copy_rate()
        case "accelerator":
            return product_rate("bfloat16")
        case "device copy":
            return device_copy_rate()
        case _:
            return matrix_rate(what)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measured(sys.argv[1])))
