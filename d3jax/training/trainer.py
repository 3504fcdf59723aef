"""A trainer: a model, an optimizer and a loss as compiled steps on a mesh of devices.

    trainer = trainer(model, optax.adamw(1e-3), loss=d3_balance(start=0.5), steps=1000)
    state = trainer.init(seed=0)
    state, info = trainer.step(state, batch)

With `models=5` it trains five models side by side in one program: every array of the state has a
leading axis, which `jax.vmap` hides from the step. Each model has its own initial weights and its
own batches, so it is, to rounding, the one that its seed gives alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.adapters.d3 import unweighted
from d3jax.base import LossAdapter, Model, ModelParams
from d3jax.batch import Batch
from d3jax.checks import is_a, within
from d3jax.errors import ConfigError
from d3jax.parameters import DATA_AXIS, REPLICATED, Tree
from d3jax.training.optimizer import Optimizer
from d3jax.training.optimizer import optimizer as optimizer_of
from d3jax.training.sharding import check_batch_size, check_table, make_mesh, place, place_batch
from d3jax.training.step import (
    PLAIN_STEP,
    Scored,
    ScoreStep,
    StepInfo,
    StepOptions,
    TrainState,
    TrainStep,
    init_state,
    is_sharded,
    make_score_step,
    make_train_step,
    make_weights,
    state_specs,
)

LEVEL = "xla_backend_optimization_level"
RUNS_ONCE = {LEVEL: 2}
"""For XLA: a program that runs once takes longer to compile than to run, at the usual level up to
three times as long as at this one, for the same bits; at 0 the bits are others."""


class Parts(NamedTuple):
    """The parts of a trainer; `steps` is the run's length, None where it isn't known."""

    model: Model
    optimizer: Optimizer
    loss: LossAdapter
    options: StepOptions = PLAIN_STEP
    steps: int | None = None
    models: int | None = None


class Trainer(NamedTuple):
    """The compiled steps of the parts.

    `train_step(state, batch)` and `score_step(params, model_state, batch)` take batches that are
    on the devices; `weights(state)` gives the parameters to score with; `abstract` holds shapes
    and places of one model's state, to restore a checkpoint into.
    """

    parts: Parts
    mesh: Mesh
    train_step: TrainStep
    score_step: ScoreStep
    weights: Callable[[TrainState], ModelParams]
    create: Callable[[Any], TrainState]
    abstract: TrainState
    seed: int = 0

    @property
    def model(self) -> Model:
        """Return the model."""
        return self.parts.model

    @property
    def options(self) -> StepOptions:
        """Return how a step is computed."""
        return self.parts.options

    def init(self, seed: int | Sequence[int] | None = None) -> TrainState:
        """Return the state before the first step; models side by side take `seed` and those after
        it, or one seed each.

        Warns when the loss depends on the run's length, which nobody told. Raises `ConfigError`
        for what is no seed, and for a number of seeds that isn't that of the models.
        """
        if self.parts.loss.planned is not None and self.parts.steps is None:
            warnings.warn(
                "the loss starts to weigh rows after a share of the run's steps, whose number is "
                "not known, so it weighs them from the first step on; pass steps=... to trainer",
                stacklevel=2,
            )
        models = self.parts.models
        seeds = np.asarray(self.seed if seed is None else seed)
        if seeds.dtype.kind not in "iu" or not ((seeds >= 0) & (seeds < 2**31)).all():
            raise ConfigError(f"seed is {seed!r}; give a whole number from 0 to {2**31 - 1}")
        if seeds.ndim == 0:
            seeds = seeds + np.arange(models or 1)
        if seeds.shape != (models or 1,):
            raise ConfigError(f"{len(seeds)} seeds for {models or 1} models; give one seed each")
        seeds = seeds.astype(np.int32)
        return self.create(seeds[0] if models is None else seeds)

    def step(
        self, state: TrainState, batch: Batch | Sequence[Batch]
    ) -> tuple[TrainState, StepInfo]:
        """Return the state after a step on a batch, whose memory is that of the old state, which
        is gone, and what the step reports.

        The batch is on the host or on the devices; models side by side take one each, on the host.
        """
        return self.train_step(state, self.placed(batch))

    def score(self, state: TrainState, batch: Batch) -> Scored:
        """Return what the model says of a batch, with the state's (average) weights."""
        return self.score_step(self.weights(state), state.model_state, self._on_devices(batch))

    def placed(self, batch: Batch | Sequence[Batch]) -> Batch:
        """Return a batch on the devices, or one for each of the models side by side."""
        is_a("batch", batch, (Batch, Sequence), "a d3jax.Batch, or one for each model")
        if isinstance(batch, Batch):
            return self._on_devices(batch)
        if self.parts.models is None:
            [batch] = batch
            return self._on_devices(batch)
        rows = NamedSharding(self.mesh, P(None, DATA_AXIS))
        return jax.tree.map(lambda *arrays: jax.device_put(np.stack(arrays), rows), *batch)

    def _on_devices(self, batch: Batch) -> Batch:
        if isinstance(batch.ids, jax.Array):
            return batch
        check_batch_size(len(batch.label), self.mesh, self.options.slices)
        return place_batch(self.mesh, batch)

    def one(self, tree: Tree, index: int, axis: int = 0) -> Tree:
        """Return one model's part of a tree that has all models along `axis`."""
        if self.parts.models is None:
            return tree
        return jax.tree.map(lambda array: array[(slice(None),) * axis + (index,)], tree)

    def together(self, states: Sequence[TrainState]) -> TrainState:
        """Return the state of all models, from that of each."""
        if self.parts.models is None:
            [state] = states
            return state
        whole = NamedSharding(self.mesh, REPLICATED)
        stack = jax.jit(lambda *each: jax.tree.map(lambda *a: jnp.stack(a), *each))
        return jax.device_put(stack(*states), whole)

    def alone(self) -> Trainer:
        """Return the trainer of one of the models."""
        if self.parts.models is None:
            return self
        return build(self.parts._replace(models=None), self.mesh, self.seed)

    def with_steps(self, steps: int) -> Trainer:
        """Return the trainer for runs of at most `steps` steps, unless its length is known."""
        if self.parts.steps is not None:
            return self
        return build(self.parts._replace(steps=steps), self.mesh, self.seed)


