from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.fusion import (
    FusedParams,
    declare_fused,
    declare_gate,
    fuse,
    fused_layer,
    fused_layer_plain,
    fusion_gate,
)
from d3jax.generation import generate_weights
from d3jax.parameters import declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, M, I, O = 6, 8, 5, 12  # noqa: E741
VARIANTS = [
    *itertools.product(
        [True], ["multiplicative", "additive"], ["multiplicative", "additive", "specific"]
    ),
    (False, "multiplicative", "multiplicative"),
]
variants = pytest.mark.parametrize(("shared", "kernel_fusion", "bias_fusion"), VARIANTS)
EVEN = jnp.full((B, 2), 0.5)


def gate_of(draw: Draw) -> tuple[jax.Array, np.ndarray]:
    scores, scores64 = draw(declare_array((B, 2)))
    return jax.nn.softmax(scores), reference.softmax(scores64)


def layer_of(
    draw: Draw,
    shared: bool = True,
    kernel_fusion: str = "multiplicative",
    bias_fusion: str = "multiplicative",
) -> tuple[FusedParams, FusedParams]:
    return draw(
        declare_fused(M, I, O, shared=shared, kernel_fusion=kernel_fusion, bias_fusion=bias_fusion)
    )


@pytest.mark.parametrize("layers", [(7, 3), (4,), ()])
def test_gate_values(layers: tuple[int, ...], draw: Draw) -> None:
    params, exact = draw(declare_gate(15, layers))
    selected, selected64 = draw(declare_array((B, 5, 3)))
    expected = reference.gate([*exact.hidden, exact.output], selected64)
    gate = fusion_gate(params, selected)
    np.testing.assert_allclose(gate, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gate.sum(1), np.ones(B), rtol=1e-6)


def test_gate_shapes_and_kernels_that_are_never_zero(key: jax.Array) -> None:
    params = initialize(declare_gate(40), key)
    kernels = [layer.kernel for layer in (*params.hidden, params.output)]
    assert [kernel.shape for kernel in kernels] == [(40, 64), (64, 16), (16, 2)]
    for kernel in kernels:
        limit = np.sqrt(6 / sum(kernel.shape))
        assert 0.9 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
def test_fuse_values(form: str, draw: Draw) -> None:
    gate, gate64 = gate_of(draw)
    for shape in ((I, O), (O,)):
        specific, specific64 = draw(declare_array((B, *shape)))
        shared, shared64 = draw(declare_array(shape))
        ours = fuse(gate, specific, shared, additive=form == "additive")
        expected = reference.fuse(gate64, specific64, shared64, form)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@given(p=st.floats(0, 1, width=32))
def test_the_product_depends_on_the_gate_by_p_times_one_minus_p(p: float) -> None:
    gate = jnp.array([[p, 1 - p], [1 - p, p]])
    fused = fuse(gate, jnp.full((2, 1), 2.0), jnp.array([3.0]))
    np.testing.assert_allclose(fused[0], fused[1], rtol=1e-6)
    np.testing.assert_allclose(fused[0], 6 * p * (1 - p), rtol=1e-5, atol=1e-7)


def test_the_product_is_stationary_at_an_even_gate() -> None:
    def weight(p: jax.Array, additive: bool) -> jax.Array:
        gate = jnp.stack([p, 1 - p])[None]
        return fuse(gate, jnp.array([[2.0]]), jnp.array([3.0]), additive=additive).sum()

    slope = jax.grad(weight)
    assert slope(jnp.float32(0.5), False) == 0
    assert slope(jnp.float32(0.25), False) == pytest.approx(6 * 0.5)
    assert slope(jnp.float32(0.5), True) == pytest.approx(2 - 3)


def test_a_gate_with_a_zero_last_kernel_gets_no_gradient(draw: Draw) -> None:
    params, _ = draw(declare_gate(15, (4,)))
    selected, _ = draw(declare_array((B, 5, 3)))
    params = params._replace(output=jax.tree.map(jnp.zeros_like, params.output))

    def weight(params: object) -> jax.Array:
        gate = fusion_gate(params, selected)
        return fuse(gate, jnp.ones((B, 1)), jnp.ones(1)).sum()

    for leaf in jax.tree.leaves(jax.grad(weight)(params)):
        np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=1e-7)


