"""Trains the cells of a table, method by method and seed by seed, and reports what came out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from d3jax.checks import within
from d3jax.config import Config
from d3jax.configure import settled
from d3jax.console.signals import stop_signals
from d3jax.console.terminal import BarColumn, Console, MofNCompleteColumn, Progress, Words
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.disk import writing
from d3jax.errors import Preempted, TrainingError
from d3jax.owned import claim
from d3jax.parts import (
    balance_of,
    balance_start,
    check_config,
    is_faster_side_by_side,
    refusal,
)
from d3jax.presets import read_preset
from d3jax.run import Run, create_run, open_same_run
from d3jax.training.checkpoint.storage import check_storable
from d3jax.training.trainer import Trainer
from experiments.compare.cells import (
    CellResult,
    cell_trainer,
    expected_steps,
    read_cell,
    run_cells,
)
from experiments.compare.comparison import Comparison
from experiments.compare.figures import draw_comparison
from experiments.compare.html import html
from experiments.compare.report import markdown, terminal_grid, write_csv
from experiments.compare.splits import NOTE, check_redrawable, redraw
from experiments.compare.statistics import Repeat
from experiments.compare.tables import Method, Table, preset_path
from experiments.compare.verdict import verdict

FILE_WIDTH = 120

_SAME = "stopped and saved; give the same command to go on"

Results = dict[str, dict[Repeat, CellResult]]
"""Finished cells by method, and by seed and split."""


class Cell(NamedTuple):
    """A method with one seed on one split, and the run directory it is trained in."""

    method: Method
    repeat: Repeat
    config: Config
    directory: Path
    prepared: Prepared

    def begun(self) -> Run | None:
        """The cell's run, None when it hasn't been started."""
        return open_same_run(self.directory, self.config, self.prepared)

    def run(self) -> Run:
        """The cell's run, made when it hasn't been started."""
        return self.begun() or create_run(self.directory, self.config, self.prepared, False)


@dataclass(frozen=True)
class Plan:
    """The methods to compare, and where; `configs` is a folder of presets by method, such as
    `adi-d3.json`, which replace `config` for their methods; `keep` leaves checkpoints; each of the
    seeds is run on each of the `splits` of the rows."""

    table: Table
    config: Config
    seeds: int
    out: Path
    configs: Path | None = None
    keep: bool = False
    command: str = ""
    splits: int = 1

    def __post_init__(self) -> None:
        within("seeds", self.seeds, 1, 1000)
        within("splits", self.splits, 1, 100)

    def config_of(self, method: Method, seed: int) -> Config:
        """The configuration of one cell; raises `ConfigError` for a preset of another model."""
        path = preset_path(self.configs, method)
        return method.configure(self.config if path is None else read_preset(path), seed)


def compare(data: Path, plan: Plan, console: Console) -> Comparison:
    """Trains what isn't trained yet and writes the reports, also when it is asked to stop.

    A cell whose loss isn't finite is reported and left out. Raises `Preempted` when stopped.
    """
    prepared = open_prepared(data)
    check_rows(prepared)
    check_redrawable(prepared, plan.splits)
    check_storable(plan.out)
    methods, notes = _trainable(plan, prepared)
    chosen = [(each, settled(plan.config_of(each, 0), prepared)) for each in methods]
    claim(plan.out, "comparison")
    drawn = (redraw(prepared, plan.out / "splits" / str(n), n) for n in range(1, plan.splits))
    cells = list(_cells(plan, chosen, [prepared, *drawn]))
    if plan.splits > 1:
        notes.append(NOTE.format(splits=plan.splits))
    results: Results = {method.name: {} for method in methods}
    for cell in cells:
        if (finished := read_cell(cell.begun())) is not None:
            results[cell.method.name][cell.repeat] = finished
    left = [cell for cell in cells if cell.repeat not in results[cell.method.name]]
    console.print(f"{len(cells)} cells, {len(cells) - len(left)} of them finished already")
    try:
        if left:
            notes += _train(left, plan, results, console)
    finally:
        notes += _unweighed(plan, prepared, results)
        comparison = Comparison(plan.table, prepared, plan.config, plan.command, results, notes)
        if any(results.values()):
            write_reports(comparison, plan.out)
    console.print(f"reports are in {plan.out}: {plan.table.name}.md, .csv and .html")
    return comparison


def write_reports(comparison: Comparison, out: Path) -> None:
    """Writes the reports side by side and prints the verdict, AUC and logloss."""
    name = comparison.table.name
    with writing(out):
        (out / f"{name}.md").write_text(markdown(comparison), encoding="utf-8")
        write_csv(out / f"{name}.csv", comparison)
        figures = draw_comparison(comparison, out / "figures")
        (out / f"{name}.html").write_text(html(comparison, figures), encoding="utf-8")
    screen = Console()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        # A file has no width of its own.
        screen = Console(width=FILE_WIDTH)
    for sentence in verdict(comparison):
        screen.print(sentence)
    screen.print(terminal_grid(comparison, "auc"))
    screen.print(terminal_grid(comparison, "logloss"))


def _trainable(plan: Plan, prepared: Prepared) -> tuple[list[Method], list[str]]:
    """The methods that make sense on this data, and why others are left out."""
    methods, notes = [], []
    for method in plan.table.methods:
        config = plan.config_of(method, 0)
        if reason := refusal(prepared.schema, config):
            notes.append(f"{method.name} is left out: {reason}.")
        else:
            # Settings that contradict each other are refused before anything is trained.
            check_config(prepared.schema, config)
            methods.append(method)
    return methods, notes


def _cells(
    plan: Plan, chosen: Sequence[tuple[Method, Config]], splits: Sequence[Prepared]
) -> Iterator[Cell]:
    """All cells, a whole table of one seed on one split before the next."""
    for seed, split in product(range(plan.seeds), range(len(splits))):
        repeat = Repeat(seed, split)
        for method, config in chosen:
            directory = plan.out / "cells" / method.slug / str(repeat)
            seeded = config.changed(train=replace(config.train, seed=seed))
            yield Cell(method, repeat, seeded, directory, splits[split])


def _unweighed(plan: Plan, prepared: Prepared, results: Results) -> list[str]:
    """Return a remark on the runs whose best weights are older than D3's weighing of rows, which
    then has no part in their metrics."""
    notes = []
    for method in plan.table.methods:
        cells = results.get(method.name, {}).values()
        config = plan.config_of(method, 0)
        if not cells or balance_of(config) is None:
            continue
        start = balance_start(config, expected_steps(prepared, config))
        before = sum(cell.best_step is not None and cell.best_step <= start for cell in cells)
        if before:
            notes.append(
                f"{method.name}: in {before} of {len(cells)} runs the best weights came before "
                f"rows began to be weighed, at step {start}."
            )
    return notes


def _train(left: Sequence[Cell], plan: Plan, results: Results, console: Console) -> list[str]:
    """Trains the cells into `results`; returns what has to be said about those that failed."""
    trainers: dict[tuple[str, int], Trainer] = {}
    failures = []
    waiting, done = deque(groups(left)), 0
    left = [cell for cells in waiting for cell in cells]
    with _progress(console, results, left) as show, stop_signals() as should_stop:
        while waiting:
            cells = waiting.popleft()
            runs, prepared = [cell.run() for cell in cells], cells[0].prepared
            key = (cells[0].method.name, len(cells))
            if key not in trainers:
                trainers[key] = cell_trainer(runs)
            shown = partial(show, done, title(cells), len(cells))
            try:
                finished = run_cells(runs, prepared, trainers[key], shown, should_stop, plan.keep)
                results[cells[0].method.name].update(
                    {cell.repeat: result for cell, result in zip(cells, finished, strict=True)}
                )
            except Preempted as stop:
                raise Preempted(f"{title(cells)}: {_SAME}") from stop
            except TrainingError as error:
                if len(cells) > 1:  # One of them; the others come to their end without it.
                    waiting.extendleft([cell] for cell in reversed(cells))
                    continue
                failures.append(f"{title(cells)}, failed: {error}")
            shown(1.0)
            done += len(cells)
            if not console.is_terminal:  # Such as a log, which shows the bar only when it is full.
                parts = (title(cells), time_left(results, left[done:]))
                console.print(f"{done} of {len(left)}: {', '.join(filter(None, parts))}")
            if should_stop(0) and waiting:
                raise Preempted(f"{title(cells)}: {_SAME}")
    return failures


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells that are trained together: a method's seeds where that is faster."""
    by_rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        by_rows.setdefault((cell.method.name, cell.repeat.split), []).append(cell)
    together = {
        key
        for key, [first, *_] in by_rows.items()
        if is_faster_side_by_side(first.prepared.schema, first.config)
    }
    alone = [[c] for c in cells if (c.method.name, c.repeat.split) not in together]
    return [by_rows[key] for key in by_rows if key in together] + alone


