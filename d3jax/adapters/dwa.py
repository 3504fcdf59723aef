"""Dynamic weight average: scenarios whose loss falls slowly count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.scenarios import (
    at_period_end,
    period_of,
    scenario_rows,
    scenario_totals,
    weigh_scenarios,
)
from d3jax.base import Feedback, LossAdapter, Mode
from d3jax.checks import within
from d3jax.choice import AdapterChoice
from d3jax.parameters import declare_array, ones
from d3jax.registry import Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class DWAOptions:
    """Dynamic weight average."""

    period_steps: int = 0
    """Steps between changes of the weights; 0: an epoch if a run has three, else 1/20 of it."""
    temperature: float = 2.0
    """T of the softmax; the larger, the more alike the weights."""

    def __post_init__(self) -> None:
        check_types(self, "dwa.")
        within("dwa.period_steps", self.period_steps, 0, 2**31 - 1)
        within("dwa.temperature", self.temperature, 1e-3, 1e6)


class DWAState(NamedTuple):
    """The weights [S], and each scenario's mean loss in the last period that had rows of it (0:
    none yet), the sum of its losses and its rows in this period."""

    weights: Float[Array, " S"]
    previous: Float[Array, " S"]
    losses: Float[Array, " S"]
    rows: Float[Array, " S"]


def dwa(options: DWAOptions, aggregation: str, num_scenarios: int, period: int) -> LossAdapter:
    """Dynamic weight average (Liu et al., CVPR 2019): scenarios whose loss falls slowly count more.

    All weights are 1 in the first two periods.
    """
    zero = declare_array((num_scenarios,))
    declared = DWAState(declare_array((num_scenarios,), ones), zero, zero, zero)

    def update(state: DWAState, feedback: Feedback, step: Array, mode: Mode) -> DWAState:
        batch = feedback.batch
        state = state._replace(
            losses=state.losses + scenario_totals(feedback.losses, batch, num_scenarios, mode),
            rows=state.rows + scenario_rows(batch, num_scenarios, mode),
        )
        return at_period_end(step, period, _end_dwa_period(state, options.temperature), state)

    row_weights = weigh_scenarios(aggregation, lambda state: state.weights)
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


def _build(choice: AdapterChoice) -> LossAdapter:
    options: DWAOptions = choice.options
    period = period_of(options.period_steps, choice.steps_per_epoch, choice.total_steps)
    return dwa(options, choice.aggregation, choice.schema.num_scenarios, period)


_SPACE = {"temperature": (1.0, 2.0, 4.0, 8.0)}

PART = Part(_build, DWAOptions, space=_SPACE)
