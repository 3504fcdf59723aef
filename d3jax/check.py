"""Proof that each byte and row of prepared data, or array of a run, is as it was written."""

from __future__ import annotations

from pathlib import Path

from d3jax.console.terminal import Console, Table, styled
from d3jax.data.checksums import verify_checksums
from d3jax.data.prepared import check_rows, open_prepared
from d3jax.errors import CheckpointError
from d3jax.run import open_run
from d3jax.training.checkpoint.checkpoints import Checkpoints


def is_run(directory: Path) -> bool:
    """Return whether this is a run directory, or what is left of one, and not a prepared one."""
    return (directory / "config.json").exists() or (directory / "checkpoints").exists()


def check_prepared(directory: Path, console: Console) -> None:
    """Checks every file against its checksum, and every id, scenario and label against the schema.

    Raises `DataError` naming the first that is wrong.
    """
    prepared = open_prepared(directory)
    count = verify_checksums(directory)
    check_rows(prepared)
    total = sum(prepared.provenance["rows"].values())
    console.print(f"{directory}: {count} files and {total:,} rows are as they were written")


def check_run(directory: Path, console: Console) -> None:
    """Prints a line for each checkpoint: its arrays, their bytes, and whether all are whole.

    Raises `CheckpointError` when one is damaged, or when there is none.
    """
    table = Table(title=f"{directory}: checkpoints")
    for column in ("step", "arrays", "bytes"):
        table.add_column(column, justify="right")
    table.add_column("state", overflow="fold")
    with open_run(directory).checkpoints(writer=False) as checkpoints:
        steps = checkpoints.steps()
        damaged = [step for step in steps if not _add_row(table, checkpoints, step)]
    console.print(table)
    if not steps:
        raise CheckpointError(f"{directory} has no checkpoint yet; train it by --resume")
    if damaged:
        raise CheckpointError(
            f"of {len(steps)} checkpoints in {directory} damaged: "
            f"{', '.join(map(str, damaged))}; put their folders back from a copy, or go on by "
            "--resume, which uses the newest that is whole"
        )


def _add_row(table: Table, checkpoints: Checkpoints, step: int) -> bool:
    """Adds what was found in a checkpoint, and says whether it is whole."""
    try:
        arrays = checkpoints.arrays(step)
    except CheckpointError as error:
        table.add_row(f"{step}", "-", "-", styled(str(error), "bold red"))
        return False
    size = sum(array.nbytes for array in arrays.values())
    table.add_row(f"{step}", f"{len(arrays)}", f"{size:,}", styled("ok", "green"))
    return True