def title(cells: Sequence[Cell]) -> str:
    """Return the method, the seeds and the split of cells in words."""
    seeds, split = ", ".join(str(cell.repeat.seed) for cell in cells), cells[0].repeat.split
    where = f" on split {split}" if split else ""
    return f"{cells[0].method.name}, seed{'s' if len(cells) > 1 else ''} {seeds}{where}"


def remaining_seconds(spent: Mapping[str, Sequence[float]], left: Sequence[str]) -> float | None:
    """Return the seconds that the methods left will take, by the mean of those that are done.

    A method that was never timed counts as the mean of all; None before anything was timed.
    """
    times = [seconds for all_times in spent.values() for seconds in all_times]
    if not times:
        return None
    mean = sum(times) / len(times)
    return sum(sum(spent[name]) / len(spent[name]) if spent.get(name) else mean for name in left)


def time_left(results: Results, left: Sequence[Cell]) -> str:
    """Return the time that the cells left will take, in words; empty before that can be told."""
    spent = {name: [r.seconds for r in done.values()] for name, done in results.items()}
    seconds = remaining_seconds(spent, [cell.method.name for cell in left])
    return f"about {duration(seconds)} left" if seconds else ""


@contextmanager
def _progress(
    console: Console, results: Results, left: Sequence[Cell]
) -> Iterator[Callable[[int, str, int, float], None]]:
    """Yields `show(done, title, count, share)`: the cells done, and the share of those at work."""
    columns = (
        Words("{task.description}"),
        BarColumn(),
        Words("{task.percentage:3.0f} %"),
        MofNCompleteColumn(),
        Words("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cells", total=len(left), left="")

        def show(done: int, title: str, count: int, share: float) -> None:
            bar.update(
                task,
                completed=done + count * share,
                description=title,
                left=time_left(results, left[done + count * int(share) :]),
            )

        yield show


def duration(seconds: float) -> str:
    """A time in the largest units that tell something, such as "2 h 05 min"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{max(1, round(seconds))} s"
