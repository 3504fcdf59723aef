"""The loss of a row, and the adapters that decide how much each row counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.balance import (
    complexity,
    complexity_weights,
    naive_complexity,
    scheduled_weights,
    specificity_weights,
    unit_mean_weights,
)
from d3jax.base import Feedback, LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.checks import within
from d3jax.errors import ConfigError
from d3jax.parameters import Tree
from d3jax.typed import check_types

BalanceEntropy = Literal["rows", "mean_row", "naive"]


@dataclass(frozen=True)
class BalanceOptions:
    """How the D3 loss weighs rows (Eq. 15-19)."""

    start_ratio: float = 0.5
    """Share of the run's steps before weighting starts; 1: never."""
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
    """rows: mean of the rows' entropies; mean_row: entropy of the mean row; naive: the authors'."""
    literal_sign: bool = False
    """Use Eq. 15 as printed, without entropy's minus."""
    minimum_std: float = 1e-20
    """Deviation of the complexities at or below which all rows count the same."""
    normalize: bool = False
    """Divide the loss by the sum of the weights instead of the number of rows."""

    def __post_init__(self) -> None:
        check_types(self)
        within("start_ratio", self.start_ratio, 0, 1)
        for name in ("complexity", "specificity"):
            shift, scale = self._weights(name)
            within(f"{name}_shift", shift, 0, 100)
            within(f"{name}_scale", scale, 0, 100)
            if shift == scale == 0:
                raise ConfigError(
                    f"{name}_shift and {name}_scale are both 0, which weighs every row with 0; "
                    "set one of them above 0"
                )
        within("lower", self.lower, 0, self.upper)
        within("minimum_std", self.minimum_std, 0, math.inf)

    def _weights(self, name: str) -> tuple[float, float]:
        if name == "complexity":
            return self.complexity_shift, self.complexity_scale
        return self.specificity_shift, self.specificity_scale


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

    def row_weights(state: Tree, output: Output, batch: Batch, step: Array, mode: Mode) -> Array:
        weights = jnp.ones_like(output.logits)
        if output.attention is not None:
            weights = weights * complexity_weights(
                row_complexity(config, output.attention),
                batch.mask,
                lower=config.lower,
                upper=config.upper,
                shift=config.complexity_shift,
                scale=config.complexity_scale,
                minimum_std=config.minimum_std,
                axis_name=mode.axis_name,
            )
        if output.gate is not None:
            weights = weights * specificity_weights(
                output.gate, shift=config.specificity_shift, scale=config.specificity_scale
            )
        if config.normalize:
            weights = unit_mean_weights(weights, batch.mask, axis_name=mode.axis_name)
        return scheduled_weights(weights, step, start_step)

    return LossAdapter((), binary_cross_entropy, row_weights, _keep)


def row_complexity(config: BalanceOptions, attention: Float[Array, "B N N"]) -> Float[Array, " B"]:
    """The complexity of Eq. 15 in the form and with the sign that `config` asks for."""
    if config.entropy == "naive":
        value = naive_complexity(attention)
    else:
        value = complexity(attention, form=config.entropy)
    return -value if config.literal_sign else value


def _keep(state: Tree, feedback: Feedback, step: Array, mode: Mode) -> Tree:
    """The update of an adapter that remembers nothing."""
    return state
