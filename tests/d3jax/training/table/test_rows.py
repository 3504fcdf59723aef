"""Updates of the table against float64 NumPy, on one device and with rows sharded over eight."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from d3jax.batch import EMPTY, Field, Schema
from d3jax.errors import ConfigError
from d3jax.parameters import DATA_AXIS, REPLICATED, SHARDED
from d3jax.parts import build_model, build_trainer
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.optimizer import build_optimizer
from d3jax.training.sharding import make_mesh, place_batch
from d3jax.training.table import rows as tables
from d3jax.training.table.rows import (
    Touched,
    dense_gradient,
    find_places,
    squared_norm,
    sum_by_row,
    sums_in_slots,
    sums_of_sorted,
)
from d3jax.training.table.updates import dense, lazy_adamw, row_wise_adagrad
from tests.cases import cases
from tests.d3jax.training.world import make_batch

V, D, B, K = 32, 4, 16, 3
DECAY, B1, B2, EPSILON = 0.02, 0.8, 0.95, 1e-3


def rate(step):
    """A learning rate that changes: 0.02, 0.03, 0.04, and so on."""
    return 0.02 + 0.01 * step


UPDATES = {
    "dense": dense(optax.adamw(rate, B1, B2, EPSILON, weight_decay=DECAY)),
    "lazy_adamw": lazy_adamw(rate, DECAY, B1, B2, EPSILON),
    "adagrad": row_wise_adagrad(rate, DECAY, EPSILON),
}
LAYOUTS = [(1, False), (1, True), (8, False), (8, True)]


def reads(step, rows=V):
    """Which rows a step reads: few, often the same, some slots empty, some rows never."""
    rng = np.random.default_rng(step)
    ids = np.minimum(rng.zipf(1.6, (B, K)), rows - 5).astype(np.int32)
    return np.where(rng.random((B, K)) < 0.1, rows, ids)


def row_gradients(step):
    return np.random.default_rng(1000 + step).normal(size=(B, K, D)).astype(np.float32)


def table_gradient(step):
    """The gradient of the whole table, by a plain loop in float64."""
    total = np.zeros((V, D))
    for row, gradient in zip(reads(step).ravel(), row_gradients(step).reshape(-1, D), strict=True):
        if row < V:
            total[row] += gradient
    return total


def start():
    return np.random.default_rng(7).normal(size=(V, D)).astype(np.float32)


def train(update, steps, devices, sharded):
    """The table after steps on a mesh, and the last ‖g‖²."""
    mesh = make_mesh(jax.devices()[:devices])
    spec = SHARDED if sharded else REPLICATED
    table = jnp.asarray(start())
    state, slot = update.init(table), jnp.zeros(V, jnp.int32)
    layout = jax.tree.map(lambda leaf: spec if leaf.shape[:1] == (V,) else REPLICATED, state)

    def step(table, state, slot, rows, gradient, count):
        touched = Touched(rows, find_places(rows, table.shape[0], sharded), gradient)
        if update.row_wise:
            sums = sum_by_row(slot, touched, sharded)
            norm, slot = squared_norm(sums.gradient, sharded), sums.slot
        else:
            sums = dense_gradient(table, touched, sharded)
            norm = squared_norm(sums, sharded)
        return *update.apply(table, state, sums, count), slot, norm

    stepped = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(spec, layout, spec, P(DATA_AXIS), P(DATA_AXIS), P()),
            out_specs=(spec, layout, spec, P()),
        )
    )
    for count in range(steps):
        table, state, slot, norm = stepped(
            table, state, slot, reads(count), row_gradients(count), jnp.int32(count)
        )
    return np.asarray(table), float(norm)


def adam_reference(steps, lazy):
    """AdamW (Loshchilov and Hutter, 2019) in float64; `lazy` moves the rows of the batch alone."""
    table, mean, square = start().astype(np.float64), np.zeros((V, D)), np.zeros((V, D))
    for count in range(steps):
        gradient = table_gradient(count)
        moving = np.isin(np.arange(V), reads(count)) if lazy else np.ones(V, bool)
        mean[moving] = B1 * mean[moving] + (1 - B1) * gradient[moving]
        square[moving] = B2 * square[moving] + (1 - B2) * gradient[moving] ** 2
        unbiased = mean[moving] / (1 - B1 ** (count + 1))
        spread = np.sqrt(square[moving] / (1 - B2 ** (count + 1))) + EPSILON
        table[moving] -= rate(count) * (unbiased / spread + DECAY * table[moving])
    return table


def adagrad_reference(steps):
    table, total = start().astype(np.float64), np.zeros(V)
    for count in range(steps):
        gradient = table_gradient(count)
        moving = np.isin(np.arange(V), reads(count))
        total[moving] += (gradient[moving] ** 2).mean(-1)
        direction = gradient[moving] / (np.sqrt(total[moving])[:, None] + EPSILON)
        table[moving] -= rate(count) * (direction + DECAY * table[moving])
    return table


REFERENCES = {
    "dense": lambda steps: adam_reference(steps, lazy=False),
    "lazy_adamw": lambda steps: adam_reference(steps, lazy=True),
    "adagrad": adagrad_reference,
}


@pytest.mark.parametrize(("devices", "sharded"), LAYOUTS)
@pytest.mark.parametrize("name", REFERENCES)
def test_ten_steps_are_those_of_the_reference(name, devices, sharded):
    table, norm = train(UPDATES[name], 10, devices, sharded)
    expected = REFERENCES[name](10)
    np.testing.assert_allclose(table, expected, rtol=0, atol=3e-6)
    assert norm == pytest.approx((table_gradient(9) ** 2).sum(), rel=1e-5)
    assert np.abs(expected - start()).max() > 0.1


@pytest.mark.parametrize("way", [sums_in_slots, sums_of_sorted])
def test_both_ways_to_sum_by_row(way):
    places = jnp.asarray(reads(3).ravel())
    sums = way(jnp.zeros(V, jnp.int32), places, jnp.asarray(row_gradients(3).reshape(-1, D)))
    inside = np.asarray(sums.row) < V
    assert len(set(sums.row.tolist())) == len(sums.row), "no row is named twice"
    np.testing.assert_array_equal(np.sort(sums.row[inside]), np.unique(places[places < V]))
    np.testing.assert_array_equal(sums.row[inside], places[inside])
    np.testing.assert_array_equal(sums.gradient[~inside], 0)
    expected = table_gradient(3)[sums.row[inside]]
    np.testing.assert_allclose(sums.gradient[inside], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("platform", "sorts"), [("cuda", 1), ("cpu", 0)])
def test_a_gpu_sorts_so_that_it_adds_in_one_order(platform, sorts):
    def sums(slot, rows, gradient):
        return tables.sum_by_row(slot, Touched(rows, rows.reshape(-1), gradient), sharded=False)

    mapped = jax.shard_map(sums, mesh=make_mesh(jax.devices()[:1]), in_specs=P(), out_specs=P())
    operands = (jnp.zeros(V, jnp.int32), jnp.asarray(reads(0)), jnp.asarray(row_gradients(0)))
    program = jax.export.export(jax.jit(mapped), platforms=[platform])(*operands).mlir_module()
    assert program.count("stablehlo.sort") == sorts
    adds = re.findall(r"stablehlo.scatter.*?stablehlo.return", program, re.DOTALL)
    assert any("stablehlo.add" in scatter for scatter in adds) == (platform == "cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Sums as a GPU takes them."""
    monkeypatch.setattr(tables, "_by_platform", lambda gpu, other, *operands: gpu(*operands))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("devices", "sharded"), [(1, False), (8, True)])
