"""One training step and one scoring step, each a per-device program mapped over the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import checkify
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from d3jax.base import EVALUATION, LossAdapter, Mode, Model, ModelParams
from d3jax.batch import Batch
from d3jax.embedding import EmbeddingParams, table_rows
from d3jax.errors import TrainingError
from d3jax.parameters import DATA_AXIS, REPLICATED, SHARDED, Tree, initialize, specs
from d3jax.training.average import Average, averaged, follow, init_average
from d3jax.training.gradients import (
    Before,
    Forward,
    Gradients,
    batch_gradients,
    watched_norms,
)
from d3jax.training.optimizer import (
    Optimizer,
    OptimizerState,
    clip_factor,
    first_bad,
    init_optimizer,
    optimizer_specs,
)
from d3jax.training.table.rows import (
    Table,
    Touched,
    dense_gradient,
    find_places,
    read_rows,
    squared_norm,
    sum_by_row,
)


class TrainState(NamedTuple):
    """All that the next step needs, and all that a checkpoint must hold.

    `key` is the run's PRNG key as raw data; a step folds its number into it.
    """

    params: ModelParams
    model_state: Tree
    optimizer_state: OptimizerState
    adapter_state: Tree
    step: Int[Array, ""]
    key: UInt32[Array, " words"]
    average: Tree = ()
    """An `Average` of the weights where the optimizer asks for one."""


class Trouble(NamedTuple):
    """Parts of a step that aren't finite: how many rows' losses, the first of them in the batch,
    and the first parameter's gradient, counted as `named_leaves` does, the table's rows last.

    Where all is finite they are 0, the batch's size and the number of parameters.
    """

    rows: Int[Array, ""]
    first_row: Int[Array, ""]
    parameter: Int[Array, ""]


class StepInfo(NamedTuple):
    """A step's report; nothing here is needed by the next."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    trouble: Trouble | None = None


class Scored(NamedTuple):
    """A row as evaluation keeps it: its logit and, where the model has them, the attention
    that each field receives on average (it sums to 1), the gate, and what its loss counts among
    the rows of its batch once D3 weighs them."""

    logits: Float[Array, " B"]
    attention: Float[Array, "B N"] | None
    gate: Float[Array, "B 2"] | None
    weight: Float[Array, " B"] | None = None


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepInfo]]
ScoreStep = Callable[[ModelParams, Tree, Batch], Scored]


class StepOptions(NamedTuple):
    """The ways of computing a step.

    `slices`: parts that a device's share of the batch is computed in, one after another.
    `skip_bad`: a step whose loss or gradient isn't finite changes nothing but its own number.
    `debug`: stop at the operation that first gives a NaN; every step is then waited for.
    `deterministic`: a GPU adds in the same order each time.
    """

    slices: int = 1
    skip_bad: bool = False
    debug: bool = False
    deterministic: bool = False

    @property
    def compiler_options(self) -> dict[str, bool] | None:
        """For XLA, which knows this one on every platform."""
        return {"xla_gpu_deterministic_ops": True} if self.deterministic else None


PLAIN_STEP = StepOptions()
"""A step in one piece."""


def init_state(
    model: Model, adapter: LossAdapter, optimizer: Optimizer, seed: int | Int[Array, ""]
) -> TrainState:
    """The state before the first step; jit it with output shardings to create it in place."""
    key = jax.random.key(seed)
    params = initialize(model.declared.params, jax.random.fold_in(key, 0))
    return TrainState(
        params=params,
        model_state=initialize(model.declared.state, jax.random.fold_in(key, 1)),
        optimizer_state=init_optimizer(optimizer, params.network, params.embedding.table),
        adapter_state=initialize(adapter.state, jax.random.fold_in(key, 2)),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.fold_in(key, 3)),
        average=init_average(params, optimizer.table.row_wise) if optimizer.average else (),
    )


def state_specs(model: Model, optimizer: Optimizer) -> TrainState:
    """Return the places of the state on the mesh; a spec stands for the whole subtree below it."""
    everywhere: Any = REPLICATED
    table = model.declared.params.embedding.table.spec
    average = Average(everywhere, table, table if optimizer.table.row_wise else ())
    return TrainState(
        params=params_specs(model),
        model_state=everywhere,
        optimizer_state=optimizer_specs(optimizer, model),
        adapter_state=everywhere,
        step=everywhere,
        key=everywhere,
        average=average if optimizer.average else (),
    )


def params_specs(model: Model) -> ModelParams:
    """Return the places of the parameters: the table as declared, the network everywhere."""
    return ModelParams(specs(model.declared.params.embedding), REPLICATED)


def stacked(layout: Tree) -> Tree:
    """Return where the arrays of models side by side live, which have a leading axis of them."""
    return jax.tree.map(lambda s: P(None, *s), layout, is_leaf=lambda node: isinstance(node, P))


