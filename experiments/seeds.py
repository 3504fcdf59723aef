"""`d3jax train --seeds 5`: the same configuration with several seeds, side by side in one program.

Each seed is a run directory of its own, which `evaluate`, `predict` and `inspect` take; the table
of means and standard deviations is what the seeds are for. A seed whose patience has run out is
trained along until the last one's has, and keeps its best weights.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from d3jax.config import Config
from d3jax.errors import ConfigError, TrainingError
from d3jax.training.ensemble import (
    Ensemble,
    build_ensemble,
    one_model,
    place_models,
    score_models,
)
from d3jax.training.fit import Progress, build_parts, finished, monitored, total_steps
from d3jax.training.metrics import Evaluation, Scores, evaluate_scores
from d3jax.training.scoring import scores_of
from d3jax.training.sharding import make_mesh
from d3jax.training.step import Scored, TrainState
from data_pipelines.columns import Prepared, check_rows, open_prepared
from data_pipelines.loader import evaluation_batches
from experiments.report import number_text
from experiments.run import Run, create_run
from experiments.statistics import mean_and_std
from experiments.train import training_data


def train_seeds(data: Path, config: Config, seeds: int, out: Path, console: Console) -> None:
    """Trains `seeds` models, the first with the configuration's seed, and prints their table.

    `out` gets a folder a seed and `summary.json`. Raises `ConfigError` when it exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out for {seeds} seeds")
    prepared = open_prepared(data)
    check_rows(prepared)
    configs = [
        replace(config, train=replace(config.train, seed=config.train.seed + index))
        for index in range(seeds)
    ]
    runs = [
        create_run(out / f"seed-{each.train.seed}", each, prepared, overwrite=False)
        for each in configs
    ]
    results = _conclude(prepared, *_train(prepared, configs, console), runs)
    summary = {name: result.to_json() for name, result in results.items()}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    Console().print(summary_table(list(results.values())))
    console.print(f"everything is in {out}")


class _Best:
    """How far one seed is, and the state it was best in."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.state: TrainState | None = None

    def take(self, step: int, result: tuple[float, bool], state: TrainState) -> None:
        """One more evaluation; `state` is kept when it is the best so far."""
        self.progress = replace(self.progress.after(step, *result), step=step)
        if self.progress.best_step == step:
            self.state = jax.device_get(state)


def _train(
    prepared: Prepared, configs: list[Config], console: Console
) -> tuple[Ensemble, list[_Best]]:
    """Trains all models until the last one's patience has run out."""
    settings, mesh = configs[0].train, make_mesh()
    data = [training_data(prepared, config) for config in configs]
    per_epoch = data[0].steps_per_epoch
    ensemble = build_ensemble(
        *build_parts(prepared.schema, configs[0], per_epoch, mesh),
        [config.train.seed for config in configs],
        mesh,
    )
    last = total_steps(settings, per_epoch)
    every = max(1, round(settings.evaluate_every * per_epoch))
    state, bests = ensemble.init(), [_Best() for _ in configs]
    with Bar(console=console) as bar:
        streams = [each.training(0, last) for each in data]
        task = bar.add_task(f"training {len(configs)} seeds", total=last)
        for step, batches in enumerate(zip(*streams, strict=True), start=1):
            state, info = ensemble.train_step(state, place_models(mesh, batches))
            bar.update(task, completed=step)
            if step % every and step != last:
                continue
            _check_finite(info.loss, configs, step)
            evaluations = _evaluations(ensemble, state, prepared, "validation", settings.batch_size)
            for index, (best, evaluation) in enumerate(zip(bests, evaluations, strict=True)):
                if not finished(settings, best.progress, last):
                    best.take(step, monitored(settings, evaluation), one_model(state, index))
            if all(finished(settings, best.progress, last) for best in bests):
                break
    return ensemble, bests


def _check_finite(losses: jax.Array, configs: list[Config], step: int) -> None:
    for loss, config in zip(np.asarray(losses), configs, strict=True):
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss of seed {config.train.seed} at step {step} is {loss}; train that seed "
                "alone to learn which rows and parameters it came from"
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
    prepared: Prepared, ensemble: Ensemble, bests: list[_Best], runs: list[Run]
) -> dict[str, Evaluation]:
    """Evaluates each seed's best weights on the test rows, and leaves them as its checkpoint."""
    states = [best.state for best in bests]
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *states)
    size = runs[0].config.train.batch_size
    results = _evaluations(ensemble, together, prepared, "test", size)
    for run, best, state, result in zip(runs, bests, states, results, strict=True):
        checkpoints = run.checkpoints(writer=True)
        step = best.progress.best_step
        assert step is not None
        checkpoints.save(step, state, replace(best.progress, step=step).to_json())
        checkpoints.close()
        run.write_json("evaluation.json", result.to_json())
    return {run.directory.name: result for run, result in zip(runs, results, strict=True)}


def summary_table(evaluations: list[Evaluation]) -> Table:
    """Mean and standard deviation over seeds, by scenario and overall."""
    table = Table(
        title=f"test rows, best weights of {len(evaluations)} seeds", title_justify="left"
    )
    table.add_column("scenario")
    for name in ("AUC", "logloss", "constant's logloss"):
        table.add_column(name, justify="right")
    for group in evaluations[0].groups:
        metrics = [evaluation.groups[group] for evaluation in evaluations]
        table.add_row(
            group,
            _spread([m.auc for m in metrics]),
            _spread([m.logloss for m in metrics]),
            number_text(metrics[0].constant_logloss),
        )
    return table


def _spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation, a dash where a value isn't defined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean, std = mean_and_std(known)
    return f"{mean:.4f}" + ("" if std is None else f" ± {std:.4f}")
