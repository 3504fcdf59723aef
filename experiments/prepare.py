"""Runs a data source through `prepare`, with a progress bar and a summary."""

from __future__ import annotations

from pathlib import Path

import ibis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.columns import SPLITS, Prepared
from data_pipelines.movielens import movielens_1m, opened
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig


def prepare_movielens(
    files: Path, out: Path, config: PrepareConfig, overwrite: bool, console: Console
) -> None:
    """Prepares MovieLens-1M from its directory or zip."""
    with opened(files) as directory, Progress(console=console) as bar:
        task = bar.add_task("reading")
        source = movielens_1m(ibis.duckdb.connect(), directory)

        def advance(name: str, index: int, total: int) -> None:
            bar.update(task, description=name, completed=index, total=total)

        prepared = prepare(source, out, config, overwrite, advance)
        bar.update(task, description="done", completed=1, total=1)
    console.print(summary(prepared))


def summary(prepared: Prepared) -> Table:
    """Rows and click rate per split, vocabulary sizes in the caption."""
    sizes = ", ".join(f"{field.name} {field.size:,}" for field in prepared.schema.fields)
    table = Table(title=str(prepared.directory), caption=f"ids per field: {sizes}")
    for column in ("split", "rows", "click rate", *prepared.schema.scenarios):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        rows = prepared.rows(split)
        scenarios = [int((rows.scenario == s).sum()) for s in range(prepared.schema.num_scenarios)]
        rate = f"{float(rows.label.mean()):.4f}"
        table.add_row(split, f"{len(rows.label):,}", rate, *(f"{count:,}" for count in scenarios))
    return table
