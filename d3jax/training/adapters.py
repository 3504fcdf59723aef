"""Loss adapters that weigh scenarios by what training has measured: DWA and DTP.

A scenario is a task of the multi-task literature. Its weight multiplies its rows' losses in their
mean over the batch or, with `scenario_sum`, its mean loss in the sum over scenarios. What an
adapter remembers is the same on every device: it is made of sums over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.base import Feedback, LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.config import AdapterConfig, Aggregation
from d3jax.parameters import Tree, constant, declare_array, ones
from d3jax.training.loss import binary_cross_entropy, unweighted

RowWeights = Callable[[Tree, Output, Batch, Array, Mode], Float[Array, " B"]]

AUC_BINS, AUC_LIMIT = 512, 10.0
"""DTP counts scores in bins of the logit, evenly on ±10: bins of the probability would put all
scores of a 0.05 % click rate into the first."""
KPI_START, KPI_LEAST, KPI_MOST = 0.5, 0.05, 0.99


class DWAState(NamedTuple):
    """The weights [S], and each scenario's mean loss in the last period that had rows of it (0:
    none yet), the sum of its losses and its rows in this period."""

    weights: Float[Array, " S"]
    previous: Float[Array, " S"]
    losses: Float[Array, " S"]
    rows: Float[Array, " S"]


class DTPState(NamedTuple):
    """The running AUC of each scenario, and how many rows of this period, not clicked and
    clicked, scored in each bin."""

    kpi: Float[Array, " S"]
    histogram: Float[Array, "S 2 bins"]


def scenario_totals(
    values: Float[Array, " B"], batch: Batch, num_scenarios: int, mode: Mode
) -> Float[Array, " S"]:
    """The sum of a value over each scenario's real rows in the whole batch."""
    member = (batch.scenario[:, None] == jnp.arange(num_scenarios)[None]) & batch.mask[:, None]
    return mode.total(jnp.where(member, values[:, None], 0.0).sum(0))


def scenario_rows(batch: Batch, num_scenarios: int, mode: Mode) -> Float[Array, " S"]:
    """The number of each scenario's real rows in the whole batch."""
    return scenario_totals(jnp.ones(batch.mask.shape), batch, num_scenarios, mode)


def weigh_scenarios(
    aggregation: Aggregation, weights_of: Callable[[Tree], Float[Array, " S"]]
) -> RowWeights:
    """The `row_weights` of an adapter whose state gives a weight per scenario.

    The loss is a mean over rows, so `scenario_sum` gives a row of scenario s λ_s n / n_s.
    """

    def row_weights(state: Tree, output: Output, batch: Batch, step: Array, mode: Mode) -> Array:
        weights = weights_of(state)
        if aggregation == "scenario_sum":
            rows = scenario_rows(batch, weights.shape[0], mode)
            weights = weights * rows.sum() / jnp.maximum(rows, 1.0)
        return lax.stop_gradient(weights)[batch.scenario]

    return row_weights


def equal(config: AdapterConfig, num_scenarios: int) -> LossAdapter:
    """Every row counts the same or, with `scenario_sum`, every scenario."""
    if config.aggregation == "row":
        return unweighted()
    row_weights = weigh_scenarios(config.aggregation, lambda state: jnp.ones(num_scenarios))
    return unweighted()._replace(row_weights=row_weights)


