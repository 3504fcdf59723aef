"""Rows grouped by scenario give what each row's own scenario gives, whatever the mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.layers.dense import declare_mlp
from d3jax.layers.grouping import Groups, block_shape, collect, group_rows, own_mlp, spread
from tests.conftest import Draw

MIXTURES = {
    "even": np.arange(96) % 3,
    "one scenario alone": np.full(96, 1),
    "a rare one": np.array([0] * 60 + [2] * 35 + [1]),
    "one row": np.array([2]),
    "fewer rows than a block": np.array([2, 0, 1, 1, 0]),
    "a ragged number of rows": np.random.default_rng(0).integers(0, 3, 211),
    "blocks just full": np.array([0] * 16 + [1] * 48 + [2] * 32),
}
mixtures = pytest.mark.parametrize("scenario", MIXTURES.values(), ids=MIXTURES)


def grouped(scenario: np.ndarray, scenarios: int = 3) -> Groups:
    return jax.jit(group_rows, static_argnums=1)(jnp.asarray(scenario, jnp.int32), scenarios)


@mixtures
def test_every_row_has_a_place_in_a_block_of_its_scenario(scenario: np.ndarray) -> None:
    groups = grouped(scenario)
    rows = np.asarray(groups.row)
    kept = rows[rows < len(scenario)]
    assert sorted(kept) == list(range(len(scenario)))
    np.testing.assert_array_equal(rows.reshape(-1)[groups.place], np.arange(len(scenario)))
    for owner, block in zip(groups.owner, rows, strict=True):
        assert {int(scenario[row]) for row in block if row < len(scenario)} <= {int(owner)}
    # In order of scenario, and in a scenario in the order of the batch.
    np.testing.assert_array_equal(kept, np.argsort(scenario, kind="stable"))


@pytest.mark.parametrize("scenarios", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 500, 2048])
def test_blocks_suffice_for_any_mixture_and_waste_little(rows: int, scenarios: int) -> None:
    count, size = block_shape(rows, scenarios)
    present = min(rows, scenarios)
    worst = [1 + (nth == 0) * (rows - present) for nth in range(present)]
    # One row more than full blocks is what leaves the most places empty.
    ragged = [size * ((rows - present) // size // present) + 1 for _ in range(present)]
    ragged[0] += rows - sum(ragged)
    for counts in (worst, ragged, [rows]):
        assert sum(counts) == rows
        assert sum(-(-n // size) for n in counts) <= count
    if scenarios <= rows // 32:
        assert count * size <= 1.5 * rows


@mixtures
def test_layers_are_those_of_the_rows_scenario(scenario: np.ndarray, draw: Draw) -> None:
    params, exact = draw(declare_mlp(5, (4, 1), stack=(3,)))
    hidden = np.random.default_rng(1).normal(size=(len(scenario), 5))
    expected = []
    for row, own in zip(hidden, scenario, strict=True):
        middle = np.maximum(row @ exact[0].kernel[own] + exact[0].bias[own], 0)
        expected.append(middle @ exact[1].kernel[own] + exact[1].bias[own])
    found = jax.jit(own_mlp)(params, jnp.asarray(hidden, jnp.float32), jnp.asarray(scenario))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@mixtures
def test_gradients_are_those_of_all_scenarios_computed(scenario: np.ndarray, draw: Draw) -> None:
    params, _ = draw(declare_mlp(5, (4, 2), stack=(3,)))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(len(scenario), 5)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(len(scenario), 2)), jnp.float32)
    own = jnp.asarray(scenario)

    def plainly(params, hidden):  # type: ignore[no-untyped-def]
        """A row at a time, with its scenario's kernels."""

        def row(h, s):  # type: ignore[no-untyped-def]
            first, second = jax.tree.map(lambda leaf: leaf[s], params)
            return jax.nn.relu(h @ first.kernel + first.bias) @ second.kernel + second.bias

        return (weight * jax.vmap(row)(hidden, own)).sum()

    def together(params, hidden):  # type: ignore[no-untyped-def]
        return (weight * own_mlp(params, hidden, own)).sum()

    found = jax.jit(jax.grad(together, argnums=(0, 1)))(params, hidden)
    expected = jax.jit(jax.grad(plainly, argnums=(0, 1)))(params, hidden)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
    )
    for absent in set(range(3)) - set(scenario.tolist()):
        assert not any(np.any(leaf[absent]) for leaf in jax.tree.leaves(found[0]))


def test_what_empty_places_hold_reaches_nobody() -> None:
    scenario = jnp.asarray(MIXTURES["a rare one"])
    groups = grouped(MIXTURES["a rare one"])
    empty = groups.row == len(scenario)
    assert empty.sum() > 10
    values = jnp.arange(96.0)

    def total(values: jax.Array) -> jax.Array:
        blocks = jnp.where(empty, 1e9, spread(groups, values) ** 2)
        return collect(groups, blocks).sum()

    assert total(values) == pytest.approx(float((values**2).sum()))
    np.testing.assert_allclose(jax.grad(total)(values), 2 * values)


def test_several_models_at_once(draw: Draw) -> None:
    """As `--seeds` has them: parameters, rows and scenarios of their own."""
    params, _ = draw(declare_mlp(5, (4,), stack=(2, 3)))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 40, 5)), jnp.float32)
    scenario = jnp.asarray(np.random.default_rng(2).integers(0, 3, (2, 40)))

    def total(params, hidden, scenario):  # type: ignore[no-untyped-def]
        return (own_mlp(params, hidden, scenario) ** 2).sum()

    step = jax.grad(total, argnums=(0, 1))
    found = jax.jit(jax.vmap(step))(params, hidden, scenario)
    for index in range(2):
        alone = jax.jit(step)(
            jax.tree.map(lambda leaf, i=index: leaf[i], params), hidden[index], scenario[index]
        )
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            found,
            alone,
        )
