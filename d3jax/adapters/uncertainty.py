"""Uncertainty weighting: noisy scenarios count less."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.learned import Learned, declare_learned, descend, scenario_means
from d3jax.adapters.scenarios import weigh_scenarios
from d3jax.base import Feedback, LossAdapter, Mode
from d3jax.choice import AdapterChoice
from d3jax.parameters import zeros
from d3jax.registry import Part


def uncertainty(aggregation: str, num_scenarios: int, learning_rate: float) -> LossAdapter:
    """Uncertainty weighting (Kendall et al., CVPR 2018): noisy scenarios count less.

    η = ln σ² of each scenario minimises exp(-η) L + η / 2; the weight is exp(-η).
    """

    def update(state: Learned, feedback: Feedback, step: Array, mode: Mode) -> Learned:
        losses, rows = scenario_means(feedback.losses, feedback.batch, num_scenarios, mode)
        gradient = uncertainty_gradient(state.value, losses, rows, aggregation)
        return descend(state, gradient, rows > 0, learning_rate)

    row_weights = weigh_scenarios(aggregation, lambda state: jnp.exp(-state.value))
    declared = declare_learned(num_scenarios, zeros)
    return LossAdapter(declared, binary_cross_entropy, row_weights, update)


def uncertainty_gradient(
    eta: Float[Array, " S"],
    losses: Float[Array, " S"],
    rows: Float[Array, " S"],
    aggregation: str,
) -> Float[Array, " S"]:
    """The derivative of exp(-η) L + η / 2, zero at exp(η) = 2 L; L is the mean loss.

    A mean over rows counts each scenario by its share of them.
    """
    gradient = 0.5 - jnp.exp(-eta) * losses
    return gradient * rows / jnp.maximum(rows.sum(), 1.0) if aggregation == "row" else gradient


def _build(choice: AdapterChoice) -> LossAdapter:
    return uncertainty(choice.aggregation, choice.schema.num_scenarios, choice.learning_rate)


PART = Part(_build)
