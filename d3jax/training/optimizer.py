"""The optimiser: AdamW, with a weight decay of its own for the embedding table."""

from __future__ import annotations

import jax
import optax

from d3jax.base import ModelParams
from d3jax.config import OptimizerConfig


def adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam moments, decoupled decay by kind of parameter, then the learning rate."""

    def only(embedding: bool) -> optax.MaskOrFn:
        def mask(params: ModelParams) -> ModelParams:
            return ModelParams(
                embedding=jax.tree.map(lambda _: embedding, params.embedding),
                network=jax.tree.map(lambda _: not embedding, params.network),
            )

        return mask

    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, only(embedding=False)),
        optax.add_decayed_weights(config.embedding_decay, only(embedding=True)),
        optax.scale_by_learning_rate(config.learning_rate),
    )
