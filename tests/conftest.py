"""A strict session: eight host devices, checked shapes, no silent promotion, warnings are errors.

`filterwarnings` in `pyproject.toml` turns warnings into errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# The tower lets an int stand for a float, as PEP 484 does.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("d3jax", CHECKER)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # Tests compile far more than they run.

settings.register_profile("d3jax", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("d3jax")


@pytest.fixture
def key() -> jax.Array:
    """One fixed key; tests fold what they need into it."""
    return jax.random.key(20240226)


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit dtype promotion, but where optax runs: its bias correction relies on it."""
    level = "standard" if "training" in request.path.parts else "strict"
    with jax.numpy_dtype_promotion(level):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Compiled programs of a file's tests are of no use to the next file's, and take gigabytes."""
    yield
    jax.clear_caches()


Draw = Callable[..., tuple[Any, Any]]


@pytest.fixture
def draw() -> Draw:
    """`draw(declaration, scale)`: random arrays in its shapes, and the same numbers in float64.

    Every array is drawn, biases and scales too, so that no term can hide behind a 0 or a 1.
    """
    generator = np.random.default_rng(20240226)

    def arrays(declaration: Any, scale: float = 0.7) -> tuple[Any, Any]:
        drawn = jax.tree.map(
            lambda p: np.float32(scale * generator.normal(size=p.shape)), declaration
        )
        return jax.tree.map(jnp.asarray, drawn), jax.tree.map(np.float64, drawn)

    return arrays