@variants
def test_layer_values(shared: bool, kernel_fusion: str, bias_fusion: str, draw: Draw) -> None:
    params, exact = layer_of(draw, shared, kernel_fusion, bias_fusion)
    (gate, gate64), (hidden, hidden64) = gate_of(draw), draw(declare_array((B, M)))
    inputs, inputs64 = draw(declare_array((B, I)))
    weight = (exact.generator.kernel.reshape(M, I * O), exact.generator.kernel_offset.reshape(-1))
    kernels, biases = reference.specific_parts(weight, exact.generator.bias, hidden64, I)
    if shared:
        kernels = reference.fuse(gate64, kernels, exact.shared.kernel, kernel_fusion)
        biases = reference.fuse(gate64, biases, exact.shared.bias, bias_fusion)
    expected = reference.layer(inputs64, kernels, biases, reference.identity)
    for layer in (fused_layer, fused_layer_plain):
        ours = layer(
            params,
            gate if shared else None,
            hidden,
            inputs,
            kernel_additive=kernel_fusion == "additive",
            bias_additive=bias_fusion == "additive",
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [2**28, B * I * 4])
@variants
def test_folded_and_sliced_layer_is_the_plain_one(
    shared: bool, kernel_fusion: str, bias_fusion: str, budget: int, draw: Draw
) -> None:
    params, _ = layer_of(draw, shared, kernel_fusion, bias_fusion)
    arguments = (params, gate_of(draw)[0] if shared else None)
    arguments += (draw(declare_array((B, M)))[0], draw(declare_array((B, I)))[0])
    target, _ = draw(declare_array((B, O)))
    additive = {
        "kernel_additive": kernel_fusion == "additive",
        "bias_additive": bias_fusion == "additive",
    }

    def plain(arguments: tuple[object, ...]) -> jax.Array:
        return ((fused_layer_plain(*arguments, **additive) - target) ** 2).sum()

    def folded(arguments: tuple[object, ...]) -> jax.Array:
        return ((fused_layer(*arguments, **additive, budget=budget) - target) ** 2).sum()

    expected = jax.value_and_grad(plain)(arguments)
    ours = jax.value_and_grad(folded)(arguments)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, ours, expected)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours[1]))


@pytest.mark.parametrize(
    ("budget", "width"), [(B * I * O, 12), (B * I * O - 1, 2), (4 * B * I * 2, 2), (1, 1)]
)
def test_generated_kernels_past_the_budget_are_cut_to_a_quarter_of_it(
    budget: int, width: int, draw: Draw
) -> None:
    params, _ = layer_of(draw)
    hidden, inputs = draw(declare_array((B, M)))[0], draw(declare_array((B, I)))[0]

    def loss(params: FusedParams) -> jax.Array:
        return fused_layer(params, EVEN, hidden, inputs, budget=budget).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    found = {int(number) for number in re.findall(rf"f32\[{B},{I},(\d+)\]", program)}
    assert found - {1} == {width} - {1}, "a column of inputs is none of the kernels"


def test_constant_generator_alone_is_a_dense_layer(draw: Draw) -> None:
    params, exact = layer_of(draw, shared=False)
    generator = params.generator._replace(kernel=jnp.zeros((M, I, O)))
    generator = generator._replace(bias=generator.bias._replace(kernel=jnp.zeros((M, O))))
    hidden, (inputs, inputs64) = draw(declare_array((B, M)))[0], draw(declare_array((B, I)))
    ours = fused_layer(FusedParams(generator, None), None, hidden, inputs)
    layer = (exact.generator.kernel_offset, exact.generator.bias.bias)
    np.testing.assert_allclose(ours, reference.dense(layer, inputs64), rtol=1e-4, atol=1e-5)


def test_generator_of_ones_and_an_even_gate_is_a_quarter_of_the_shared_layer(draw: Draw) -> None:
    params, exact = layer_of(draw)
    zero = jax.tree.map(jnp.zeros_like, params.generator)
    generator = zero._replace(
        kernel_offset=jnp.ones((I, O)), bias=zero.bias._replace(bias=jnp.ones(O))
    )
    hidden, (inputs, inputs64) = draw(declare_array((B, M)))[0], draw(declare_array((B, I)))
    ours = fused_layer(FusedParams(generator, params.shared), EVEN, hidden, inputs)
    expected = reference.dense((exact.shared.kernel / 4, exact.shared.bias / 4), inputs64)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias_fusion", ["multiplicative", "specific"])
def test_swapping_the_gate_changes_nothing(bias_fusion: str, draw: Draw) -> None:
    params, _ = layer_of(draw, bias_fusion=bias_fusion)
    gate, hidden = gate_of(draw)[0], draw(declare_array((B, M)))[0]
    inputs = draw(declare_array((B, I)))[0]
    for layer in (fused_layer, fused_layer_plain):
        swapped = layer(params, gate[:, ::-1], hidden, inputs)
        np.testing.assert_allclose(layer(params, gate, hidden, inputs), swapped, rtol=1e-5)


@pytest.mark.parametrize("additive", ["kernel", "bias"])
def test_a_sum_tells_the_gate_values_apart(additive: str, draw: Draw) -> None:
    forms = {"kernel_fusion": "multiplicative", "bias_fusion": "multiplicative"}
    params, _ = layer_of(draw, **{**forms, f"{additive}_fusion": "additive"})
    gate, hidden = gate_of(draw)[0], draw(declare_array((B, M)))[0]
    inputs = draw(declare_array((B, I)))[0]
    how = {f"{additive}_additive": True}
    swapped = fused_layer(params, gate[:, ::-1], hidden, inputs, **how)
    assert np.abs(swapped - fused_layer(params, gate, hidden, inputs, **how)).max() > 0.1


