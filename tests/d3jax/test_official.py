from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.base import EVALUATION, Inputs, Mode, Sizes
from d3jax.heads import D3Options
from d3jax.official import OfficialParams, OfficialState, d3_official
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, H, I, O = 8, 4, 3, 2, 5, 6  # noqa: E741
SIZES = Sizes(N, D, 3)
CONFIG = D3Options(form="official", field_hidden=H, width=O, gate_layers=(7, 3), head_layers=(5, 4))
TRAIN = Mode(train=True)
MASK = np.array([True, True, False, True, True, True, True, False])


def drawn(config: D3Options, draw: Draw) -> tuple[Any, Any, Any, Any]:
    """Parameters and state, and both in float64; variances are positive."""
    declared = d3_official(config).declare(SIZES, I)
    params, exact = draw(declared.params)
    state, exact_state = draw(declared.state)
    positive = jax.tree.map(lambda leaf: abs(leaf) + 0.3, (state, exact_state))
    return params, positive[0], exact, positive[1]


def rows(draw: Draw) -> tuple[tuple[jax.Array, Inputs], tuple[np.ndarray, np.ndarray]]:
    (x, x64), (u, u64) = draw(declare_array((B, N, D))), draw(declare_array((B, I)))
    return (u, Inputs(x, jnp.zeros(B, jnp.int32), jnp.asarray(MASK))), (u64, x64)


def as_reference(p: OfficialParams, s: OfficialState) -> reference.Official:
    def block(layer: Any, norm: Any, moments: Any) -> reference.Block:
        flat = [leaf.reshape(-1) for leaf in (*norm, *moments)]
        return reference.Block(tuple(layer), *flat)

    field, moments = p.norms["field"], s.norms["field"]
    parts = [slice(j * H, (j + 1) * H) for j in range(N)]
    fields = [
        reference.Block(
            (p.hidden.field_kernel[j], p.hidden.field_bias[j]),
            *(leaf[part] for leaf in (*field, *moments)),
        )
        for j, part in enumerate(parts)
    ]
    weight = (p.generator.kernel.reshape(N * H, -1), p.generator.kernel_offset.reshape(-1))
    return reference.Official(
        query=p.attention.query,
        key=p.attention.key,
        value=p.attention.value,
        fields=fields,
        inner=block(p.hidden.mix, p.norms["mix"], s.norms["mix"]),
        weight=block(weight, p.norms["kernel"], s.norms["kernel"]),
        bias=block(p.generator.bias, p.norms["bias"], s.norms["bias"]),
        gate=[block(*b, m) for b, m in zip(p.gate or (), s.gate or (), strict=True)],
        shared=p.shared,
        head=[block(*b, m) for b, m in zip(p.tail, s.tail, strict=True)],
        output=p.output,
    )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("change", [{}, {"parts": "d2"}, {"parts": "d1"}, {"head_layers": ()}])
