"""Embedding, backbone and head become one model."""

from __future__ import annotations

from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Inputs, Mode, Model, ModelParams, Output, Sizes
from d3jax.batch import Batch, Schema
from d3jax.config import ModelConfig
from d3jax.embedding import LARGE_TABLE, declare_embedding, pool
from d3jax.layers.dense import dropout
from d3jax.parameters import REPLICATED, SHARDED, Tree


def assemble(schema: Schema, backbone: Backbone, config: ModelConfig) -> Model:
    """Puts the embedding of `schema` before any backbone, also one that is in no registry."""
    sizes = Sizes(schema.num_fields, config.embedding_dim, schema.num_scenarios)
    network = backbone.declare(sizes)
    embedding = declare_embedding(
        schema,
        config.embedding_dim,
        config.embedding_init,
        config.embedding_scale,
        SHARDED if _is_sharded(schema, config) else REPLICATED,
    )

    def forward(
        params: Tree, state: Tree, rows: Float[Array, "B K D"], batch: Batch, mode: Mode
    ) -> tuple[Output, Tree]:
        x = dropout(pool(schema, rows, batch.ids), config.embedding_dropout, mode)
        inputs = Inputs(x, batch.scenario, batch.mask)
        return backbone.apply(params, state, inputs, mode)

    declared = Declared(ModelParams(embedding, network.params), network.state)
    return Model(schema, declared, forward)


def _is_sharded(schema: Schema, config: ModelConfig) -> bool:
    """Whether the table's rows lie over all devices; a small one costs less where it is whole."""
    if config.table_layout == "auto":
        return schema.num_rows >= LARGE_TABLE
    return config.table_layout == "sharded"
