"""A few lines on a prepared directory: its rows and click rates, and what happened to raw rows."""

from __future__ import annotations

import numpy as np

from d3jax.console.report import split_grid
from d3jax.console.terminal import Console, Grid
from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared


def show_summary(prepared: Prepared, console: Console) -> None:
    """Print the table and the remarks."""
    console.print(summary(prepared))
    for line in remarks(prepared):
        console.print(line)


def summary(prepared: Prepared) -> Grid:
    """Rows and click rate by scenario and split, vocabulary sizes in the caption."""
    schema = prepared.schema
    sizes = ", ".join(f"{field.name} {field.size - 1:,}" for field in schema.fields)
    splits = {split: _sizes(prepared, split) for split in SPLITS}
    return split_grid(
        str(prepared.directory),
        schema.scenarios,
        splits,
        caption=f"known values per field: {sizes}",
    )


def _sizes(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and clicks of each scenario."""
    rows, count = prepared.rows(split), prepared.schema.num_scenarios
    clicks = np.bincount(rows.scenario, rows.label, count)
    return np.bincount(rows.scenario, minlength=count), np.rint(clicks).astype(np.int64)


def remarks(prepared: Prepared) -> list[str]:
    """Return remarks on rows that the reader of a table should know."""
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
