"""D3 alone: the layer is the reference's, and says what is wrong with what it is given."""

from __future__ import annotations

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import balance, layer, nnx
from d3jax.balance import row_weights
from d3jax.errors import ConfigError, ShapeError
from d3jax.heads import D3Options, D3Params, d3
from d3jax.layer import LayerFunctions, d3_layer
from d3jax.parameters import declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, I, O = 6, 4, 3, 5, 2  # noqa: E741
SIZES = {"fields": N, "dim": D, "inputs": I, "outputs": O}
SMALL = {"field_hidden": 2, "gate_layers": (7, 3)}


def make(**changes: Any) -> LayerFunctions:
    return d3_layer(**{**SIZES, **SMALL, **changes})


def rows(draw: Draw) -> tuple[tuple[jax.Array, jax.Array], tuple[np.ndarray, np.ndarray]]:
    (hidden, hidden64), (x, x64) = draw(declare_array((B, I))), draw(declare_array((B, N, D)))
    return (hidden, x), (hidden64, x64)


def expected(p: D3Params, hidden: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The default layer by the reference: outputs, attention's logits, gate."""
    generator, shared = p.layers[0]
    logits = reference.attention_logits(p.attention.query, p.attention.key, x)
    selected = reference.selected_text(logits, x)
    units = reference.generator_hidden(*p.hidden, selected)
    matrices = generator.kernel
    if generator.mixing is not None:
        matrices = np.einsum("mr,rio->mio", generator.mixing, matrices)
    weight = (matrices.reshape(len(matrices), -1), generator.kernel_offset.ravel())
    kernels, biases = reference.specific_parts(weight, generator.bias, units, I)
    gate = reference.gate([*p.gate.hidden, p.gate.output], selected)
    kernels = reference.fuse(gate, kernels, shared.kernel, "multiplicative")
    biases = reference.fuse(gate, biases, shared.bias, "multiplicative")
    return reference.layer(hidden, kernels, biases, reference.identity), logits, gate


@pytest.mark.parametrize("rank", [0, 2])
def test_values(rank: int, draw: Draw) -> None:
    functions = make(rank=rank)
    params, exact = draw(functions.init(jax.random.key(0)))
    given, exact_rows = rows(draw)
    outputs, info = functions.with_info(params, *given)
    for ours, theirs in zip((outputs, *info), expected(exact, *exact_rows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(functions.apply(params, *given), outputs)


def test_float64_is_exact(draw: Draw) -> None:
    functions = make(rank=2)
    _, exact = draw(functions.init(jax.random.key(0)))
    _, exact_rows = rows(draw)
    with jax.enable_x64(True):
        outputs, info = functions.with_info(jax.tree.map(jnp.asarray, exact), *exact_rows)
    for ours, theirs in zip((outputs, *info), expected(exact, *exact_rows), strict=True):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_outputs_have_the_type_that_the_arguments_promote_to(draw: Draw) -> None:
    functions = make()
    params = functions.init(jax.random.key(0))
    half, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, rows(draw)[0][1]))
    hidden = jnp.ones((B, I), jnp.bfloat16)
    outputs, info = functions.with_info(half, hidden, x)
    assert outputs.dtype == jnp.bfloat16
    assert info.attention.dtype == info.gate.dtype == jnp.float32
    assert functions.apply(params, hidden, x).dtype == jnp.float32


def test_a_row_does_not_depend_on_the_others(draw: Draw) -> None:
    functions = make(rank=2)
    params = functions.init(jax.random.key(0))
    (hidden, x), _ = rows(draw)
    alone = functions.apply(params, hidden[2:3], x[2:3])
    np.testing.assert_allclose(functions.apply(params, hidden, x)[2:3], alone, rtol=1e-5)


def test_it_is_what_the_head_generates(draw: Draw) -> None:
    """The parameters, and so the numbers, are those of a D3 head's generator."""
    config = D3Options(width=O, **SMALL)
    declared = d3(config).declare(layer.Sizes(N, D, 3), I).params.generator
    ours = make().init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, ours, initialize(declared, jax.random.key(3)))


def test_defaults_are_those_of_the_head() -> None:
    config = D3Options(width=O)
    declared = d3(config).declare(layer.Sizes(N, D, 3), I).params.generator
    ours = jax.eval_shape(d3_layer(**SIZES).init, jax.random.key(0))
    assert [a.shape for a in jax.tree.leaves(ours)] == [p.shape for p in jax.tree.leaves(declared)]


