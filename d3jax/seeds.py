"""`d3jax train --seeds 5`: the same configuration with several seeds, side by side in one program.

Each seed is a run directory of its own, which `evaluate`, `predict` and `inspect` take; the table
of means and standard deviations is what the seeds are for. A seed whose patience has run out is
trained along until the last one's has, and keeps its best weights.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from d3jax.config import Config, TrainConfig
from d3jax.console.journal import Journal
from d3jax.console.report import number_text
from d3jax.console.terminal import Console, Grid
from d3jax.console.terminal import Progress as Bar
from d3jax.data.loader import evaluation_batches
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.disk import writing
from d3jax.errors import TrainingError
from d3jax.owned import building, check_free, exclusive
from d3jax.run import Run, create_run, open_run
from d3jax.running import training_data
from d3jax.training.checkpoint.storage import check_storable
from d3jax.training.ensemble import (
    Ensemble,
    build_ensemble,
    one_model,
    place_models,
    score_models,
)
from d3jax.training.fit import Progress, build_parts, finished, monitored, total_steps
from d3jax.training.metrics import Evaluation, Scores, evaluate_scores, mean_and_std
from d3jax.training.scoring import scores_of
from d3jax.training.sharding import make_mesh
from d3jax.training.step import Scored, TrainState

CURE = "choose another --out, or pass --overwrite"

SILENT = Console(quiet=True)


def train_seeds(
    data: Path, config: Config, seeds: int, out: Path, console: Console, overwrite: bool = False
) -> None:
    """Trains `seeds` models, the first with the configuration's seed, and prints their table.

    `out` gets a folder a seed and `summary.json`. Raises `OutputError` when it exists and may not
    be replaced, or can't be written.
    """
    check_storable(out)
    check_free(out, ("seeds",), overwrite, CURE)
    prepared = open_prepared(data)
    check_rows(prepared)
    configs = [
        replace(config, train=replace(config.train, seed=config.train.seed + index))
        for index in range(seeds)
    ]
    with building(out, "seeds", overwrite, cure=CURE, inputs=[data]) as new:
        names = [f"seed-{each.train.seed}" for each in configs]
        for name, each in zip(names, configs, strict=True):
            create_run(new / name, each, prepared, overwrite=False)
    with writing(out), exclusive(out):
        runs = [open_run(out / name) for name in names]
        results = _conclude(prepared, *_train(prepared, runs, console), runs)
        summary = {name: result.to_json() for name, result in results.items()}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    Console().print(summary_grid(list(results.values())))
    console.print(f"everything is in {out}")


class _Seed:
    """One of the models: its place among them, its journal, and the state it was best in."""

    def __init__(self, index: int, journal: Journal) -> None:
        self.index, self.journal = index, journal
        self.progress = Progress()
        self.best: TrainState | None = None

    def evaluated(
        self, step: int, evaluation: Evaluation, settings: TrainConfig, models: TrainState
    ) -> None:
        """One more evaluation; the state is kept when it is the best so far."""
        metric = monitored(settings, evaluation)
        self.progress = replace(self.progress.after(step, *metric), step=step)
        improved = self.progress.best_step == step
        if improved:
            self.best = jax.device_get(one_model(models, self.index))
        self.journal.evaluated(step, evaluation, improved)


def _train(prepared: Prepared, runs: list[Run], console: Console) -> tuple[Ensemble, list[_Seed]]:
    """Trains all models until the last one's patience has run out."""
    settings, mesh = runs[0].config.train, make_mesh()
    data = [training_data(prepared, run.config) for run in runs]
    per_epoch = data[0].steps_per_epoch
    ensemble = build_ensemble(
        *build_parts(prepared.schema, runs[0].config, per_epoch, mesh),
        [run.config.train.seed for run in runs],
        mesh,
    )
    last = total_steps(settings, per_epoch)
    every = max(1, round(settings.evaluate_every * per_epoch))
    state, losses = ensemble.init(), []
    with Bar(console=console) as bar, ExitStack() as stack:
        seeds = [
            _Seed(index, stack.enter_context(Journal(run, SILENT, 0, last, settings.batch_size)))
            for index, run in enumerate(runs)
        ]
        going = seeds
        streams = [each.training(0, last) for each in data]
        task = bar.add_task(f"training {len(runs)} seeds", total=last)
        for step, batches in enumerate(zip(*streams, strict=True), start=1):
            state, info = ensemble.train_step(state, place_models(mesh, batches))
            losses.append(info.loss)
            bar.update(task, completed=step)
            if step % settings.log_every == 0 or step == last:
                for seed in going:
                    seed.journal.logged(step, float(np.mean([loss[seed.index] for loss in losses])))
                losses = []
            if step % every and step != last:
                continue
            _check_finite(info.loss, runs, step)
            evaluations = _evaluations(ensemble, state, prepared, "validation", settings.batch_size)
            for seed in going:
                seed.evaluated(step, evaluations[seed.index], settings, state)
            going = [seed for seed in going if not finished(settings, seed.progress, last)]
            if not going:
                break
    return ensemble, seeds


def _check_finite(losses: jax.Array, runs: list[Run], step: int) -> None:
    for loss, run in zip(np.asarray(losses), runs, strict=True):
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss of seed {run.config.train.seed} at step {step} is {loss}; train that "
                "seed alone to learn which rows and parameters it came from"
            )


def _evaluations(
    ensemble: Ensemble, state: TrainState, prepared: Prepared, split: str, batch_size: int
) -> list[Evaluation]:
    """Each model's metrics of a split."""
    schema, models = prepared.schema, state.step.shape[0]
    pieces: list[list[Scores]] = [[] for _ in range(models)]
    batches = evaluation_batches(prepared.rows(split), batch_size=batch_size)
    for batch, by_model in score_models(ensemble, state, batches):
        for piece, logits in zip(pieces, by_model, strict=True):
            piece.append(scores_of(batch, Scored(logits, None, None), schema.user_slot))
    return [evaluate_scores(Scores.merge(piece), schema.scenarios) for piece in pieces]


def _conclude(
    prepared: Prepared, ensemble: Ensemble, seeds: list[_Seed], runs: list[Run]
) -> dict[str, Evaluation]:
    """Evaluates each seed's best weights on the test rows, and leaves them as its checkpoint."""
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *(seed.best for seed in seeds))
    size = runs[0].config.train.batch_size
    results = _evaluations(ensemble, together, prepared, "test", size)
    for run, seed, result in zip(runs, seeds, results, strict=True):
        step = seed.progress.best_step
        assert step is not None
        with run.checkpoints(writer=True) as checkpoints:
            checkpoints.save(step, seed.best, replace(seed.progress, step=step).to_json())
        run.write_json("evaluation.json", result.to_json())
    return {run.directory.name: result for run, result in zip(runs, results, strict=True)}


def summary_grid(evaluations: list[Evaluation]) -> Grid:
    """Mean and standard deviation over seeds, by scenario and overall."""
    lines = []
    for group in evaluations[0].groups:
        metrics = [evaluation.groups[group] for evaluation in evaluations]
        spreads = _spread([m.auc for m in metrics]), _spread([m.logloss for m in metrics])
        lines.append([group, *spreads, number_text(metrics[0].constant_logloss)])
    return Grid(
        f"test rows, best weights of {len(evaluations)} seeds",
        ["scenario", "AUC", "logloss", "constant's logloss"],
        lines,
        apart=[len(lines) - 1],
    )


def _spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation, a dash where a value isn't defined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean, std = mean_and_std(known)
    return f"{mean:.4f}" + ("" if std is None else f" ± {std:.4f}")
