"""The common parts of loss adapters that weigh scenarios by what training has measured.

A scenario is a task of the multi-task literature. Its weight multiplies its rows' losses in their
mean over the batch or, with `scenario_sum`, its mean loss in the sum over scenarios. What an
adapter remembers is the same on every device: it is made of sums over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.adapters.d3 import unweighted
from d3jax.base import LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.choice import AdapterChoice
from d3jax.parameters import Tree
from d3jax.registry import Part

RowWeights = Callable[[Tree, Output, Batch, Array, Mode], Float[Array, " B"]]


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
    aggregation: str, weights_of: Callable[[Tree], Float[Array, " S"]]
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


def equal(aggregation: str, num_scenarios: int) -> LossAdapter:
    """Every row counts the same or, with `scenario_sum`, every scenario."""
    if aggregation == "row":
        return unweighted()
    row_weights = weigh_scenarios(aggregation, lambda state: jnp.ones(num_scenarios))
    return unweighted()._replace(row_weights=row_weights)


def period_of(period_steps: int, steps_per_epoch: int, total_steps: int) -> int:
    """Steps after which DWA and DTP change their weights.

    DWA's authors use an epoch; in a run of fewer than three epochs that would change nothing.
    """
    if period_steps:
        return period_steps
    return steps_per_epoch if total_steps >= 3 * steps_per_epoch else max(1, total_steps // 20)


def at_period_end(step: Array, period: int, ended: Tree, going_on: Tree) -> Tree:
    """`ended` after the last step of a period, `going_on` within it."""
    last = (step + 1) % period == 0
    return jax.tree.map(lambda new, old: jnp.where(last, new, old), ended, going_on)


def _build(choice: AdapterChoice) -> LossAdapter:
    return equal(choice.aggregation, choice.schema.num_scenarios)


NONE = Part(_build)
