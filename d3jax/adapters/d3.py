"""The loss of a row, and the adapters that decide how much each row counts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.balance import BalanceEntropy, row_weights, scheduled_weights
from d3jax.base import Feedback, LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.checks import check_weighing, within
from d3jax.parameters import Tree
from d3jax.typed import check_types


@dataclass(frozen=True)
class BalanceOptions:
    """The weights of rows in the D3 loss (Eq. 15-19)."""

    start_ratio: float = 0.5
    """Share of the run before rows are weighed; 1: never."""
    complexity_shift: float = 0.5
    """Lambda 1 of Eq. 17."""
    complexity_scale: float = 1.0
    """Alpha 1 of Eq. 17."""
    specificity_shift: float = 0.5
    """Lambda 2 of Eq. 18."""
    specificity_scale: float = 1.0
    """Alpha 2 of Eq. 18."""
    lower: float = 0.1
    """Least normalised complexity (Eq. 16)."""
    upper: float = 1.0
    """Greatest normalised complexity (Eq. 16)."""
    entropy: BalanceEntropy = "rows"
    """rows, mean_row (of the mean row), or naive: theirs."""
    literal_sign: bool = False
    """Eq. 15 as printed, without entropy's minus."""
    minimum_std: float = 1e-20
    """Complexities that spread less count the same."""
    normalize: bool = False
    """Divide the loss by the weights' sum, not the rows."""

    def __post_init__(self) -> None:
        check_types(self)
        within("start_ratio", self.start_ratio, 0, 1)
        check_weighing("complexity", self.complexity_shift, self.complexity_scale)
        check_weighing("specificity", self.specificity_shift, self.specificity_scale)
        within("lower", self.lower, 0, self.upper)
        within("minimum_std", self.minimum_std, 0, math.inf)


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


def d3_balance(start: float = 0.5, **settings: Any) -> LossAdapter:
    """Return domain balance (Eq. 15-19), which leaves the first `start` of a run's steps unweighed
    (1: all of them); `settings` are those of `BalanceOptions`.

    Raises `ConfigError` for a setting out of range.
    """
    config = BalanceOptions(start_ratio=start, **settings)
    if start == 1:
        # A ratio of 1 means never, also when the last step would be the first weighted one.
        return unweighted()

    def planned(steps: int) -> LossAdapter:
        return weigh_rows(config, math.floor(start * steps))

    return planned(0)._replace(planned=planned)


def weigh_rows(config: BalanceOptions, start_step: int) -> LossAdapter:
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
