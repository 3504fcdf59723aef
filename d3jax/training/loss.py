"""The loss of a row, and the adapters that decide how much each row counts."""

from __future__ import annotations

from dataclasses import asdict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.balance import row_weights, scheduled_weights
from d3jax.base import Feedback, LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.config import BalanceConfig
from d3jax.parameters import Tree


def binary_cross_entropy(
    logits: Float[Array, " B"], label: Float[Array, " B"]
) -> Float[Array, " B"]:
    """-y ln σ(z) - (1 - y) ln(1 - σ(z)) in nats, finite for every finite logit."""
    return jax.nn.softplus(logits) - label * logits


def unweighted() -> LossAdapter:
    """Every row counts the same."""

    def row_weights(state: Tree, output: Output, batch: Batch, step: Array, mode: Mode) -> Array:
        return jnp.ones_like(output.logits)

    return LossAdapter((), binary_cross_entropy, row_weights, _keep)


def d3_balance(config: BalanceConfig, start_step: int) -> LossAdapter:
    """Domain balance: a row's complexity times its specificity, from `start_step` on (Eq. 15-19).

    A model without attention is weighed by its gate alone, as D3 does for STAR and SAR-Net.
    """
    settings = asdict(config)
    del settings["start_ratio"]

    def weigh(state: Tree, output: Output, batch: Batch, step: Array, mode: Mode) -> Array:
        weights = row_weights(
            output.attention, output.gate, batch.mask, axis_name=mode.axis_name, **settings
        )
        return scheduled_weights(weights, step, start_step)

    return LossAdapter((), binary_cross_entropy, weigh, _keep)


def _keep(state: Tree, feedback: Feedback, step: Array, mode: Mode) -> Tree:
    """The update of an adapter that remembers nothing."""
    return state
