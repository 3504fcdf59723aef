from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.base import Mode
from d3jax.layers.normalization import BatchNorm, Moments, batch_norm, declare_batch_norm
from d3jax.layers.normalized import NormalizedLayer, normalized_layer
from d3jax.parameters import declare_array
from tests.conftest import Draw
from tests.d3jax import reference

B, I, O = 16, 3, 4  # noqa: E741
TRAIN = Mode(train=True)
MASK = np.arange(B) % 5 != 1
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


class Drawn:
    """A layer, its kernels and inputs, and all of them in float64."""

    def __init__(self, draw: Draw) -> None:
        norm = declare_batch_norm(I, O)
        layer = NormalizedLayer(declare_array((I, O)), norm.params, declare_array((I, O)))
        self.layer, self.exact = draw(layer)
        moments, running = draw(norm.state)
        self.moments = moments._replace(variance=abs(moments.variance) + 0.5)
        self.running = running._replace(variance=abs(running.variance) + 0.5)
        self.kernel, self.kernel64 = draw(declare_array((B, I, O)))
        self.inputs, self.inputs64 = draw(declare_array((B, I)))
        self.weight, self.weight64 = draw(declare_array((B, O)))


@pytest.fixture
def drawn(draw: Draw) -> Drawn:
    return Drawn(draw)


def exactly(
    layer: Any, moments: Moments | None, kernel: np.ndarray, inputs: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The layer in float64, by the batch's moments where none are given, and the moments."""
    kernel = kernel + layer.offset
    used = reference.batch_moments(kernel, mask) if moments is None else tuple(moments)
    normal = reference.normalise(kernel, *used, layer.norm.scale, layer.norm.offset)
    fused = reference.leaky_relu(normal) * layer.shared
    return np.einsum("bi,bio->bo", inputs, fused), used


def from_parts(
    layer: NormalizedLayer, moments: Moments, kernel: jax.Array, inputs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Moments]:
    """The same with the gradients that JAX derives."""
    shifted = kernel + layer.offset[None]
    normal, moments = batch_norm(layer.norm, moments, shifted, mask, TRAIN)
    fused = jax.nn.leaky_relu(normal) * layer.shared[None]
    return jnp.einsum("bi,bio->bo", inputs, fused), moments


def in_training(
    layer: NormalizedLayer, moments: Moments, kernel: jax.Array, inputs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Moments]:
    return normalized_layer(layer, moments, kernel, inputs, mask, TRAIN)


def gradients(function: Callable[..., Any], drawn: Drawn, mask: np.ndarray) -> Any:
    def loss(layer: NormalizedLayer, kernel: jax.Array, inputs: jax.Array) -> jax.Array:
        outputs, _ = function(layer, drawn.moments, kernel, inputs, jnp.asarray(mask))
        return jnp.where(mask[:, None], outputs * drawn.weight, 0.0).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(drawn.layer, drawn.kernel, drawn.inputs)


def test_training_normalises_by_the_real_rows(drawn: Drawn) -> None:
    outputs, moments = in_training(
        drawn.layer, drawn.moments, drawn.kernel, drawn.inputs, jnp.asarray(MASK)
    )
    expected, (mean, var) = exactly(drawn.exact, None, drawn.kernel64, drawn.inputs64, MASK)
    close(outputs, expected)
    close(moments.mean, 0.9 * drawn.running.mean + 0.1 * mean)
    close(moments.variance, 0.9 * drawn.running.variance + 0.1 * var)


def test_evaluation_normalises_by_the_running_moments(drawn: Drawn) -> None:
    outputs, moments = normalized_layer(
        drawn.layer, drawn.moments, drawn.kernel, drawn.inputs, jnp.asarray(MASK), Mode()
    )
    expected, _ = exactly(drawn.exact, drawn.running, drawn.kernel64, drawn.inputs64, MASK)
    close(outputs, expected)
    jax.tree.map(np.testing.assert_array_equal, moments, drawn.moments)


@pytest.mark.parametrize("real", [0, 1])
def test_fewer_than_two_rows_use_and_keep_the_running_moments(real: int, drawn: Drawn) -> None:
    mask = np.arange(B) < real
    outputs, moments = in_training(
        drawn.layer, drawn.moments, drawn.kernel, drawn.inputs, jnp.asarray(mask)
    )
    expected, _ = exactly(drawn.exact, drawn.running, drawn.kernel64, drawn.inputs64, mask)
    close(outputs, expected)
    jax.tree.map(np.testing.assert_array_equal, moments, drawn.moments)


def parts(layer: NormalizedLayer, kernel: Any, inputs: Any) -> dict[str, Any]:
    return {"kernel": kernel, "inputs": inputs, **layer.norm._asdict()} | {
        "own": layer.offset,
        "shared": layer.shared,
    }


@pytest.mark.parametrize("name", ["kernel", "inputs", "scale", "offset", "own", "shared"])
def test_the_gradient_is_that_of_the_equations(name: str, drawn: Drawn) -> None:
    """By differences in float64."""
    arrays = parts(drawn.exact, drawn.kernel64, drawn.inputs64)

    def loss(changed: np.ndarray) -> float:
        p = arrays | {name: changed}
        norm = BatchNorm(p["scale"], p["offset"])
        layer = NormalizedLayer(p["own"], norm, p["shared"])
        outputs, _ = exactly(layer, None, p["kernel"], p["inputs"], MASK)
        return float((outputs * drawn.weight64)[MASK].sum())

    found = parts(*gradients(in_training, drawn, MASK))[name]
    close(found, reference.numeric_gradient(loss, arrays[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("real", [0, 1, 2, B])
def test_the_gradients_are_those_that_jax_derives(real: int, drawn: Drawn) -> None:
    mask = np.arange(B) < real
    ours, derived = (gradients(f, drawn, mask) for f in (in_training, from_parts))
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-4), ours, derived)


def test_eight_devices_give_what_one_gives(drawn: Drawn) -> None:
    """Outputs, moments and, summed over devices, gradients."""
    mask = jnp.asarray(MASK)

    def device(
        layer: NormalizedLayer, kernel: jax.Array, inputs: jax.Array, weight: jax.Array, mask: Any
    ) -> Any:
        layer = jax.lax.pcast(layer, "data", to="varying")

        def loss(layer: NormalizedLayer, kernel: jax.Array, inputs: jax.Array) -> Any:
            mode = Mode(train=True, axis_name="data")
            outputs, moments = normalized_layer(layer, drawn.moments, kernel, inputs, mask, mode)
            return jnp.where(mask[:, None], outputs * weight, 0.0).sum(), (outputs, moments)

        found, aux = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(layer, kernel, inputs)
        return (jax.lax.psum(found[0], "data"), *found[1:]), aux

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = P("data")
    many = jax.jit(
        jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(P(), rows, rows, rows, rows),
            out_specs=((P(), rows, rows), (rows, P())),
        )
    )(drawn.layer, drawn.kernel, drawn.inputs, drawn.weight, mask)
    outputs, moments = in_training(drawn.layer, drawn.moments, drawn.kernel, drawn.inputs, mask)
    jax.tree.map(close, many, (gradients(in_training, drawn, MASK), (outputs, moments)))