def make_train_step(
    model: Model,
    adapter: LossAdapter,
    optimizer: Optimizer,
    mesh: Mesh,
    options: StepOptions = PLAIN_STEP,
    side_by_side: bool = False,
) -> TrainStep:
    """The jitted step `state, info = train_step(state, batch)`; the old state is donated.

    All arrays of models `side_by_side` have a leading axis of them.

    Older JAX spelt this `jax.pmap`: a program for one device's share of the batch, with sums
    over a named axis. `jax.shard_map` is what `pmap` is built on today, without its extra axis.
    """
    program, rows = device_train_step(model, adapter, optimizer, options), SHARDED
    layout: Any = state_specs(model, optimizer)
    if side_by_side:
        program, layout, rows = jax.vmap(program), stacked(layout), P(None, DATA_AXIS)
    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=(layout, rows), out_specs=(layout, REPLICATED)
    )
    if options.debug:
        return _debugged(mapped)
    return jax.jit(mapped, donate_argnums=0, compiler_options=options.compiler_options)


def device_train_step(
    model: Model, adapter: LossAdapter, optimizer: Optimizer, options: StepOptions = PLAIN_STEP
) -> TrainStep:
    """One device's program of a step, to be mapped over the mesh's axis."""
    sharded, row_wise = is_sharded(model), optimizer.table.row_wise

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        mode = Mode(train=True, axis_name=DATA_AXIS, key=key)
        # Look the batch's rows up, and differentiate its loss.
        before, touched = _read(model, sharded, state, batch)
        gradients, forward = batch_gradients(model, adapter, before, batch, mode, options.slices)
        if adapter.watched is not None:
            norms = watched_norms(model, adapter, adapter.watched, before, batch, mode)
            forward = forward._replace(feedback=forward.feedback._replace(gradient_norms=norms))
        touched = touched._replace(gradient=gradients.rows)
        health = _health(forward, gradients, batch, mode)
        if options.skip_bad:
            touched = _untouched_unless(health.good, touched)
        # Sum the rows' gradients over all devices, which tells the norm of the whole gradient.
        table, slot = state.params.embedding.table, state.optimizer_state.slot
        sums = sum_by_row(slot, touched, sharded) if row_wise else None
        whole = sums.gradient if sums is not None else dense_gradient(table, touched, sharded)
        norm = jnp.sqrt(health.network_square + squared_norm(whole, sharded))
        network_gradient = gradients.network
        if optimizer.clip_norm:
            factor = clip_factor(optimizer.clip_norm, norm)
            network_gradient, whole = jax.tree.map(lambda g: factor * g, (network_gradient, whole))
        # Move the network and the table, and let the adapter see what there was to see.
        sums = None if sums is None else sums._replace(gradient=whole)
        params, remembered = _moved(optimizer, state, network_gradient, whole, sums)
        new = TrainState(
            params=params,
            model_state=forward.model_state,
            optimizer_state=remembered,
            adapter_state=adapter.update(state.adapter_state, forward.feedback, state.step, mode),
            step=state.step + 1,
            key=state.key,
            average=state.average,
        )
        if options.skip_bad:
            new = _unchanged_unless(health.good, new, state, row_wise)
        if optimizer.average:
            mean = follow(state.average, optimizer.average, table, new.params, sums, new.step)
            new = new._replace(average=mean)
        return new, StepInfo(*forward.losses, norm, health.trouble)

    return step


def is_sharded(model: Model) -> bool:
    """Return whether the table's rows are spread over the devices."""
    return model.declared.params.embedding.table.spec != REPLICATED


def _read(model: Model, sharded: bool, state: TrainState, batch: Batch) -> tuple[Before, Touched]:
    """Looks the batch's rows up; no gradient is known yet."""
    table = state.params.embedding.table
    rows = table_rows(model.schema, batch.ids)
    places = find_places(rows, table.shape[0], sharded)
    vectors = read_rows(table, rows, places, sharded)
    before = Before(
        state.params.network, vectors, state.model_state, state.adapter_state, state.step
    )
    return before, Touched(rows, places, jnp.zeros_like(vectors))


def _moved(
    optimizer: Optimizer, state: TrainState, network_gradient: Tree, whole: Table, sums: Any
) -> tuple[ModelParams, OptimizerState]:
    """The parameters and what the optimizer remembers, after the step; the table follows `sums`,
    the gradient of the batch's rows, or the gradient of the whole table where that is None."""
    network, old = state.params.network, state.optimizer_state
    updates, network_state = optimizer.network.update(network_gradient, old.network, network)
    gradient, slot = (whole, old.slot) if sums is None else (sums, sums.slot)
    table, table_state = optimizer.table.apply(
        state.params.embedding.table, old.table, gradient, state.step
    )
    moved: Any = optax.apply_updates(network, updates)
    remembered = OptimizerState(network_state, table_state, slot)
    return ModelParams(EmbeddingParams(table), moved), remembered


