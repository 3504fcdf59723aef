"""A tiny world: a schema with a multi-valued field, a small model, and a batch with padding."""

import pytest

from d3jax.batch import Field, Schema
from d3jax.config import Config, ModelConfig
from d3jax.heads import D3Options
from tests.d3jax.training.world import make_batch


@pytest.fixture(scope="session")
def schema():
    fields = (Field("user", 40), Field("tags", 7, slots=3), Field("place", 4))
    return Schema(fields, ("home", "detail", "slot"), scenario_field="place")


@pytest.fixture(scope="session")
def config():
    """Small layers, so that a step compiles fast."""
    return Config(
        model=ModelConfig(embedding_dim=4, embedding_scale=0.3, bottom_layers=(8, 6)),
        d3=D3Options(field_hidden=3, width=5, gate_layers=(6, 4)),
    )


@pytest.fixture(scope="session")
def batch(schema):
    """64 rows of which 14 are padding: with 8 devices the last one has no real row."""
    return make_batch(schema, 64, seed=1, padding=14)
