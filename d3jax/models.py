"""Embedding, backbone and head become one model."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Inputs, Mode, Model, ModelParams, Output, Sizes
from d3jax.batch import Batch, Schema
from d3jax.checks import is_a
from d3jax.config import EmbeddingInit, ModelConfig, TableLayout, Wide
from d3jax.domains import AUTO, domains_of
from d3jax.embedding import LARGE_TABLE, declare_embedding, pool
from d3jax.errors import ConfigError
from d3jax.layers.dense import dropout
from d3jax.layers.wide import with_crosses, with_residual
from d3jax.parameters import REPLICATED, SHARDED, Tree


def assemble(schema: Schema, backbone: Backbone, config: ModelConfig) -> Model:
    """Puts the embedding of `schema` before any backbone, also one that is in no registry.

    What the backbone knows as the scenario of a row is its domain, whatever `config.domain` makes
    of it; rows are still weighed and scored by scenario.
    """
    domains = domains_of(schema, config.domain)
    sizes = Sizes(schema.num_fields, config.embedding_dim, domains.number)
    if config.wide == "residual":
        backbone = with_residual(backbone)
    network = backbone.declare(sizes)
    embedding = declare_embedding(
        schema,
        config.embedding_dim,
        config.embedding_init,
        config.embedding_scale,
        SHARDED if shards_table(schema, config) else REPLICATED,
    )

    def forward(
        params: Tree, state: Tree, rows: Float[Array, "B K D"], batch: Batch, mode: Mode
    ) -> tuple[Output, Tree]:
        x = dropout(pool(schema, rows, batch.ids), config.embedding_dropout, mode)
        inputs = Inputs(x, domains.of(batch), batch.mask)
        return backbone.apply(params, state, inputs, mode)

    declared = Declared(ModelParams(embedding, network.params), network.state)
    model = Model(schema, declared, forward)
    return with_crosses(model, domains) if config.wide == "crosses" else model


def shards_table(schema: Schema, config: ModelConfig) -> bool:
    """Return whether the table's rows lie over all devices; a small one costs less whole."""
    if config.table_layout == "auto":
        return schema.num_rows >= LARGE_TABLE
    return config.table_layout == "sharded"


def model(
    schema: Schema,
    backbone: Backbone,
    *,
    embedding_dim: int = 16,
    embedding_init: EmbeddingInit = "normal",
    embedding_scale: float = 0.01,
    embedding_dropout: float = 0.0,
    table_layout: TableLayout = "auto",
    wide: Wide = "none",
    domain: Sequence[str] = (),
) -> Model:
    """Return a model for rows of `schema`: one embedding table before a backbone with its head.

        model(data.schema, mmoe(d3(width=32, rank=32), experts=4))

    Settings are those of `ModelConfig`; embeddings start as N(0, .01), for Glorot over a large
    table starts too close to zero. Raises `ConfigError` for a setting out of range.
    """
    is_a("schema", schema, Schema, "data.schema of a prepared directory")
    is_a("backbone", backbone, Backbone, "what a backbone returns, such as mmoe(d3(), experts=4)")
    is_a("domain", domain, (list, tuple), 'the names of fields, such as ["device"]')
    if wide == "auto" or tuple(domain) == AUTO:
        raise ConfigError(
            "wide and domain can't be auto here, for a model of parts sees no rows; name them, or "
            "use d3jax.train"
        )
    config = ModelConfig(
        embedding_dim=embedding_dim,
        embedding_init=embedding_init,
        embedding_scale=embedding_scale,
        embedding_dropout=embedding_dropout,
        table_layout=table_layout,
        wide=wide,
        domain=tuple(domain),
    )
    return assemble(schema, backbone, config)
