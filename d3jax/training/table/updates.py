"""Updates of the embedding table: of all of it, or only of the rows of the batch.

A dense update costs as much as the table is large. The row-wise ones cost what the batch is
large: a batch of 2,048 rows with 23 fields touches at most 47,104 rows of 10 million.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from d3jax.parameters import Tree
from d3jax.training.table.rows import RowSums, Table

Step = Int[Array, ""]
Rate = float | Callable[[Any], Any]
"""A learning rate, or one for each step: a function of the number of steps taken before."""


class TableUpdate(NamedTuple):
    """A way to update the table, as optax' transformations are ways to update any array.

    `init(table)` is what is remembered between steps. `apply(table, state, gradient, step)` gives
    the table and the state after the step that follows `step` others; it runs on each device, on
    the device's part of the rows. `gradient` is that of the whole part or, where `row_wise`
    promises that no other row is touched, of the batch's rows.
    """

    init: Callable[[Table], Tree]
    apply: Callable[[Table, Tree, Any, Step], tuple[Table, Tree]]
    row_wise: bool


def dense(transform: optax.GradientTransformation) -> TableUpdate:
    """Return the update of all rows by any optax transformation.

    Of a sharded table the transformation sees one device's rows, so it must treat each number, or
    each row, by itself; clip by `Optimizer.clip_norm` instead of a part of the transformation.
    """
    transform = with_plain_keys(transform)

    def apply(table: Table, state: Tree, gradient: Table, step: Step) -> tuple[Table, Tree]:
        updates, state = transform.update(gradient, state, table)
        moved: Any = optax.apply_updates(table, updates)
        return moved, state

    return TableUpdate(transform.init, apply, row_wise=False)


def with_plain_keys(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the transformation with the PRNG keys of its state as plain numbers, which a
    checkpoint can hold."""

    def is_key(leaf: Any) -> bool:
        return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    def plain(state: Tree) -> Tree:
        return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, state)

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        state = jax.tree.map(
            lambda shape, a: jax.random.wrap_key_data(a) if is_key(shape) else a,
            jax.eval_shape(transform.init, params),
            state,
        )
        updates, state = transform.update(updates, state, params)
        return updates, plain(state)

    return optax.GradientTransformation(lambda params: plain(transform.init(params)), update)


class AdagradState(NamedTuple):
    """One sum of mean squared gradients a row."""

    total: Float[Array, " V"]


def row_wise_adagrad(
    learning_rate: Rate, weight_decay: float = 0.0, epsilon: float = 1e-8
) -> TableUpdate:
    """Adagrad (Duchi et al., 2011) with one accumulator a row instead of one a number.

    A row that isn't touched doesn't move under dense Adagrad either, so without weight decay
    nothing is lost; decay reaches a row when a batch does. The accumulator of a row adds the mean
    of its squared gradients (Mudigere et al., 2022), a sixteenth of the memory at D = 16.
    """

    def init(table: Table) -> AdagradState:
        return AdagradState(jnp.zeros(table.shape[:1], table.dtype))

    def apply(
        table: Table, state: AdagradState, sums: RowSums, step: Step
    ) -> tuple[Table, AdagradState]:
        total = sums.at(state.total) + jnp.square(sums.gradient).mean(-1)
        row = sums.at(table)
        direction = sums.gradient / (jnp.sqrt(total)[:, None] + epsilon)
        moved = row - rate_at(learning_rate, step) * (direction + weight_decay * row)
        return sums.put(table, moved), AdagradState(sums.put(state.total, total))

    return TableUpdate(init, apply, row_wise=True)


class LazyAdamState(NamedTuple):
    """Adam's running means of gradient and squared gradient."""

    mean: Table
    square: Table


def lazy_adamw(
    learning_rate: Rate,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> TableUpdate:
    """AdamW that moves the rows of the batch alone.

    Dense AdamW also moves a row that no batch touches: its running mean fades over some ten steps
    and weight decay never stops. Here such a row stays as it is, moments included, and goes on
    from there when it is touched; bias is corrected by the step's number, not by the row's. On
    frequent rows the two agree, on rare ones they differ by about a tenth of a row's movement.
    """

    def init(table: Table) -> LazyAdamState:
        return LazyAdamState(jnp.zeros_like(table), jnp.zeros_like(table))

    def apply(
        table: Table, state: LazyAdamState, sums: RowSums, step: Step
    ) -> tuple[Table, LazyAdamState]:
        row, mean, square = (sums.at(array) for array in (table, state.mean, state.square))
        mean = b1 * mean + (1 - b1) * sums.gradient
        square = b2 * square + (1 - b2) * jnp.square(sums.gradient)
        count = (step + 1).astype(jnp.float32)
        spread = jnp.sqrt(square / (1 - b2**count)) + epsilon
        direction = mean / (1 - b1**count) / spread
        moved = row - rate_at(learning_rate, step) * (direction + weight_decay * row)
        return sums.put(table, moved), LazyAdamState(
            sums.put(state.mean, mean), sums.put(state.square, square)
        )

    return TableUpdate(init, apply, row_wise=True)


def rate_at(rate: Rate, step: Step) -> Any:
    """Return the learning rate of the step that follows `step` others."""
    return rate(step) if callable(rate) else rate