class _Health(NamedTuple):
    """Finite or not, ‖g‖² of the network's gradient, and what isn't finite."""

    good: Bool[Array, ""]
    network_square: Float[Array, ""]
    trouble: Trouble


def _health(forward: Forward, gradients: Gradients, batch: Batch, mode: Mode) -> _Health:
    """Costs nothing that the norm of the gradient doesn't: a sum of squares is finite or not."""
    losses = forward.feedback.losses
    bad = batch.mask & ~jnp.isfinite(losses)
    first = lax.axis_index(DATA_AXIS) * losses.size + jnp.argmax(bad)
    none = lax.axis_size(DATA_AXIS) * losses.size
    network_square, parameter = first_bad(gradients.network)
    row_square = mode.total(jnp.square(gradients.rows).sum())
    parameter += jnp.isfinite(network_square) & jnp.isfinite(row_square)
    good = jnp.isfinite(forward.losses.loss + network_square + row_square)
    first_row = lax.pmin(jnp.where(bad.any(), first, none), DATA_AXIS)
    return _Health(good, network_square, Trouble(mode.total(bad.sum()), first_row, parameter))


def _untouched_unless(good: Bool[Array, ""], touched: Touched) -> Touched:
    """No row and no gradient where the step is to be skipped."""
    nowhere = jnp.iinfo(jnp.int32).max
    return Touched(
        jnp.where(good, touched.rows, nowhere),
        jnp.where(good, touched.places, nowhere),
        jnp.where(good, touched.gradient, 0.0),
    )


def _unchanged_unless(
    good: Bool[Array, ""], new: TrainState, old: TrainState, row_wise: bool
) -> TrainState:
    """The old state, a step further, where the step is to be skipped.

    A table that is updated row by row has not been touched; to choose would copy it whole.
    """
    chosen = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old._replace(step=new.step))
    if not row_wise:
        return chosen
    return chosen._replace(
        params=chosen.params._replace(embedding=new.params.embedding),
        optimizer_state=new.optimizer_state._replace(network=chosen.optimizer_state.network),
    )


def _debugged(step: TrainStep) -> TrainStep:
    """The step, which raises where an operation gives a NaN, and names its line."""
    checked = jax.jit(checkify.checkify(step, errors=checkify.nan_checks))

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        error, result = checked(state, batch)
        if message := error.get():
            raise TrainingError(f"step {int(state.step) + 1}: {message}")
        return result

    return run


def make_weights(optimizer: Optimizer) -> Callable[[TrainState], ModelParams]:
    """Return `params = weights(state)`, the parameters to score with: those of the state or, where
    the optimizer averages them, their average."""
    if not optimizer.average:
        return lambda state: state.params
    return jax.jit(
        lambda state: averaged(state.average, optimizer.average, state.params, state.step)
    )


def make_score_step(
    model: Model,
    mesh: Mesh,
    balance: LossAdapter | None = None,
    options: StepOptions = PLAIN_STEP,
    side_by_side: bool = False,
) -> ScoreStep:
    """The jitted `scored = score_step(params, model_state, batch)` of evaluation mode.

    `balance` weighs the rows, without a state of its own; None leaves them unweighed. Models
    `side_by_side` score the same batch, and are the second axis of what they say of it.
    """
    program = device_score_step(model, balance)
    layout: Any = params_specs(model)
    if side_by_side:
        program, layout = jax.vmap(program, (0, 0, None), 1), stacked(layout)
    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=(layout, REPLICATED, SHARDED), out_specs=SHARDED
    )
    return jax.jit(mapped, compiler_options=options.compiler_options)


def device_score_step(model: Model, balance: LossAdapter | None = None) -> ScoreStep:
    """One device's program of scoring, to be mapped over the mesh's axis."""
    sharded = is_sharded(model)

    def score(params: ModelParams, model_state: Tree, batch: Batch) -> Scored:
        table = params.embedding.table
        rows = table_rows(model.schema, batch.ids)
        places = find_places(rows, table.shape[0], sharded)
        vectors = read_rows(table, rows, places, sharded)
        output, _ = model.forward(params.network, model_state, vectors, batch, EVALUATION)
        received = None
        if output.attention is not None:
            received = jax.nn.softmax(output.attention).mean(-2)
        weight = None
        if balance is not None:
            mode = EVALUATION._replace(axis_name=DATA_AXIS)
            weight = balance.row_weights((), output, batch, jnp.zeros((), jnp.int32), mode)
        return Scored(output.logits, received, output.gate, weight)

    return score
