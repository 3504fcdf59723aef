"""A strict session: eight host devices, checked shapes, no silent promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("d3jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture
def key():
    """One fixed key; tests fold what they need into it."""
    return jax.random.key(20240226)
