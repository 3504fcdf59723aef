"""The torch side of the speed benchmark; runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3jax.batch import Batch
from d3jax.config import OptimizerConfig
from experiments.bench.agreement import disagreements
from experiments.bench.children import Chosen, Request, TorchSettings, serve
from experiments.bench.measure import measure
from experiments.bench.timing import (
    OneByOne,
    Runner,
    Scorer,
    latencies,
    peak_megabytes,
    scoring_rate,
    training_rate,
)
from experiments.bench.torch_backbones import STAR, build
from experiments.bench.torch_models import Answer, Embedded
from experiments.bench.torch_weights import gradients, load
from experiments.bench.workload import WORKLOADS, make_batches, make_schema


class TorchSide(Runner, Scorer, Protocol):
    """The measurements of this side: all of it is the same object."""


class TorchRunner(OneByOne):
    """A model of ours with its optimizers, as `timing.Runner` has it."""

    def __init__(
        self,
        model: Embedded,
        optimizers: Sequence[torch.optim.Optimizer],
        compiled: bool,
        bf16: bool = False,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.rounded = partial(torch.autocast, DEVICE, torch.bfloat16, enabled=bf16)
        self.network = model.network
        if compiled:
            # STAR splits a batch by scenario, so its shapes differ from batch to batch.
            dynamic = None if isinstance(model.network, STAR) else False
            self.network = torch.compile(model.network, dynamic=dynamic)

    def answer(self, batch: Batch) -> Answer:
        """The forward pass; looking embeddings up is left uncompiled."""
        with self.rounded():
            return self.network(self.model.embed(tensor(batch.ids)), tensor(batch.scenario))

    def loss(self, batch: Batch) -> Tensor:
        """The weighted mean cross-entropy; its gradients are in the parameters afterwards."""
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        logits, weights = self.answer(batch)
        losses = F.binary_cross_entropy_with_logits(logits.float(), tensor(batch.label), weights)
        losses.backward()
        return losses

    def train(self, batch: Batch) -> None:
        """One step."""
        self.loss(batch)
        for optimizer in self.optimizers:
            optimizer.step()

    @torch.inference_mode()
    def score(self, batch: Batch) -> np.ndarray:
        """The logits."""
        self.model.eval()
        return self.answer(batch)[0].float().cpu().numpy()

    def wait(self) -> None:
        """On a computer's own cores nothing is ever under way."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensor(array: np.ndarray) -> Tensor:
    """As a tensor where the model is; the same memory on a computer's own cores."""
    return torch.from_numpy(array).to(DEVICE, non_blocking=True)


def device_megabytes() -> float:
    """The most memory that was in use, of the device where that has its own."""
    return torch.cuda.max_memory_allocated() / 1e6 if DEVICE == "cuda" else peak_megabytes()


def make_optimizers(
    model: Embedded, config: OptimizerConfig, sparse: bool, fused: bool
) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or on all but the table, which SparseAdam then moves."""
    rate, decay = config.learning_rate, config.weight_decay
    if not sparse:
        return [torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=fused)]
    return [
        torch.optim.AdamW(model.network.parameters(), rate, weight_decay=decay, fused=fused),
        torch.optim.SparseAdam(model.table.parameters(), rate),
    ]


def make_runner(request: Request) -> Callable[[TorchSettings], TorchSide]:
    """A function that gives the variant's runner under other settings, the model staying one."""
    variant = request.variant
    schema = make_schema(WORKLOADS[request.workload])
    if variant.side == "deepctr-torch":
        from experiments.bench.torch_deepctr import DeepCTRRunner

        deepctr = DeepCTRRunner(schema, variant.config, variant.l2)
        return lambda settings: deepctr
    if variant.side == "fuxictr":
        from experiments.bench.torch_fuxictr import FuxiRunner

        fuxi = FuxiRunner(schema, variant.config)
        return lambda settings: fuxi
    model = build(schema, variant.config, variant.sparse).to(DEVICE)
    with np.load(Path(request.folder, "weights.npz")) as arrays:
        load(model, arrays)
    optimizers = make_optimizers(model, variant.config.optimizer, variant.sparse, variant.tuned)

    def under(settings: TorchSettings) -> TorchSide:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.compiler.reset()
        bf16 = variant.bf16 and request.action != "check"
        return TorchRunner(model, optimizers, settings.compiled, bf16)

    return under


def check(request: Request) -> dict[str, Any]:
    """Return what differs from the reference; compiled or not, as the variant will be timed."""
    first, second = make_batches(WORKLOADS[request.workload], request.batch_size, 2)
    runner = make_runner(request)(request.chosen.train)
    assert isinstance(runner, TorchRunner)
    logits = runner.score(first)
    losses = [runner.loss(first).item()]
    found = dict(gradients(runner.model))
    for optimizer in runner.optimizers:
        optimizer.step()
    losses.append(runner.loss(second).item())
    folder = Path(request.folder)
    with np.load(folder / "gradients.npz") as wanted, np.load(folder / "results.npz") as results:
        return {"differs": disagreements(results, wanted, logits, np.asarray(losses), found)}


def candidates(tuned: bool) -> list[TorchSettings]:
    """Return the settings to try: if `tuned`, each number of threads, compiled and not."""
    if not tuned:
        return [TorchSettings()]
    if DEVICE == "cuda":
        return [TorchSettings(compiled=compiled) for compiled in (False, True)]
    most = torch.get_num_threads()
    return [TorchSettings(*pair) for pair in product(sorted({1, most}), (False, True))]


def probe(request: Request) -> dict[str, Any]:
    """The best settings for each kind of call."""
    workload = WORKLOADS[request.workload]
    batches, one = make_batches(workload, request.batch_size, 2), make_batches(workload, 1, 1)[0]
    under = make_runner(request)
    tried: list[TorchSettings] = []
    costs: list[tuple[float, float, float]] = []
    for settings in candidates(request.variant.tuned):
        runner = under(settings)
        tried.append(settings)
        costs.append(
            (
                1 / training_rate(runner, batches, request.seconds).rows_per_second,
                1 / scoring_rate(runner, batches, request.seconds).rows_per_second,
                float(np.median(latencies(runner, one, request.seconds))),
            )
        )
    best = Chosen(*(tried[row] for row in np.argmin(costs, axis=0)))
    return {"chosen": asdict(best)}


def time_variant(request: Request) -> dict[str, Any]:
    """Rates, latencies and memory under the settings that were best for each."""
    under, chosen = make_runner(request), request.chosen
    return measure(
        request,
        lambda: under(chosen.train),
        lambda: under(chosen.score),
        lambda: under(chosen.latency),
        device_megabytes,
    )


def handle(request: Request) -> dict[str, Any]:
    """Answers a request about a variant in torch."""
    torch.manual_seed(0)
    if request.variant.tuned and request.action != "check":
        torch.set_float32_matmul_precision("high")  # As jax multiplies on a GPU.
    return {"check": check, "probe": probe, "time": time_variant}[request.action](request)


if __name__ == "__main__":
    serve(handle)
