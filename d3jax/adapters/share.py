"""Weights by a scenario's share of the rows: the smaller the scenario, the more its rows count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.scenarios import scenario_rows
from d3jax.base import Feedback, LossAdapter, Mode, Output
from d3jax.batch import Batch
from d3jax.checks import within
from d3jax.choice import AdapterChoice
from d3jax.errors import ConfigError
from d3jax.parameters import Tree, declare_array
from d3jax.registry import Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class ShareOptions:
    """Weights by the share of the rows."""

    power: float = 0.5
    """Alpha of share^-alpha; 0: all rows count the same, 1: all scenarios do."""

    def __post_init__(self) -> None:
        check_types(self, "share.")
        within("share.power", self.power, 0, 1)


class ShareState(NamedTuple):
    """The rows of each scenario that training has seen."""

    rows: Float[Array, " S"]


def share(power: float, num_scenarios: int) -> LossAdapter:
    """Return the adapter in which a row counts share^-power of its scenario, over the batch's mean.

    The share is that of the rows seen so far, this batch's among them. It lifts a small scenario
    and costs the large ones: see `experiments/results/README.md`.
    """

    def row_weights(
        state: ShareState, output: Output, batch: Batch, step: Array, mode: Mode
    ) -> Float[Array, " B"]:
        here = scenario_rows(batch, num_scenarios, mode)
        weights = share_weights(state.rows + here, power)
        mean = (here * weights).sum() / jnp.maximum(here.sum(), 1.0)
        return (weights / jnp.maximum(mean, 1.0))[batch.scenario]

    def update(state: ShareState, feedback: Feedback, step: Array, mode: Mode) -> Tree:
        return ShareState(state.rows + scenario_rows(feedback.batch, num_scenarios, mode))

    declared = ShareState(declare_array((num_scenarios,)))
    return LossAdapter(declared, binary_cross_entropy, row_weights, update)


def share_weights(rows: Float[Array, " S"], power: float) -> Float[Array, " S"]:
    """Return (n_s / Σ n)^-power; a scenario without rows counts as one of a single row."""
    rows = jnp.maximum(rows, 1.0)
    return (rows / rows.sum()) ** -power


def _build(choice: AdapterChoice) -> LossAdapter:
    if choice.aggregation != "row":
        raise ConfigError(
            f"aggregation is {choice.aggregation}, but share weighs rows; use --aggregation row"
        )
    options: ShareOptions = choice.options
    return share(options.power, choice.schema.num_scenarios)


_SPACE = {"power": (0.25, 0.5, 0.75, 1.0)}

PART = Part(_build, ShareOptions, space=_SPACE)
