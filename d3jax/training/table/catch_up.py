"""Row-wise AdamW that agrees with dense AdamW: the moves that a row missed, in closed form.

Without a gradient, dense AdamW goes on moving a row: after i steps of silence its mean is b1^i m
and its square b2^i v, so the sum of the missed moves is m / √v times a sum that depends on the
steps alone, the same for every row last touched at the same step. One number a step holds it, a
second the first-order effect of epsilon, a third the weight decay. What is left is rounding,
but for numbers whose √v is about epsilon.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3jax.config import OptimizerConfig
from d3jax.parameters import Parameter, declare_array
from d3jax.training.table.rows import Table, Touched
from d3jax.training.table.updates import (
    LazyAdamState,
    Places,
    Step,
    TableUpdate,
    Updated,
    declare_index,
    lazy_adamw,
)

WINDOW = 256
"""Steps after which a mean that halves every seven has nothing left to give."""


class Missed(NamedTuple):
    """Sums over the steps since a row was last touched, by that step (0: never).

    `move` multiplies m / √v, `epsilon` over `move` is what epsilon adds to √v, and `decay` is the
    logarithm of what weight decay has left of a number after each step of the run.
    """

    move: Float[Array, " T"]
    epsilon: Float[Array, " T"]
    decay: Float[Array, " T"]


class CatchUpState(NamedTuple):
    """The moments, the step after which each row was last current, and the sums."""

    adam: LazyAdamState
    last: Int[Array, " V"]
    missed: Missed


def adamw_with_catch_up(config: OptimizerConfig, sharded: bool, steps: int) -> TableUpdate:
    """`lazy_adamw` whose rows first make the moves they missed; for runs of at most `steps`.

    A checkpoint's table is as the steps left it; `settle` catches all its rows up.
    """
    lazy = lazy_adamw(config, sharded)

    def declare(table: Parameter) -> CatchUpState:
        sums = declare_array((steps + WINDOW + 1,))
        return CatchUpState(lazy.declare(table), declare_index(table), Missed(sums, sums, sums))

    def ready(
        table: Table, state: CatchUpState, places: Places, step: Step
    ) -> tuple[Table, CatchUpState]:
        adam = state.adam
        arrays = (table, adam.mean, adam.square)
        rows, means, squares = (a.at[places].get(mode="fill") for a in arrays)
        last = state.last.at[places].get(mode="fill", fill_value=0)
        caught = caught_up(config, rows, means, squares, last, state.missed, step)
        table, mean, square = (
            array.at[places].set(value, mode="drop")
            for array, value in zip(arrays, caught, strict=True)
        )
        last = state.last.at[places].set(step, mode="drop")
        return table, CatchUpState(LazyAdamState(mean, square, adam.slot), last, state.missed)

    def apply(table: Table, state: CatchUpState, touched: Touched, step: Step) -> Updated:
        updated = lazy.apply(table, state.adam, touched, step)
        last = state.last.at[touched.places].set(step + 1, mode="drop")
        missed = advance(config, state.missed, step + 1)
        return updated._replace(state=CatchUpState(updated.state, last, missed))

    def settle(table: Table, state: CatchUpState, step: Step) -> Table:
        adam = state.adam
        return caught_up(config, table, adam.mean, adam.square, state.last, state.missed, step)[0]

    return TableUpdate(declare, ready, apply, settle, row_wise=True)


def caught_up(
    config: OptimizerConfig,
    row: Float[Array, "R D"],
    mean: Float[Array, "R D"],
    square: Float[Array, "R D"],
    last: Int[Array, " R"],
    missed: Missed,
    step: Step,
) -> tuple[Array, Array, Array]:
    """Rows and moments last current after step `last`, as dense AdamW has them after `step`."""
    move, epsilon = missed.move[last][:, None], missed.epsilon[last][:, None]
    shift = config.epsilon * epsilon / jnp.maximum(move, _TINY)
    moved = jnp.where(move > 0, move * mean / (jnp.sqrt(square) + shift + _TINY), 0.0)
    kept = jnp.exp(missed.decay[step] - missed.decay[last])[:, None]
    silent = (step - last).astype(jnp.float32)[:, None]
    return kept * (row - moved), mean * config.b1**silent, square * config.b2**silent


def advance(config: OptimizerConfig, missed: Missed, step: Step) -> Missed:
    """The sums after step number `step` (the first is 1), which rows elsewhere have missed."""
    now = step.astype(jnp.float32)
    decay = missed.decay[step - 1] + math.log1p(-config.learning_rate * config.embedding_decay)
    last = jnp.maximum(step - WINDOW, 0) + jnp.arange(WINDOW)
    silent = (step - last).astype(jnp.float32)
    ratio = config.b1 / math.sqrt(config.b2)
    unbiased = jnp.sqrt(1 - config.b2**now)
    scale = config.learning_rate * unbiased / (1 - config.b1**now)
    move = jnp.where(silent >= 1, jnp.exp(missed.decay[last] - decay) * ratio**silent * scale, 0.0)
    return Missed(
        missed.move.at[last].add(move),
        missed.epsilon.at[last].add(move * unbiased * config.b2 ** (-silent / 2)),
        missed.decay.at[step].set(decay),
    )


_TINY = 1e-30
