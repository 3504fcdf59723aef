"""The d3jax side of the speed benchmark; runs in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.balance import weighted_loss
from d3jax.base import Mode, ModelParams
from d3jax.batch import Batch, Schema
from d3jax.config import Config
from d3jax.console.allocator import keep_freed_memory
from d3jax.parameters import Tree, named_leaves
from d3jax.parts import build_adapter, build_trainer
from d3jax.training.scoring import score_batches
from d3jax.training.sharding import place_batch
from d3jax.training.step import Scored, TrainState
from d3jax.training.trainer import Trainer
from experiments.bench.children import Request, serve
from experiments.bench.measure import measure
from experiments.bench.timing import peak_megabytes
from experiments.bench.workload import WORKLOADS, make_batches, make_schema

STEPS = 1000
"""The steps of the run that the benchmark pretends to be a part of."""


TABLE = "embedding.table"


class JaxRunner:
    """A trainer with its state, as `timing.Runner` has it."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.state = trainer.init()

    def train(self, batch: Batch) -> None:
        """One step; returns before it is done."""
        placed = place_batch(self.trainer.mesh, batch)
        self.state, _ = self.trainer.train_step(self.state, placed)

    def score_all(self, batches: Iterable[Batch]) -> None:
        """As evaluation does, attention and gate with the logits."""
        for _ in self._scored(batches):
            pass

    def logits(self, batch: Batch) -> np.ndarray:
        """Return each row's logit."""
        [(_, scored)] = self._scored([batch])
        return np.asarray(scored.logits)

    def _scored(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Scored]]:
        step, state = self.trainer.score_step, self.state
        return score_batches(step, state.params, state.model_state, batches, self.trainer.mesh)

    def wait(self) -> None:
        """Until the last step is done."""
        jax.block_until_ready(self.state)


class JaxServer:
    """The compiled model alone, answering NumPy arrays with NumPy arrays."""

    def __init__(self, trainer: Trainer, state: TrainState) -> None:
        self.params, self.state = jax.device_put((state.params, state.model_state))

        @jax.jit
        def logits(params: ModelParams, state: Tree, batch: Batch) -> jax.Array:
            return trainer.model.apply(params, state, batch)[0].logits

        self.logits = logits

    def score(self, batch: Batch) -> np.ndarray:
        """The logits alone."""
        return np.asarray(self.logits(self.params, self.state, batch))


def write_reference(request: Request, trainer: Trainer, config: Config, schema: Schema) -> None:
    """Weights, and the logits, losses and gradients that others must reproduce with them.

    The second loss is that after a step of the optimizer.
    """
    first, second = make_batches(WORKLOADS[request.workload], request.batch_size, 2)
    state = trainer.init()
    weights = named_leaves(state.params)
    moments = {f"state.{name}": leaf for name, leaf in named_leaves(state.model_state).items()}
    folder = Path(request.folder)
    np.savez(folder / "weights.npz", **_host(weights | moments, schema))
    gradients = named_leaves(_gradients(trainer, config, state, first))
    np.savez(folder / "gradients.npz", **_host(gradients, schema))
    runner = JaxRunner(trainer)
    logits = runner.logits(first)
    losses = []
    for batch in (first, second):
        placed = place_batch(trainer.mesh, batch)
        runner.state, info = trainer.train_step(runner.state, placed)
        losses.append(float(info.loss))
    np.savez(folder / "results.npz", logits=logits, losses=np.asarray(losses))


def _gradients(trainer: Trainer, config: Config, state: TrainState, batch: Batch) -> ModelParams:
    adapter = build_adapter(config, trainer.model, STEPS)
    mode = Mode(train=True)
    batch = jax.tree.map(jnp.asarray, batch)

    def loss(params: ModelParams) -> jax.Array:
        output, _ = trainer.model.apply(params, state.model_state, batch, mode)
        losses = adapter.row_losses(output.logits, batch.label)
        weights = adapter.row_weights(state.adapter_state, output, batch, state.step, mode)
        return weighted_loss(losses, weights, batch.mask)

    return jax.jit(jax.grad(loss))(state.params)


def _host(arrays: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """On the host; the table without the rows that pad it."""
    host = {name: np.asarray(array) for name, array in arrays.items()}
    return host | {TABLE: host[TABLE][: schema.num_rows]}


def device_megabytes() -> float:
    """The most memory that was in use, of the device where that has its own."""
    memory = jax.local_devices()[0].memory_stats()
    return peak_megabytes() if memory is None else memory["peak_bytes_in_use"] / 1e6


def handle(request: Request) -> dict[str, Any]:
    """Answers a request about a d3jax variant."""
    schema = make_schema(WORKLOADS[request.workload])
    config = request.variant.config
    config = replace(config, train=replace(config.train, batch_size=request.batch_size))
    trainer = build_trainer(schema, config, STEPS)
    if request.action == "reference":
        # As torch multiplies unless told otherwise; a GPU's default rounds the factors.
        jax.config.update("jax_default_matmul_precision", "highest")
        write_reference(request, trainer, config, schema)
        return {}
    runner = JaxRunner(trainer)
    return measure(
        request,
        lambda: runner,
        lambda: runner,
        lambda: JaxServer(trainer, runner.state),
        device_megabytes,
    )


if __name__ == "__main__":
    keep_freed_memory()  # As the d3jax command does.
    serve(handle)
