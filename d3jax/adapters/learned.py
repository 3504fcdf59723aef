"""A number per scenario that is learned beside the model, by an Adam of its own.

It and its moments stay as they are in a step without rows of the scenario.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from d3jax.adapters.scenarios import scenario_rows, scenario_totals
from d3jax.base import Mode
from d3jax.batch import Batch
from d3jax.parameters import Initializer, Parameter, declare_array

ADAM = optax.scale_by_adam()


class Learned(NamedTuple):
    """A number per scenario [S], and its Adam moments, with a step count of its own."""

    value: Float[Array, " S"]
    adam: optax.ScaleByAdamState


def declare_learned(num_scenarios: int, init: Initializer) -> Learned:
    """The numbers by their initialiser, and moments of zero."""
    values = jax.ShapeDtypeStruct((num_scenarios,), jnp.float32)
    moments = jax.eval_shape(jax.vmap(ADAM.init), values)
    adam = jax.tree.map(lambda leaf: Parameter(leaf.shape, dtype=leaf.dtype), moments)
    return Learned(declare_array((num_scenarios,), init), adam)


def descend(
    learned: Learned, gradient: Float[Array, " S"], present: Bool[Array, " S"], rate: float
) -> Learned:
    """One Adam step of size `rate` for the scenarios that are present."""
    direction, adam = jax.vmap(ADAM.update)(gradient, learned.adam)
    moved = Learned(learned.value - rate * direction, adam)
    return jax.tree.map(partial(jnp.where, present), moved, learned)


def scenario_means(
    losses: Float[Array, " B"], batch: Batch, num_scenarios: int, mode: Mode
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """The mean loss of each scenario (0 for an absent one), and its number of rows."""
    rows = scenario_rows(batch, num_scenarios, mode)
    return scenario_totals(losses, batch, num_scenarios, mode) / jnp.maximum(rows, 1.0), rows
