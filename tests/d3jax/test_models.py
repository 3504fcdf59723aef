from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d3jax
from d3jax.base import EVALUATION, Mode, Model, ModelParams
from d3jax.batch import EMPTY, Batch, Field, Schema
from d3jax.config import Config, ModelConfig
from d3jax.errors import ConfigError
from d3jax.heads import D3Options
from d3jax.parameters import count, initialize
from d3jax.parts import build_backbone, build_model
from tests.conftest import Draw
from tests.d3jax import reference

SCHEMA = Schema(
    (Field("user", 9), Field("genres", 4, slots=2), Field("tab", 3)), ("a", "b", "c"), "tab"
)
N, D, B = 3, 4, 6
D3 = D3Options(field_hidden=2, width=5, gate_layers=(7, 3))
BACKBONES: tuple[Any, ...] = ("plain", "shared_bottom")
CASES: dict[str, Config] = {
    f"{backbone}, {name}": Config(
        model=ModelConfig(backbone, head, D, bottom_layers=(6, 5), tower_layers=(4,)), d3=d3
    )
    for backbone, name, head, d3 in (
        ("plain", "d3", "d3", D3),
        ("plain", "official", "d3", replace(D3, form="official", head_layers=(4,))),
        ("shared_bottom", "towers", "own", D3),
        ("shared_bottom", "d1", "d3", replace(D3, parts="d1")),
        ("shared_bottom", "d3", "d3", D3),
    )
}
cases = pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())


def batch_of(rows: int = B) -> Batch:
    generator = np.random.default_rng(1)
    genres = generator.integers(0, 4, (rows, 2))
    genres[:, 1] = np.where(np.arange(rows) % 2 == 0, EMPTY, genres[:, 1])
    scenario = generator.integers(0, 3, rows)
    ids = np.column_stack([generator.integers(0, 9, rows), genres, scenario])
    return Batch(
        ids=jnp.asarray(ids, jnp.int32),
        scenario=jnp.asarray(scenario, jnp.int32),
        label=jnp.asarray(np.arange(rows) % 2, jnp.float32),
        mask=jnp.ones(rows, bool),
    )


def numbers(config: Config, draw: Draw) -> tuple[Model, ModelParams, Any, ModelParams]:
    """A model, drawn parameters and state (variances positive), and the parameters in float64."""
    model = build_model(SCHEMA, config)
    params, exact = draw(model.declared.params)
    state = jax.tree.map(lambda leaf: abs(leaf) + 0.3, draw(model.declared.state)[0])
    return model, params, state, exact


def apply(model: Model, mode: Mode = EVALUATION) -> Any:
    return jax.jit(lambda params, state, batch: model.apply(params, state, batch, mode))


def expected(config: Config, exact: ModelParams, batch: Batch) -> np.ndarray:
    """Logits of the text form with D3 or towers, from ids to the end."""
    table, network = np.split(exact.embedding.table, [9, 13]), exact.network
    x = reference.embed(table, [1, 2, 1], np.asarray(batch.ids))
    u, head = x.reshape(len(x), -1), network
    if config.model.backbone == "shared_bottom":
        u, head = reference.mlp(network.bottom, u), network.head
    if config.model.head == "own":
        each = [[(p.kernel[s], p.bias[s]) for p in head] for s in range(3)]
        hidden, output = [p[:-1] for p in each], [p[-1] for p in each]
        return reference.towers(hidden, output, u, np.asarray(batch.scenario))
    trunk, layer = head.generator, head.generator.layers[0]
    logits = reference.attention_logits(trunk.attention.query, trunk.attention.key, x)
    selected = reference.selected_text(logits, x)
    hidden = reference.generator_hidden(*trunk.hidden, selected)
    generator = layer.generator
    weight = (generator.kernel.reshape(N * 2, -1), generator.kernel_offset.reshape(-1))
    kernels, biases = reference.specific_parts(weight, generator.bias, hidden, u.shape[1])
    if trunk.gate is not None:
        gate = reference.gate([*trunk.gate.hidden, trunk.gate.output], selected)
        kernels = reference.fuse(gate, kernels, layer.shared.kernel, "multiplicative")
        biases = reference.fuse(gate, biases, layer.shared.bias, "multiplicative")
    return reference.mlp_linear_last(head.tail, reference.layer(u, kernels, biases))[:, 0]