def test_values(train: bool, change: dict[str, Any], draw: Draw) -> None:
    config = replace(CONFIG, **change)
    params, state, exact, exact_state = drawn(config, draw)
    (u, inputs), (u64, x64) = rows(draw)
    apply = jax.jit(d3_official(config).apply, static_argnums=4)
    output, new_state = apply(params, state, u, inputs, Mode(train=train))
    numbers = as_reference(exact, exact_state)
    logits, attention, gate = reference.official(numbers, x64, u64, MASK, train, config.parts)
    keep = MASK if train else slice(None)
    np.testing.assert_allclose(output.logits[keep], logits[keep], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(output.attention, attention, rtol=1e-4, atol=1e-5)
    if config.parts == "d1":
        assert output.gate is None
    else:
        np.testing.assert_allclose(output.gate[keep], gate[keep], rtol=1e-3, atol=1e-4)
    if not train:
        jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_training_moves_every_running_moment_towards_the_batch(draw: Draw) -> None:
    params, state, exact, running = drawn(CONFIG, draw)
    (u, inputs), (_, x64) = rows(draw)
    _, new = jax.jit(d3_official(CONFIG).apply, static_argnums=4)(params, state, u, inputs, TRAIN)
    changed = jax.tree.map(lambda a, b: bool((a != b).all()), new, state)
    assert all(jax.tree.leaves(changed))
    scores = reference.dense(exact.gate[0].dense, x64.reshape(B, -1))
    mean, variance = reference.batch_moments(scores, MASK)
    moments = running.gate[0]
    np.testing.assert_allclose(
        new.gate[0].mean, 0.9 * moments.mean + 0.1 * mean, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        new.gate[0].variance, 0.9 * moments.variance + 0.1 * variance, rtol=1e-4, atol=1e-5
    )


def test_one_row_trains_on_the_running_moments(draw: Draw) -> None:
    params, state, _, _ = drawn(CONFIG, draw)
    (u, inputs), _ = rows(draw)
    alone = jax.tree.map(lambda leaf: leaf[:1], inputs)
    apply = jax.jit(d3_official(CONFIG).apply, static_argnums=4)
    trained, new_state = apply(params, state, u[:1], alone, TRAIN)
    evaluated, _ = apply(params, state, u, inputs, EVALUATION)
    np.testing.assert_allclose(trained.logits, evaluated.logits[:1], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_padding_changes_nothing(draw: Draw) -> None:
    params, state, _, _ = drawn(CONFIG, draw)
    (u, inputs), _ = rows(draw)
    apply = jax.jit(d3_official(CONFIG).apply, static_argnums=4)
    output, moments = apply(params, state, u, inputs, TRAIN)
    x = jnp.where(MASK[:, None, None], inputs.x, 30.0)
    other = apply(params, state, jnp.where(MASK[:, None], u, -50.0), inputs._replace(x=x), TRAIN)
    np.testing.assert_allclose(output.logits[MASK], other[0].logits[MASK], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moments, other[1])


@pytest.mark.parametrize("detach", [True, False])
def test_only_a_detached_generator_leaves_the_attention_untaught(detach: bool, draw: Draw) -> None:
    config = replace(CONFIG, detach_generator=detach)
    params, state, _, _ = drawn(config, draw)
    (u, inputs), _ = rows(draw)
    weight = jnp.linspace(-1.0, 1.0, B) * MASK.astype(np.float32)

    def loss(params: OfficialParams) -> jax.Array:
        output, _ = d3_official(config).apply(params, state, u, inputs, TRAIN)
        return (weight * output.logits).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for layer in gradient.attention[:3]:
        assert (np.abs(layer.kernel).max() == 0) == detach
    assert np.abs(gradient.hidden.field_kernel).max() > 0


def test_eight_devices_are_one(draw: Draw) -> None:
    params, state, _, _ = drawn(CONFIG, draw)
    (u, inputs), _ = rows(draw)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mode = Mode(train=True, axis_name="data")

    def device(u: jax.Array, inputs: Inputs) -> tuple[jax.Array, OfficialState]:
        output, moments = d3_official(CONFIG).apply(params, state, u, inputs, mode)
        return output.logits, moments

    many = jax.shard_map(
        device, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=(P("data"), P())
    )
    logits, moments = jax.jit(many)(u, inputs)
    one = jax.jit(d3_official(CONFIG).apply, static_argnums=4)(params, state, u, inputs, TRAIN)
    np.testing.assert_allclose(logits[MASK], one[0].logits[MASK], rtol=1e-3, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), moments, one[1]
    )


def test_its_parameters_are_counted() -> None:
    declared = d3_official(CONFIG).declare(SIZES, I)
    m = N * H
    blocks = [(N * D, 7), (7, 3), (3, 2), (O, 5), (5, 4)]
    assert count(declared.params) == (
        3 * (D * D + D)
        + N * (D * H + H)
        + (m * m + m)
        + (m + 1) * (I * O + O)
        + 2 * (m + m + I * O + O)
        + I * O
        + sum(a * b + 3 * b for a, b in blocks)
        + (4 + 1)
    )


def test_linear_layers_start_as_those_of_pytorch() -> None:
    """Kernels and biases fill ±1/√inputs; the shared kernel is Glorot's, and norms are neutral."""
    config = replace(CONFIG, field_hidden=20, width=30, gate_layers=(50, 40), head_layers=(60,))
    params = initialize(d3_official(config).declare(Sizes(N, 50, 3), 70).params, jax.random.key(0))
    bounds = {
        "attention": 50,
        "hidden.field": 50,
        "hidden.mix": N * 20,
        "generator": N * 20,
        "gate[0].dense": N * 50,
        "gate[1].dense": 50,
        "gate[2].dense": 40,
        "tail[0].dense": 30,
        "output": 60,
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path).lstrip(".")
        if "norm" in name:
            continue
        found = [inputs for start, inputs in bounds.items() if name.startswith(start)]
        limit = found[0] ** -0.5 if found else (6 / (70 + 30)) ** 0.5
        largest = float(abs(leaf).max())
        assert largest <= limit, name
        assert leaf.size < 30 or largest > 0.9 * limit, name
    assert params.shared is not None