def test_d1_has_no_gate(draw: Draw) -> None:
    functions = make(parts="d1")
    (hidden, x), _ = rows(draw)
    _, info = functions.with_info(functions.init(jax.random.key(0)), hidden, x)
    assert info.gate is None
    assert row_weights(*info).shape == (B,)


def test_the_number_of_rows_may_be_a_symbol() -> None:
    functions = make(rank=2)
    params = functions.init(jax.random.key(0))
    (count,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(functions.apply))(
        params,
        jax.ShapeDtypeStruct((count, I), jnp.float32),
        jax.ShapeDtypeStruct((count, N, D), jnp.float32),
    )
    assert exported.out_avals[0].shape == (count, O)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": 0}, "fields is 0; it must be an integer of at least 1"),
        ({"dim": -1}, "dim is -1; it must be an integer of at least 1"),
        ({"inputs": 0}, "inputs is 0; it must be an integer of at least 1"),
        ({"outputs": True}, "outputs is True; it must be an integer of at least 1"),
        ({"rank": -2}, "rank is -2; it must be an integer of at least 0"),
        ({"field_hidden": 0}, "field_hidden is 0; it must be an integer of at least 1"),
        ({"gate_layers": (4, 0)}, "gate_layers holds 0; each width must be at least 1"),
        ({"width": 3}, "width is a setting of a whole D3 head; a layer has no use for it"),
        ({"kernel_fuson": "x"}, r"there is no setting 'kernel_fuson' \(did you mean kernel_fusion"),
    ],
)
def test_sizes_and_settings_that_can_not_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


H, X = (B, I), (B, N, D)


@pytest.mark.parametrize(
    ("hidden", "x", "message"),
    [
        (H, (B, 5, D), r"x has the shape \(6, 5, 3\), whose fields is 5; it must be \[rows, fie"),
        (H, (B, N, 9), r"x has the shape \(6, 4, 9\), whose dim is 9; .*, fields=4, dim=3\]"),
        ((B, 7), X, r"hidden has the shape \(6, 7\), whose inputs is 7; it must be \[rows, inp"),
        (H, (N, D), r"x has the shape \(4, 3\); it must be \[rows, fields=4, dim=3\]"),
        ((I,), X, r"hidden has the shape \(5,\); it must be \[rows, inputs=5\]"),
        ((0, I), X, r"hidden has no rows: its shape is \(0, 5\); give at least one row"),
        (H, (0, N, D), r"x has no rows: its shape is \(0, 4, 3\); give at least one row"),
        (H, (2, N, D), "hidden has 6 rows and x has 2; give as many of each"),
    ],
)
def test_rows_that_do_not_fit(hidden: tuple[int, ...], x: tuple[int, ...], message: str) -> None:
    functions = make()
    params = functions.init(jax.random.key(0))
    for run in (functions.apply, jax.jit(functions.with_info)):
        with pytest.raises(ShapeError, match=message):
            run(params, jnp.zeros(hidden), jnp.zeros(x))


def test_ids_are_no_embeddings() -> None:
    functions = make()
    params = functions.init(jax.random.key(0))
    with pytest.raises(ShapeError, match=r"x is int32; it must be floating-point \(look ids up"):
        functions.apply(params, jnp.zeros(H), jnp.zeros(X, int))
    with pytest.raises(ShapeError, match="hidden is bool; it must be floating-point"):
        functions.apply(params, jnp.zeros(H, bool), jnp.zeros(X))


def test_parameters_of_another_layer() -> None:
    other = make(outputs=O + 1).init(jax.random.key(0))
    message = r"parameter 'layers.0.generator.kernel' is \(8, 5, 3\); it must be of shape \(8, 5, 2"
    with pytest.raises(ShapeError, match=message):
        make().apply(other, jnp.zeros(H), jnp.zeros(X))
    with pytest.raises(ShapeError, match=r"parameter 'gate.hidden.0.kernel' is missing; it must"):
        make().apply(make(parts="d1").init(jax.random.key(0)), jnp.zeros(H), jnp.zeros(X))


@pytest.mark.parametrize("module", [layer, nnx, balance])
def test_examples_in_docstrings(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
