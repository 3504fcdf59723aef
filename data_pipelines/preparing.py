"""Runs a data source through `prepare`, with a progress bar and a summary."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import ibis
import numpy as np

from d3jax.console.report import split_grid
from d3jax.console.terminal import Console, Grid, Progress
from d3jax.data.prepared import SPLITS, Prepared, check_replaceable
from d3jax.disk import DRAFT, writing
from data_pipelines.prepare import SPACE, prepare
from data_pipelines.prepare import Progress as Advance
from data_pipelines.raw.engine import duckdb_engine, spark_engine
from data_pipelines.source import PrepareConfig, Source


@dataclass(frozen=True)
class Workplace:
    """Where raw rows are read: an engine, a folder for what doesn't fit in memory, a progress bar.

    What `enter` opened is closed when the rows are prepared.
    """

    connection: ibis.BaseBackend
    scratch: Path
    advance: Advance
    stack: ExitStack

    def enter(self, context: AbstractContextManager[Path]) -> Path:
        """Enters a context until the rows are prepared."""
        return self.stack.enter_context(context)


def prepare_source(
    read: Callable[[Workplace], Source],
    out: Path,
    config: PrepareConfig,
    overwrite: bool,
    engine: str,
    console: Console,
) -> None:
    """Prepares what `read` gives, on the disk of `out`, and prints a summary."""
    check_replaceable(out, overwrite)
    with (
        writing(out, SPACE),
        ExitStack() as stack,
        Progress(console=console, transient=True) as bar,
    ):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=DRAFT, dir=out.parent)
        scratch = Path(stack.enter_context(folder)).resolve()
        task = bar.add_task("reading")

        def advance(name: str, index: int, total: int) -> None:
            bar.update(task, description=name, completed=index, total=total)

        connection = spark_engine(scratch) if engine == "spark" else duckdb_engine(scratch)
        source = read(Workplace(connection, scratch, advance, stack))
        prepared = prepare(source, out, config, overwrite, advance)
        bar.update(task, description="done", completed=1, total=1)
    console.print(summary(prepared))
    for line in remarks(prepared):
        console.print(line)


def summary(prepared: Prepared) -> Grid:
    """Rows and click rate by scenario and split, vocabulary sizes in the caption."""
    schema = prepared.schema
    sizes = ", ".join(f"{field.name} {field.size:,}" for field in schema.fields)
    splits = {split: _sizes(prepared, split) for split in SPLITS}
    return split_grid(
        str(prepared.directory), schema.scenarios, splits, caption=f"ids per field: {sizes}"
    )


def _sizes(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and clicks of each scenario."""
    rows, count = prepared.rows(split), prepared.schema.num_scenarios
    clicks = np.bincount(rows.scenario, rows.label, count)
    return np.bincount(rows.scenario, minlength=count), np.rint(clicks).astype(np.int64)


def remarks(prepared: Prepared) -> list[str]:
    """What happened to rows on the way that a reader of the table should know."""
    provenance = prepared.provenance
    lines = [
        f"{count:,} rows left out: {reason}"
        for reason, count in provenance.get("dropped", {}).items()
    ]
    lines += [
        f"{count:,} rows are unknown to {name}; the columns it adds are missing there"
        for name, count in provenance.get("unmatched", {}).items()
    ]
    slots = {field.name: field.slots for field in prepared.schema.fields}
    lines += [
        f"field {name!r} has up to {longest:,} values in a row; the {slots[name]} that are most "
        "frequent in train are kept"
        for name, longest in provenance.get("cut", {}).items()
    ]
    if unused := provenance.get("unused_columns"):
        names = ", ".join(name.strip() for name in unused)
        lines.append(f"columns left out, since no flag names them: {names}")
    if repeated := provenance.get("repeated_events", 0):
        lines.append(
            f"{repeated:,} rows repeat the {', '.join(provenance['split']['key'])} of another; "
            "such rows are on the same side of the split"
        )
    return lines