def period_of(config: AdapterConfig, steps_per_epoch: int, total_steps: int) -> int:
    """Steps after which DWA and DTP change their weights.

    DWA's authors use an epoch; in a run of fewer than three epochs that would change nothing.
    """
    if config.period_steps:
        return config.period_steps
    return steps_per_epoch if total_steps >= 3 * steps_per_epoch else max(1, total_steps // 20)


def dwa(
    config: AdapterConfig, num_scenarios: int, steps_per_epoch: int, total_steps: int
) -> LossAdapter:
    """Dynamic weight average (Liu et al., CVPR 2019): scenarios whose loss falls slowly count more.

    All weights are 1 in the first two periods.
    """
    period = period_of(config, steps_per_epoch, total_steps)
    zero = declare_array((num_scenarios,))
    declared = DWAState(declare_array((num_scenarios,), ones), zero, zero, zero)

    def update(state: DWAState, feedback: Feedback, step: Array, mode: Mode) -> DWAState:
        batch = feedback.batch
        state = state._replace(
            losses=state.losses + scenario_totals(feedback.losses, batch, num_scenarios, mode),
            rows=state.rows + scenario_rows(batch, num_scenarios, mode),
        )
        return _at_period_end(step, period, _end_dwa_period(state, config.temperature), state)

    row_weights = weigh_scenarios(config.aggregation, lambda state: state.weights)
    return LossAdapter(declared, binary_cross_entropy, row_weights, update)


def dwa_weights(
    current: Float[Array, " S"], previous: Float[Array, " S"], temperature: float
) -> Float[Array, " S"]:
    """S softmax(r / T), r the ratio of a scenario's mean losses in the last two periods.

    A scenario without a previous loss, which is 0, is taken to stand still.
    """
    known = previous > 0
    ratio = jnp.where(known, current / jnp.where(known, previous, 1.0), 1.0)
    return ratio.shape[0] * jax.nn.softmax(ratio / temperature)


def _end_dwa_period(state: DWAState, temperature: float) -> DWAState:
    mean = state.losses / jnp.maximum(state.rows, 1.0)
    current = jnp.where(state.rows > 0, mean, state.previous)
    weights = dwa_weights(current, state.previous, temperature)
    nothing = jnp.zeros_like(current)
    return DWAState(weights, current, nothing, nothing)


def dtp(
    config: AdapterConfig, num_scenarios: int, steps_per_epoch: int, total_steps: int
) -> LossAdapter:
    """Dynamic task prioritization (Guo et al., ECCV 2018): hard scenarios and hard rows count more.

    How well a scenario is solved is a running mean of its AUC on each period's training scores.
    """
    period = period_of(config, steps_per_epoch, total_steps)
    declared = DTPState(
        kpi=declare_array((num_scenarios,), constant(KPI_START)),
        histogram=declare_array((num_scenarios, 2, AUC_BINS)),
    )

    def row_losses(logits: Array, label: Array) -> Array:
        return focal_cross_entropy(logits, label, config.row_focus)

    def weights_of(state: DTPState) -> Array:
        weights = dtp_weights(state.kpi, config.scenario_focus)
        return weights / weights.mean() if config.mean_one else weights

    def update(state: DTPState, feedback: Feedback, step: Array, mode: Mode) -> DTPState:
        counted = mode.total(score_histogram(feedback, num_scenarios))
        state = state._replace(histogram=state.histogram + counted)
        return _at_period_end(step, period, _end_dtp_period(state, config.kpi_smoothing), state)

    return LossAdapter(
        declared, row_losses, weigh_scenarios(config.aggregation, weights_of), update
    )


def focal_cross_entropy(
    logits: Float[Array, " B"], label: Float[Array, " B"], gamma: float
) -> Float[Array, " B"]:
    """(1 - p)^γ (-ln p), p the probability given to the row's own label (Lin et al., ICCV 2017).

    The gradient flows through the factor too, and is finite for every finite logit.
    """
    margin = (2 * label - 1) * logits
    return jnp.exp(-gamma * jax.nn.softplus(margin)) * binary_cross_entropy(logits, label)


def dtp_weights(kpi: Float[Array, " S"], gamma: float) -> Float[Array, " S"]:
    """-(1 - κ)^γ ln κ: the better a scenario is solved, the less it counts."""
    return -((1 - kpi) ** gamma) * jnp.log(kpi)


def score_histogram(feedback: Feedback, num_scenarios: int) -> Float[Array, "S 2 bins"]:
    """How many of this device's real rows, by scenario and label, scored in each bin."""
    batch = feedback.batch
    place = (feedback.output.logits / AUC_LIMIT + 1) * (AUC_BINS / 2)
    position = jnp.clip(place, 0, AUC_BINS - 1).astype(jnp.int32)
    empty = jnp.zeros((num_scenarios, 2, AUC_BINS))
    clicked = (batch.label > 0.5).astype(jnp.int32)
    return empty.at[batch.scenario, clicked, position].add(batch.mask.astype(empty.dtype))


def histogram_auc(histogram: Float[Array, "S 2 bins"]) -> Float[Array, " S"]:
    """The area under the ROC curve; scores of one bin are ties and count half.

    The value of a scenario that lacks a class has no meaning, but is finite.
    """
    share = histogram / jnp.maximum(histogram.sum(-1, keepdims=True), 1.0)
    others, clicked = share[:, 0], share[:, 1]
    return (clicked * (jnp.cumsum(others, axis=-1) - others / 2)).sum(-1)


def _end_dtp_period(state: DTPState, smoothing: float) -> DTPState:
    both = (state.histogram.sum(-1) > 0).all(-1)
    mixed = smoothing * histogram_auc(state.histogram) + (1 - smoothing) * state.kpi
    kpi = jnp.where(both, jnp.clip(mixed, KPI_LEAST, KPI_MOST), state.kpi)
    return DTPState(kpi, jnp.zeros_like(state.histogram))


def _at_period_end(step: Array, period: int, ended: Tree, going_on: Tree) -> Tree:
    """`ended` after the last step of a period, `going_on` within it."""
    last = (step + 1) % period == 0
    return jax.tree.map(lambda new, old: jnp.where(last, new, old), ended, going_on)