@pytest.mark.parametrize("name", ["lazy_adamw", "adagrad"])
def test_ten_steps_on_a_gpu_are_those_of_the_reference(name, devices, sharded):
    test_ten_steps_are_those_of_the_reference(name, devices, sharded)


def test_a_sharded_table_is_bit_identical_to_a_whole_one():
    for name in ("lazy_adamw", "adagrad"):
        whole, _ = train(UPDATES[name], 10, 1, False)
        parts, _ = train(UPDATES[name], 10, 8, True)
        np.testing.assert_array_equal(parts, whole, err_msg=name)


SCHEMA = Schema(
    (Field("user", 1500), Field("tags", 7, slots=3), Field("place", 4)), ("a", "b", "c"), "place"
)


def trainer_of(config, devices, update="lazy_adamw", layout="sharded", **optimizer):
    model = dataclasses.replace(config.model, table_layout=layout)
    settings = dataclasses.replace(config.optimizer, embedding_update=update, **optimizer)
    train = dataclasses.replace(config.train, batch_size=64)
    config = dataclasses.replace(config, model=model, optimizer=settings, train=train)
    return build_trainer(SCHEMA, config, 10, make_mesh(jax.devices()[:devices]))


def after(trainer, state, steps):
    for step in steps:
        batch = make_batch(SCHEMA, 64, seed=step, padding=step)
        state, info = trainer.train_step(state, place_batch(trainer.mesh, batch))
    return state, info


def scores_of(trainer, state):
    batch = place_batch(trainer.mesh, make_batch(SCHEMA, 64, seed=50))
    return np.asarray(trainer.score_step(state.params, state.model_state, batch).logits)