@pytest.mark.parametrize("name", [name for name in CASES if "official" not in name])
def test_logits_from_ids_to_the_end(name: str, draw: Draw) -> None:
    model, params, state, exact = numbers(CASES[name], draw)
    batch = batch_of()
    output, _ = apply(model)(params, state, batch)
    logits = expected(CASES[name], exact, batch)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)


@cases
def test_a_row_does_not_depend_on_its_neighbours(config: Config, draw: Draw) -> None:
    model, params, state, _ = numbers(config, draw)
    batch = batch_of()
    evaluate = apply(model)
    logits = evaluate(params, state, batch)[0].logits
    order = np.random.default_rng(2).permutation(B)
    permuted = evaluate(params, state, jax.tree.map(lambda leaf: leaf[order], batch))
    np.testing.assert_allclose(permuted[0].logits, logits[order], rtol=1e-4, atol=1e-5)
    alone = evaluate(params, state, jax.tree.map(lambda leaf: leaf[:1], batch))
    np.testing.assert_allclose(alone[0].logits, logits[:1], rtol=1e-4, atol=1e-5)


@cases
def test_training_has_finite_gradients_and_ignores_padding(config: Config, draw: Draw) -> None:
    model, params, state, _ = numbers(config, draw)
    batch = batch_of()._replace(mask=jnp.arange(B) < 4)
    other = batch._replace(ids=jnp.where(batch.mask[:, None], batch.ids, 0))

    def loss(params: ModelParams, batch: Batch) -> tuple[jax.Array, Any]:
        output, new = model.apply(params, state, batch, Mode(train=True))
        return jnp.where(batch.mask, output.logits, 0.0).sum(), (output.logits[:4], new)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, kept), gradient = step(params, batch)
    (_, again), gradient_again = step(params, other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient.embedding.table).max() > 0
    for ours, theirs in ((kept, again), (gradient, gradient_again)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs
        )


@cases
def test_output_has_what_the_head_has(config: Config, draw: Draw) -> None:
    model, params, state, _ = numbers(config, draw)
    output, _ = apply(model)(params, state, batch_of())
    is_d3 = config.model.head == "d3"
    assert output.logits.shape == (B,)
    assert (output.attention is not None) == is_d3
    assert (output.gate is not None) == (is_d3 and config.d3.parts != "d1")
    if is_d3:
        assert output.attention.shape == (B, N, N)


def test_d3_on_shared_bottom_ignores_the_scenario_column_itself(draw: Draw) -> None:
    model, params, state, _ = numbers(CASES["shared_bottom, d3"], draw)
    batch = batch_of()
    moved = batch._replace(scenario=(batch.scenario + 1) % 3)
    ours, other = (apply(model)(params, state, b)[0].logits for b in (batch, moved))
    np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_d3_count_is_the_closed_formula(backbone: Any) -> None:
    config = Config(model=ModelConfig(backbone, "d3", 16, bottom_layers=(128, 64)))
    flat, table = N * 16, 512 * 16
    bottom, width = (0, flat) if backbone == "plain" else (flat * 128 + 128 + 128 * 64 + 64, 64)
    outputs = 128 if backbone == "plain" else 32
    head = reference.d3_parameter_count(N, 16, 64, width, outputs)
    assert count(build_model(SCHEMA, config).declared.params) == table + bottom + head


def test_towers_count_is_the_closed_formula() -> None:
    config = Config(model=ModelConfig("shared_bottom", "own", 16))
    expected = 512 * 16 + (48 * 128 + 128) + (128 * 64 + 64)
    expected += 3 * (64 * 32 + 32 + 32 + 1)
    assert count(build_model(SCHEMA, config).declared.params) == expected


def test_changing_the_head_keeps_the_embedding_and_the_bottom(key: jax.Array) -> None:
    one, other = (
        initialize(build_model(SCHEMA, CASES[name]).declared.params, key)
        for name in ("shared_bottom, towers", "shared_bottom, d3")
    )
    np.testing.assert_array_equal(one.embedding.table, other.embedding.table)
    jax.tree.map(np.testing.assert_array_equal, one.network.bottom, other.network.bottom)


@pytest.mark.parametrize("setting", [{"wide": "auto"}, {"domain": ["auto"]}])
def test_a_model_of_parts_sees_no_rows_that_could_decide(setting: dict[str, Any]) -> None:
    message = (
        r"^wide and domain can't be auto here, for a model of parts sees no rows; name them, or "
        r"use d3jax.train$"
    )
    with pytest.raises(ConfigError, match=message):
        d3jax.model(SCHEMA, build_backbone(SCHEMA, CASES["plain, d3"]), **setting)
