"""Embedding, backbone and head become one model."""

from __future__ import annotations

from jaxtyping import Array, Float

from d3jax.backbones import BACKBONES
from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Model, ModelParams, Output, Sizes
from d3jax.batch import Batch, Schema
from d3jax.config import Config, D3Config, ModelConfig
from d3jax.embedding import declare_embedding, pool
from d3jax.heads import d3, towers
from d3jax.layers import dropout
from d3jax.official import d3_official
from d3jax.parameters import Tree


def build_head(model: ModelConfig, config: D3Config) -> Head:
    """The head that the configuration names."""
    if model.head == "towers":
        return towers(model.tower_layers)
    return d3_official(config) if config.form == "official" else d3(config)


def build_model(schema: Schema, config: Config) -> Model:
    """The model for rows of `schema`, by the configuration's `model` and `d3` parts."""
    head = build_head(config.model, config.d3)
    backbone = BACKBONES[config.model.backbone](config.model, head)
    return assemble(schema, backbone, config.model)


def assemble(schema: Schema, backbone: Backbone, config: ModelConfig) -> Model:
    """Puts the embedding of `schema` before any backbone, also one that is in no registry."""
    sizes = Sizes(schema.num_fields, config.embedding_dim, schema.num_scenarios)
    network = backbone.declare(sizes)
    embedding = declare_embedding(
        schema, config.embedding_dim, config.embedding_init, config.embedding_scale
    )

    def forward(
        params: Tree, state: Tree, rows: Float[Array, "B K D"], batch: Batch, mode: Mode
    ) -> tuple[Output, Tree]:
        x = dropout(pool(schema, rows, batch.ids), config.embedding_dropout, mode)
        inputs = Inputs(x, batch.scenario, batch.mask)
        return backbone.apply(params, state, inputs, mode)

    declared = Declared(ModelParams(embedding, network.params), network.state)
    return Model(schema, declared, forward)