@pytest.mark.parametrize("update", [pytest.param("dense", marks=pytest.mark.slow), "lazy_adamw"])
@pytest.mark.slow
def test_a_model_with_a_sharded_table_trains_and_scores_as_with_a_whole_one(config, update):
    ours, theirs = (
        trainer_of(config, 8, update),
        trainer_of(config, 1, update, layout="replicated"),
    )
    (state, info), (expected, expected_info) = (
        after(trainer, trainer.init(), range(1)) for trainer in (ours, theirs)
    )
    assert float(info.loss) == pytest.approx(float(expected_info.loss), abs=1e-6)
    assert float(info.gradient_norm) == pytest.approx(float(expected_info.gradient_norm), rel=1e-5)
    assert state.params.embedding.table.sharding.spec == SHARDED
    assert state.params.embedding.table.addressable_shards[0].data.shape == (192, 4)
    np.testing.assert_allclose(scores_of(ours, state), scores_of(theirs, expected), atol=2e-3)


def collectives(trainer):
    """The sizes, in numbers, of what the compiled step sends between devices."""
    batch = place_batch(trainer.mesh, make_batch(SCHEMA, 64, seed=0))
    program = trainer.train_step.lower(trainer.abstract, batch).compile().as_text()
    sent = re.findall(
        r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(", program
    )
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(sent))
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


@pytest.mark.parametrize("update", cases(["dense", "lazy_adamw", "adagrad"], quick=["lazy_adamw"]))
def test_nothing_of_the_tables_size_travels_between_devices(config, update):
    sizes = collectives(trainer_of(config, 8, update))
    batch_numbers = 64 * 5 * 4
    assert max(sizes) == batch_numbers < 1536 / 8 * 4 * 2
    assert max(collectives(trainer_of(config, 8, "dense", layout="replicated"))) == 1536 * 4


@pytest.mark.parametrize(
    "update",
    [
        "lazy_adamw",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("dense", "adagrad")),
    ],
)
@pytest.mark.slow
def test_checkpoints_restore_between_any_two_layouts(config, update, tmp_path):
    layouts = [(8, "sharded"), (2, "sharded"), (1, "replicated")]
    trainers = [trainer_of(config, d, update, layout) for d, layout in layouts]
    state, _ = after(trainers[0], trainers[0].init(), range(3))
    expected = jax.device_get(state)
    for index, trainer in enumerate(trainers[1:]):
        checkpoints = Checkpoints(tmp_path / str(index), {})
        checkpoints.save(3, state, {})
        state = checkpoints.restore(trainer.abstract).state
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
        next_state, info = after(trainer, jax.tree.map(jnp.copy, state), [7])
        assert np.isfinite(float(info.loss))
        assert int(next_state.step) == 4


def test_rows_outside_the_batches_stay_as_they_were(config):
    trainer = trainer_of(config, 8)
    before = np.asarray(trainer.init().params.embedding.table)
    state, _ = after(trainer, trainer.init(), range(2))
    moved = (np.asarray(state.params.embedding.table) != before).any(-1)
    batches = [make_batch(SCHEMA, 64, seed=step, padding=step) for step in range(2)]
    read = {
        int(row)
        for batch in batches
        for row in (batch.ids + SCHEMA.slot_offset)[batch.ids != EMPTY]
    }
    assert set(np.flatnonzero(moved)) <= read
    assert moved.sum() > 0.9 * len(read)


def test_devices_that_do_not_divide_the_rows_are_refused(config):
    train = dataclasses.replace(config.train, batch_size=60)
    model = dataclasses.replace(config.model, table_layout="sharded")
    five = make_mesh(jax.devices()[:5])
    message = (
        r"^5 devices can't share the 1,536 rows of the embedding table evenly; use a number "
        r"of devices that divides 512, or --table-layout replicated$"
    )
    with pytest.raises(ConfigError, match=message):
        build_trainer(SCHEMA, dataclasses.replace(config, train=train, model=model), 10, five)


@pytest.mark.parametrize(
    ("rows", "name", "row_wise", "spec"),
    [(99_000, "auto", False, REPLICATED), (100_000, "auto", True, SHARDED)],
)
def test_a_large_table_is_sharded_and_updated_row_by_row(rows, name, row_wise, spec, config):
    schema = Schema((Field("user", rows - 4), Field("place", 4)), ("a",), "place")
    model = build_model(schema, config)
    assert model.declared.params.embedding.table.spec == spec
    assert build_optimizer(config.optimizer, model, 1).table.row_wise == row_wise
    forced = dataclasses.replace(config.optimizer, embedding_update="adagrad")
    assert build_optimizer(forced, model, 1).table.row_wise
