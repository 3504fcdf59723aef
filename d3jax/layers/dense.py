"""The few bricks that backbones and heads share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, Float, Int

from d3jax.base import Activation, Mode
from d3jax.floats import wide_type
from d3jax.parameters import Initializer, declare_array, glorot, zeros


class Dense(NamedTuple):
    """`h @ kernel + bias`; stacked copies have leading axes, and `bias` may be None."""

    kernel: Float[Array, "*stack I O"]
    bias: Float[Array, "*stack O"] | None


def declare_dense(
    inputs: int,
    outputs: int,
    *,
    stack: tuple[int, ...] = (),
    bias: Initializer | None = zeros,
) -> Dense:
    """A Glorot-uniform kernel and a bias (none when `bias` is None), `stack` copies of it."""
    kernel = declare_array((*stack, inputs, outputs), glorot(inputs, outputs))
    return Dense(kernel, None if bias is None else declare_array((*stack, outputs), bias))


def dense(params: Dense, hidden: Float[Array, "*B I"], dtype: Any = None) -> Float[Array, "*B O"]:
    """Return the affine map of unstacked parameters, in the widest type of all and float32.

    The product is of numbers rounded to `dtype`; None rounds none.
    """
    wide = wide_type(params, hidden)
    factor, kernel = (array.astype(dtype or wide) for array in (hidden, params.kernel))
    outputs = (factor @ kernel).astype(wide)
    if params.bias is None:
        return outputs
    return outputs + jnp.expand_dims(params.bias.astype(wide), range(outputs.ndim - 1))


def declare_mlp(
    inputs: int, layers: Sequence[int], *, stack: tuple[int, ...] = ()
) -> tuple[Dense, ...]:
    """Dense layers of the given output widths, one after the other."""
    widths = (inputs, *layers)
    return tuple(
        declare_dense(width, output, stack=stack)
        for width, output in zip(widths, layers, strict=False)
    )


def mlp(
    params: Sequence[Dense], hidden: Float[Array, "*B I"], activation: Activation = jax.nn.relu
) -> Float[Array, "*B O"]:
    """Dense layers, each followed by the activation."""
    for layer in params:
        hidden = activation(dense(layer, hidden))
    return hidden


def stacked_dense(params: Dense, hidden: Float[Array, "B *S I"]) -> Float[Array, "B S O"]:
    """Every copy's output for every row; `hidden` is shared [B I] or one per copy [B S I].

    With the few scenarios of CTR data, computing all and selecting is cheaper than gathering a
    kernel per row, and gives exactly zero gradient to a scenario that no row belongs to.
    """
    rows = "bi" if hidden.ndim == 2 else "bsi"
    outputs = jnp.einsum(f"{rows},sio->bso", hidden, params.kernel)
    return outputs if params.bias is None else outputs + params.bias[None]


def select(outputs: Float[Array, "B S *O"], scenario: Int[Array, " B"]) -> Float[Array, "B *O"]:
    """Each row's own scenario out of all."""
    index = scenario.reshape(-1, *[1] * (outputs.ndim - 1))
    return jnp.take_along_axis(outputs, index, axis=1, mode="clip").squeeze(1)


def sum_rows(weight: Float[Array, " B"], values: Float[Array, "B *F"]) -> Float[Array, "*F"]:
    """Σ_b weight_b values_b, as a product of a vector and a matrix.

    As a sum, XLA on CPUs takes wide arrays a column at a time, six times as slow.
    """
    return jnp.einsum("b,b...->...", weight, values)


def explicit_place(array: Array) -> NamedSharding | None:
    """Return where an array lies on a mesh with explicit axes, to put its gradient beside it.

    None on any other mesh, where the compiler decides.
    """
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """Return the arrays as varying over the same axes of a mesh inside `shard_map`.

    A gradient rule of one's own gives each device's share of a gradient. What was the same on all
    devices must vary first, for JAX to add the shares.
    """
    axes = [_varying_axes(array) for array in arrays]
    union = frozenset().union(*axes)
    return tuple(
        jax.lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, axes, strict=True)
    )


def _varying_axes(array: Array) -> frozenset[Hashable]:
    """Return the axes that an array varies over, which JAX 0.9 called `vma`."""
    kind: Any = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def sum_outer(
    left: Float[Array, "B I"],
    right: Float[Array, "B *F"],
    dtype: Any = None,
    place: NamedSharding | None = None,
) -> Float[Array, "I *F"]:
    """Σ_b left_b ⊗ right_b, F being the larger: the gradient of weights, which lie at `place`.

    `dtype` is the sum's.

    On CPUs the left factor is turned around first, as an array of its own: left to itself, XLA
    gives such a product to the slower of its two libraries, and takes up to three times as long.
    """
    if jax.default_backend() == "cpu" and place is None:
        left = jax.lax.optimization_barrier(left.T)
        flat = right.reshape(right.shape[0], -1)
        product = jnp.matmul(left, flat, preferred_element_type=dtype)
        return product.reshape(-1, *right.shape[1:])
    return jnp.einsum(
        "bi,b...->i...", left, right, preferred_element_type=dtype, out_sharding=place
    )


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def for_rows(vector: Float[Array, "*F"], rows: int) -> Float[Array, "B *F"]:
    """The same for every one of B = `rows` rows; its gradient is a `sum_rows`."""
    return jnp.broadcast_to(vector, (rows, *vector.shape))


for_rows.defvjp(
    lambda vector, rows: (for_rows(vector, rows), None),
    lambda rows, _, gradient: (sum_rows(jnp.ones(rows, gradient.dtype), gradient),),
)


def dropout(hidden: Float[Array, "B *F"], rate: float, mode: Mode) -> Float[Array, "B *F"]:
    """In training, zeroes each number with probability `rate` and scales up the rest
    (Srivastava et al., 2014).

    A row's mask depends on the step's key and the row's place in the whole batch alone, so it is
    the same on any number of devices.
    """
    if not mode.train or rate == 0 or mode.key is None:
        return hidden
    device = 0 if mode.axis_name is None else jax.lax.axis_index(mode.axis_name)
    places = device * hidden.shape[0] + jnp.arange(hidden.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(mode.key, places)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, hidden.shape[1:]))(keys)
    return jnp.where(kept, hidden / (1 - rate), 0.0)
