"""Dynamic task prioritization: hard scenarios and hard rows count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.scenarios import at_period_end, period_of, weigh_scenarios
from d3jax.base import Feedback, LossAdapter, Mode
from d3jax.checks import within
from d3jax.choice import AdapterChoice
from d3jax.parameters import constant, declare_array
from d3jax.registry import Part
from d3jax.typed import check_types

AUC_BINS, AUC_LIMIT = 512, 10.0
"""DTP counts scores in bins of the logit, evenly on ±10: bins of the probability would put all
scores of a 0.05 % click rate into the first."""
KPI_START, KPI_LEAST, KPI_MOST = 0.5, 0.05, 0.99


@dataclass(frozen=True)
class DTPOptions:
    """Dynamic task prioritization."""

    period_steps: int = 0
    """Steps between changes of the weights; 0: an epoch if a run has three, else 1/20 of it."""
    kpi_smoothing: float = 0.1
    """Alpha, what the latest AUC counts in its running mean."""
    scenario_focus: float = 1.0
    """Exponent of the scenario weights; the larger, the more the hard scenarios count."""
    row_focus: float = 1.0
    """Exponent of the focal factor on rows; 0: none."""
    mean_one: bool = False
    """Divide the weights by their mean."""

    def __post_init__(self) -> None:
        check_types(self, "dtp.")
        within("dtp.period_steps", self.period_steps, 0, 2**31 - 1)
        within("dtp.kpi_smoothing", self.kpi_smoothing, 0, 1)
        within("dtp.scenario_focus", self.scenario_focus, 0, 100)
        within("dtp.row_focus", self.row_focus, 0, 100)


class DTPState(NamedTuple):
    """The running AUC of each scenario, and how many rows of this period, not clicked and
    clicked, scored in each bin."""

    kpi: Float[Array, " S"]
    histogram: Float[Array, "S 2 bins"]


def dtp(options: DTPOptions, aggregation: str, num_scenarios: int, period: int) -> LossAdapter:
    """Dynamic task prioritization (Guo et al., ECCV 2018): hard scenarios and hard rows count more.

    How well a scenario is solved is a running mean of its AUC on each period's training scores.
    """
    declared = DTPState(
        kpi=declare_array((num_scenarios,), constant(KPI_START)),
        histogram=declare_array((num_scenarios, 2, AUC_BINS)),
    )

    def row_losses(logits: Array, label: Array) -> Array:
        return focal_cross_entropy(logits, label, options.row_focus)

    def weights_of(state: DTPState) -> Array:
        weights = dtp_weights(state.kpi, options.scenario_focus)
        return weights / weights.mean() if options.mean_one else weights

    def update(state: DTPState, feedback: Feedback, step: Array, mode: Mode) -> DTPState:
        counted = mode.total(score_histogram(feedback, num_scenarios))
        state = state._replace(histogram=state.histogram + counted)
        return at_period_end(step, period, _end_dtp_period(state, options.kpi_smoothing), state)

    return LossAdapter(declared, row_losses, weigh_scenarios(aggregation, weights_of), update)


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
    """Count this device's real rows by scenario, label and bin of the score."""
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


def _build(choice: AdapterChoice) -> LossAdapter:
    options: DTPOptions = choice.options
    period = period_of(options.period_steps, choice.steps_per_epoch, choice.total_steps)
    return dtp(options, choice.aggregation, choice.schema.num_scenarios, period)


_SPACE = {"scenario_focus": (0.5, 1.0, 2.0), "row_focus": (0.0, 0.5, 1.0, 2.0)}

PART = Part(_build, DTPOptions, space=_SPACE)
