"""Rows grouped by scenario, so that each passes through its own scenario's layers only.

A program of fixed shapes can't cut a batch where one scenario ends and the next begins. Blocks of a
fixed number of places, each of one scenario, waste at most a block per scenario, and the cost of a
scenario's layers hardly depends on how many scenarios there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3jax.base import Activation
from d3jax.layers.dense import Dense

SMALLEST = 16
"""Places of a block at least, in a batch that has as many rows: kernels are gathered for each
block, and with fewer rows that costs more than they do."""


class Groups(NamedTuple):
    """The places of B rows in G blocks of R places, each block of one scenario."""

    place: Int[Array, " B"]
    """Each row's place, counted through all blocks."""
    row: Int[Array, "G R"]
    """The row in each place, B in one that is empty."""
    owner: Int[Array, " G"]
    """Each block's scenario."""


def block_shape(rows: int, scenarios: int) -> tuple[int, int]:
    """G and R: as many blocks of R places as any mixture of scenarios may need.

    R is about half a scenario's share of the rows, so that at most half the batch is added.
    """
    share = max(rows // (2 * scenarios), 1)
    size = max(1 << (share.bit_length() - 1), min(SMALLEST, rows))
    # A scenario leaves at most R - 1 places empty, and one without rows takes none.
    return (rows + min(rows, scenarios) * (size - 1)) // size, size


def group_rows(scenario: Int[Array, " B"], scenarios: int) -> Groups:
    """Blocks in order of scenario, and in them the rows in their order."""
    rows = scenario.shape[0]
    count, size = block_shape(rows, scenarios)
    member = (scenario[:, None] == jnp.arange(scenarios)[None]).astype(jnp.int32)
    blocks = -(-member.sum(0) // size)
    ends = jnp.cumsum(blocks)
    nth = jnp.take_along_axis(jnp.cumsum(member, axis=0), scenario[:, None], axis=1)[:, 0] - 1
    place = (ends - blocks)[scenario] * size + nth
    row = jnp.full(count * size, rows, jnp.int32)
    row = row.at[place].set(jnp.arange(rows, dtype=jnp.int32), unique_indices=True)
    owner = (ends[None] <= jnp.arange(count)[:, None]).sum(1)
    return Groups(place, row.reshape(count, size), jnp.minimum(owner, scenarios - 1))


@jax.custom_vjp
def spread(groups: Groups, values: Float[Array, "B *F"]) -> Float[Array, "G R *F"]:
    """Each row's values in its place, and some row's in empty ones.

    What comes out of an empty place is for nobody; the gradient takes it as zero.
    """
    return jnp.take(values, groups.row, axis=0, mode="clip")


@jax.custom_vjp
def collect(groups: Groups, blocks: Float[Array, "G R *F"]) -> Float[Array, "B *F"]:
    """The rows in their order again."""
    return blocks.reshape(-1, *blocks.shape[2:])[groups.place]


def present(groups: Groups, mask: Bool[Array, " B"]) -> Bool[Array, "G R"]:
    """Return the places that hold a real row."""
    return jnp.take(mask, groups.row, mode="fill", fill_value=False)


# As gathers, both ways: the scatters that JAX would derive take several times as long on CPUs.
spread.defvjp(
    lambda groups, values: (spread(groups, values), groups),
    lambda groups, gradient: (None, collect(groups, gradient)),
)
collect.defvjp(
    lambda groups, blocks: (collect(groups, blocks), groups),
    lambda groups, gradient: (
        None,
        jnp.take(gradient, groups.row, axis=0, mode="fill", fill_value=0),
    ),
)


@jax.custom_vjp
def owned(stack: Float[Array, "S *F"], owner: Int[Array, " G"]) -> Float[Array, "G *F"]:
    """Each block's copy; the gradient is a product, not a scatter."""
    return stack[owner]


def _owned_gradient(
    saved: tuple[Int[Array, " G"], int], gradient: Float[Array, "G *F"]
) -> tuple[Float[Array, "S *F"], None]:
    owner, scenarios = saved
    member = jax.nn.one_hot(owner, scenarios, dtype=gradient.dtype)
    return jnp.einsum("gs,g...->s...", member, gradient), None


owned.defvjp(lambda stack, owner: (stack[owner], (owner, stack.shape[0])), _owned_gradient)


def own_dense(
    params: Dense, blocks: Float[Array, "G R I"], groups: Groups
) -> Float[Array, "G R *E O"]:
    """Each block through its scenario's copy of `params` ([S *E I O] and [S *E O]), which may be
    of several experts."""
    outputs = jnp.einsum("gri,g...io->gr...o", blocks, owned(params.kernel, groups.owner))
    if params.bias is None:
        return outputs
    return outputs + owned(params.bias, groups.owner)[:, None]


def own_mlp(
    params: Sequence[Dense],
    hidden: Float[Array, "B I"],
    scenario: Int[Array, " B"],
    activation: Activation = jax.nn.relu,
) -> Float[Array, "B *E O"]:
    """Each row through its scenario's copy of dense layers, the activation between them.

    The gradient of a scenario that no row belongs to is exactly zero.
    """
    groups = group_rows(scenario, params[0].kernel.shape[0])
    blocks = spread(groups, hidden)
    for index, layer in enumerate(params):
        blocks = own_dense(layer, blocks if index == 0 else activation(blocks), groups)
    return collect(groups, blocks)
