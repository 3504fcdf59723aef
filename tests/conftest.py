"""A strict session: eight host devices, checked shapes, no silent promotion, warnings are errors.

`filterwarnings` in `pyproject.toml` turns warnings into errors.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Programs are compiled in a quarter of the time, to slower ones. With XLA_FLAGS of one's own, were
# it a space, they are compiled as users' are.
QUICKLY = "--xla_backend_optimization_level=0"
if version("jax").startswith("0.10."):  # A later XLA doesn't know it.
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", QUICKLY) + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that several files, workers and commands compile are compiled once a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="d3jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from jaxtyping import install_import_hook  # noqa: E402

# The tower lets an int stand for a float, as PEP 484 does.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
MATHEMATICS = (
    "adapters",
    "attention",
    "backbones",
    "balance",
    "embedding",
    "fusion",
    "generation",
    "heads",
    "layer",
    "layers",
    "meta",
    "models",
    "nnx",
    "official",
)
install_import_hook([f"d3jax.{name}" for name in MATHEMATICS], CHECKER)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from d3jax.cli import main  # noqa: E402
from d3jax.data.synthetic import SyntheticConfig, synthetic, write  # noqa: E402
from tests.flags import SMALL  # noqa: E402

gc.set_threshold(200_000, 50, 100)  # Tracing makes many objects, and few cycles.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # Tests compile far more than they run.

settings.register_profile("d3jax", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("d3jax")


@pytest.fixture
def key() -> jax.Array:
    """One fixed key; tests fold what they need into it."""
    return jax.random.key(20240226)


WHOLE_RUNS = {"console", "data", "data_pipelines", "experiments", "hosts", "training"}
"""Folders whose tests contain optax, as those with the marker `trains` do."""


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit dtype promotion, but where optax runs: its bias correction relies on it."""
    folders = request.path.relative_to(Path(__file__).parent).parts
    trains = request.node.get_closest_marker("trains") or not WHOLE_RUNS.isdisjoint(folders)
    with jax.numpy_dtype_promotion("standard" if trains else "strict"):
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


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,100 training, 300 validation and 600 test rows in three scenarios."""
    directory = tmp_path_factory.mktemp("prepared") / "clicks"
    write(synthetic(SyntheticConfig(rows=3000, users=60, items=50, smallest_share=0.05)), directory)
    return directory


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The flags of a model that compiles in a moment."""
    return list(SMALL)


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, 18 steps, on all devices. Copy it to change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--batch-size", "256", "--epochs", "2", "--log-every", "4", "--patience", "0"]
    main(["train", str(prepared), "--out", str(run), *flags, *SMALL])
    return run
