"""`d3jax train --seeds 5`: the same configuration with several seeds, side by side in one program.

Each seed is a run directory of its own, which `evaluate`, `predict` and `inspect` take; the table
of means and standard deviations is what the seeds are for.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from d3jax.config import Config
from d3jax.configure import settled_for_run
from d3jax.console.report import number_text
from d3jax.console.terminal import Console, Grid
from d3jax.console.terminal import Progress as Bar
from d3jax.data.loader import steps_per_epoch
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.disk import writing
from d3jax.errors import CheckpointError
from d3jax.evaluate import trainer_for
from d3jax.journal import QuietJournal
from d3jax.owned import building, check_free, exclusive, kind_of
from d3jax.parts import check_config
from d3jax.run import Run, create_run, open_run
from d3jax.running import Ended, conclude, headline, run_to_end, telling_to_stop
from d3jax.training.checkpoint.storage import check_storable
from d3jax.training.loop import total_steps
from d3jax.training.metrics import Evaluation, mean_and_std

CURE = "go on with it by --resume, choose another --out, or pass --overwrite"


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
    config = settled_for_run(config, prepared)
    check_config(prepared.schema, config)
    with building(out, "seeds", overwrite, cure=CURE, inputs=[data]) as new:
        for seed in range(config.train.seed, config.train.seed + seeds):
            each = replace(config, train=replace(config.train, seed=seed))
            create_run(new / f"seed-{seed}", each, prepared, overwrite=False)
    _train(out, prepared, console)


def holds_seeds(directory: Path) -> bool:
    """Return whether a directory holds seeds side by side."""
    return kind_of(directory) == "seeds"


def resume_seeds(out: Path, console: Console, data: Path | None = None) -> None:
    """Goes on with seeds side by side; `data` is where their data are now."""
    _train(out, _runs(out)[0].training_data(data), console)


def _runs(out: Path) -> list[Run]:
    """The runs of the seeds, in their order; raises `CheckpointError` when there are none."""
    runs = sorted(map(open_run, out.glob("seed-*")), key=lambda run: run.config.train.seed)
    if not runs:
        raise CheckpointError(f"{out} holds no seed; start them again with --overwrite")
    return runs


def _train(out: Path, prepared: Prepared, console: Console) -> None:
    """Trains all seeds from where they are to their end, and writes their table."""
    runs = _runs(out)
    settings = runs[0].config.train
    with writing(out), ExitStack() as stack:
        for directory in (out, *(run.directory for run in runs)):
            stack.enter_context(exclusive(directory))
        check_rows(prepared)
        trainer = trainer_for(runs[0], models=len(runs))
        rows = len(prepared.rows("train").label)
        last = total_steps(settings, steps_per_epoch(rows, settings.batch_size))
        console.print(headline(runs[0], trainer, rows))
        with Bar(console=console) as bar, telling_to_stop() as should_stop:
            task = bar.add_task(f"training {len(runs)} seeds", total=1.0)

            def observing(run: Run, start: int) -> QuietJournal:
                return QuietJournal(
                    run,
                    start,
                    last,
                    settings.batch_size,
                    lambda share: bar.update(task, completed=share),
                )

            ended = run_to_end(runs, prepared, trainer, observing, should_stop, console)
        _conclude(out, runs, ended, prepared)
    Console().print(summary_grid([each.result.metrics for each in ended]))
    console.print(f"everything is in {out}")


def _conclude(out: Path, runs: list[Run], ended: list[Ended], prepared: Prepared) -> None:
    """Writes what each seed reached, and all of them in summary.json."""
    for run, each in zip(runs, ended, strict=True):
        conclude(run, each.result, prepared)
    summary = {
        run.directory.name: each.result.metrics.to_json()
        for run, each in zip(runs, ended, strict=True)
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


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