def trainer(
    model: Model,
    optimizer: optax.GradientTransformation | Optimizer,
    loss: LossAdapter | None = None,
    *,
    mesh: Mesh | None = None,
    steps: int | None = None,
    seed: int = 0,
    models: int | None = None,
    options: StepOptions = PLAIN_STEP,
) -> Trainer:
    """Return a trainer of these parts, on all devices or those of `mesh`.

    `loss` decides what each row counts (all the same when None); `steps` is the length of the run
    for a loss that depends on it. Raises `ConfigError` when the devices can't share the table.
    """
    is_a("model", model, Model, "what d3jax.model returns")
    kinds = (optax.GradientTransformation, Optimizer)
    is_a("optimizer", optimizer, kinds, "an optax transformation, such as optax.adamw(1e-3)")
    if loss is not None:
        is_a("loss", loss, LossAdapter, "a LossAdapter, such as d3jax.d3_balance()")
    if steps is not None:
        is_a("steps", steps, (int, np.integer), "the number of the run's steps")
        within("steps", steps, 1, 2**31 - 1)
    if not isinstance(optimizer, Optimizer):
        optimizer = optimizer_of(optimizer)
    loss = unweighted() if loss is None else loss
    parts = Parts(model, optimizer, loss, options, steps, models)
    return build(parts, make_mesh() if mesh is None else mesh, seed)


def build(parts: Parts, mesh: Mesh, seed: int) -> Trainer:
    """Return the trainer of the parts; nothing is compiled before it is used."""
    model, optimizer, loss, options, steps, models = parts
    check_table(model.declared.params.embedding.table, mesh)
    side_by_side = models is not None
    if side_by_side and is_sharded(model) and mesh.size > 1:
        raise ConfigError(
            "models side by side keep their tables whole; use --table-layout replicated, or "
            "train one seed at a time"
        )
    adapter = loss if loss.planned is None else loss.planned(0 if steps is None else steps)
    # Rows are scored with the weights that they have once the loss weighs them.
    balance = None if loss.planned is None else loss.planned(0)

    def create(seed: Any) -> TrainState:
        return init_state(model, adapter, optimizer, seed)

    shapes = jax.eval_shape(create, np.int32(0))
    places = place(mesh, state_specs(model, optimizer), shapes)
    whole = NamedSharding(mesh, REPLICATED)
    weights = make_weights(optimizer)
    return Trainer(
        parts=parts,
        mesh=mesh,
        train_step=make_train_step(model, adapter, optimizer, mesh, options, side_by_side),
        score_step=make_score_step(model, mesh, balance, options, side_by_side),
        weights=jax.vmap(weights) if side_by_side and optimizer.average else weights,
        create=jax.jit(
            jax.vmap(create) if side_by_side else create,
            out_shardings=whole if side_by_side else places,
            # A level that the user has set for XLA stands.
            compiler_options=None if LEVEL in os.environ.get("XLA_FLAGS", "") else RUNS_ONCE,
        ),
        abstract=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            places,
        ),
        seed=seed,
    )