@variants
def test_initial_scales(shared: bool, kernel_fusion: str, bias_fusion: str, key: jax.Array) -> None:
    declaration = declare_fused(
        4, 50, 40, shared=shared, kernel_fusion=kernel_fusion, bias_fusion=bias_fusion
    )
    params = initialize(declaration, key)
    limit = np.sqrt(6 / 90)
    offset = params.generator.kernel_offset
    if shared and kernel_fusion == "multiplicative":
        np.testing.assert_array_equal(offset, np.ones((50, 40)))
    else:
        assert 0.98 * limit < np.abs(offset).max() <= limit
    assert 0.98 < np.abs(params.generator.kernel).max() / (0.1 * np.sqrt(6 / 44)) <= 1.001
    assert (params.shared is not None) == shared
    if shared:
        assert 0.98 * limit < np.abs(params.shared.kernel).max() <= limit
        start = {"multiplicative": 1.0, "additive": 0.0, "specific": None}[bias_fusion]
        if start is None:
            assert params.shared.bias is None
        else:
            np.testing.assert_array_equal(params.shared.bias, np.full(40, start))


def test_a_fused_layer_starts_near_a_quarter_of_a_glorot_layer(key: jax.Array) -> None:
    params = initialize(declare_fused(4, 368, 128, shared=True), key)
    rows = np.random.default_rng(1).normal(size=(64, 372)).astype(np.float32)
    hidden, inputs = jnp.abs(rows[:, :4]), jnp.asarray(rows[:, 4:])
    gate = jnp.full((64, 2), 0.5)
    bias = fused_layer(params, gate, hidden, jnp.zeros_like(inputs))
    outputs = fused_layer(params, gate, hidden, inputs) - bias
    assert outputs.std() == pytest.approx(np.sqrt(368 * 2 / (368 + 128)) / 4, rel=0.1)


RANKS = (1, 3, 7)


@pytest.mark.parametrize("budget", [2**28, 40])
@pytest.mark.parametrize("rank", RANKS)
def test_a_factored_generator_gives_the_plain_layer_whatever_comes_first(
    rank: int, budget: int, draw: Draw
) -> None:
    """Below I terms the inputs meet the shared matrices first, above it kernels are made."""
    assert min(RANKS) < I < max(RANKS)
    params, _ = draw(declare_fused(M, I, O, shared=True, rank=rank))
    gate, _ = gate_of(draw)
    hidden, inputs = draw(declare_array((B, M)))[0], draw(declare_array((B, I)))[0]
    assert params.generator.kernel.shape == (rank, I, O)

    def loss(params: FusedParams, form: str) -> jax.Array:
        if form == "plain":
            return (fused_layer_plain(params, gate, hidden, inputs) ** 2).sum()
        return (fused_layer(params, gate, hidden, inputs, budget=budget) ** 2).sum()

    plain, fused = (jax.value_and_grad(loss)(params, form) for form in ("plain", "fused"))
    np.testing.assert_allclose(fused[0], plain[0], rtol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (fused[1], plain[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_a_factored_kernel_is_a_sum_of_shared_matrices(draw: Draw) -> None:
    params, exact = draw(declare_fused(M, I, O, shared=False, rank=3).generator)
    hidden, hidden64 = draw(declare_array((B, M)))
    kernel, _ = generate_weights(params, hidden)
    weights = hidden64 @ exact.mixing
    expected = (
        sum(weights[:, r, None, None] * exact.kernel[r] for r in range(3)) + exact.kernel_offset
    )
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)


def test_full_rank_is_the_dense_generator(draw: Draw) -> None:
    dense = draw(declare_fused(M, I, O, shared=True))[0]
    gate, _ = gate_of(draw)
    hidden, inputs = draw(declare_array((B, M)))[0], draw(declare_array((B, I)))[0]
    factored = dense._replace(generator=dense.generator._replace(mixing=jnp.eye(M)))
    ours = fused_layer(factored, gate, hidden, inputs)
    np.testing.assert_allclose(ours, fused_layer(dense, gate, hidden, inputs), rtol=1e-6)


@pytest.mark.parametrize("budget", [2**28, 100])
@pytest.mark.parametrize("rank", [0, 3])
def test_half_precision_is_close_and_leaves_float32_around_it(
    rank: int, budget: int, draw: Draw
) -> None:
    params, _ = draw(declare_fused(M, I, O, shared=True, rank=rank))
    hidden, _ = draw(declare_array((B, M)))
    inputs, _ = draw(declare_array((B, I)))

    def total(params: FusedParams, dtype: type) -> tuple[jax.Array, jax.Array]:
        outputs = fused_layer(params, EVEN, hidden, inputs, budget=budget, dtype=dtype)
        return (outputs**2).sum(), outputs

    differentiate = jax.grad(total, has_aux=True)
    ours, outputs = differentiate(params, jnp.bfloat16)
    theirs, expected = differentiate(params, jnp.float32)
    assert outputs.dtype == jnp.float32
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=0.02 * scale)
    assert float(jnp.abs(outputs - expected).max()) > 1e-5 * scale, "or nothing was rounded"
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * float(jnp.abs(b).max()) + 1e-6)
