"""Several models of one configuration, side by side in one program: the seeds of an experiment.

Every array of a state and of a batch has a leading axis of E models, which `jax.vmap` hides from
the step. Each model has its own initial weights and its own rows, so it is, to rounding, the one
that its seed gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from d3jax.base import LossAdapter, Model, ModelParams
from d3jax.batch import Batch
from d3jax.errors import ConfigError
from d3jax.parameters import DATA_AXIS, REPLICATED, Tree
from d3jax.training.optimizer import Optimizer
from d3jax.training.sharding import place_batch
from d3jax.training.step import (
    ScoreStep,
    StepOptions,
    TrainState,
    TrainStep,
    device_score_step,
    device_train_step,
    init_state,
    is_sharded,
    make_weights,
    state_specs,
)

ROWS = P(None, DATA_AXIS)
"""Where the batches of all models lie: E first, then rows over the devices."""


class Ensemble(NamedTuple):
    """The compiled steps of E models; as those of `Trainer`, with a leading axis of E."""

    mesh: Mesh
    train_step: TrainStep
    score_step: ScoreStep
    weights: Callable[[TrainState], ModelParams]
    init: Callable[[], TrainState]


def build_ensemble(
    model: Model,
    adapter: LossAdapter,
    optimizer: Optimizer,
    options: StepOptions,
    seeds: Sequence[int],
    mesh: Mesh,
) -> Ensemble:
    """The steps for one model a seed. Raises `ConfigError` for a table that is sharded.

    Scoring takes one batch, the same for all models.
    """
    if is_sharded(model) and mesh.size > 1:
        raise ConfigError(
            "models side by side keep their tables whole; use --table-layout replicated, or "
            "train one seed at a time"
        )
    layout = jax.tree.map(
        lambda spec: P(None, *spec), state_specs(model, optimizer), is_leaf=_is_spec
    )

    def mapped(program: Callable, in_specs: Tree, out_specs: Tree) -> Callable:
        return jax.shard_map(program, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

    step = jax.vmap(device_train_step(model, adapter, optimizer, options))
    score = jax.vmap(device_score_step(model), in_axes=(0, 0, None))

    def create(seeds: Int[Array, " E"]) -> TrainState:
        return jax.vmap(lambda seed: init_state(model, adapter, optimizer, seed))(seeds)

    whole = NamedSharding(mesh, REPLICATED)
    return Ensemble(
        mesh=mesh,
        train_step=jax.jit(
            mapped(step, (layout, ROWS), (layout, P())),
            donate_argnums=0,
            compiler_options=options.compiler_options,
        ),
        score_step=jax.jit(
            mapped(score, (layout.params, layout.model_state, P(DATA_AXIS)), ROWS),
            compiler_options=options.compiler_options,
        ),
        weights=jax.vmap(make_weights(optimizer)),
        init=lambda: jax.jit(create, out_shardings=whole)(np.asarray(seeds, np.int32)),
    )


def place_models(mesh: Mesh, batches: Sequence[Batch]) -> Batch:
    """One batch a model, stacked, on the devices."""
    place = NamedSharding(mesh, ROWS)
    return jax.tree.map(
        lambda *arrays: jax.make_array_from_process_local_data(place, np.stack(arrays)), *batches
    )


def score_models(
    ensemble: Ensemble, state: TrainState, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Float[np.ndarray, "E R"]]]:
    """The real rows of each batch, and the logits that each model gives them."""
    for batch in batches:
        placed = place_batch(ensemble.mesh, batch)
        scored = ensemble.score_step(ensemble.weights(state), state.model_state, placed)
        real = np.asarray(batch.mask)
        rows = jax.tree.map(lambda array, real=real: np.asarray(array)[real], batch)
        yield rows, np.asarray(scored.logits)[:, real]


def one_model(tree: Tree, index: int) -> Tree:
    """The arrays of one of the models, without the leading axis."""
    return jax.tree.map(lambda array: array[index], tree)


def _is_spec(node: object) -> bool:
    return isinstance(node, P)
