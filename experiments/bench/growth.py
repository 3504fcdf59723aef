"""How time and memory grow with the rows of a step and with the number of fields.

python -m experiments.bench.growth

With the size of the embedding table: `table_growth`; with the number of devices: `communication`;
with the rows of the data: `loader` and `ali_ccp_raw`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench.children import ChildError, Request, ask
from experiments.bench.rank import variant_of
from experiments.bench.variants import Variant, reference, with_update
from experiments.bench.workload import FIELD_COUNTS


@dataclass(frozen=True)
class Growth:
    """The sizes of a step, and how long each is measured."""

    batch_sizes: tuple[int, ...] = (256, 1024, 4096, 16_384)
    """Rows of a step at Ali-CCP's size."""
    field_counts: tuple[int, ...] = FIELD_COUNTS
    """Fields of 10,000 ids each, in steps of 2,048 rows."""
    ranks: tuple[int, ...] = (0, 32)
    """Of D3's generator; 0 is the paper's form."""
    plain: bool = True
    """A plain network too."""
    seconds: float = 3.0
    """How long each kind of call is measured, at least two steps."""
    rounds: int = 1


class Size(NamedTuple):
    """One line of the table."""

    text: str
    workload: str
    batch_size: int


def sizes(bench: Growth) -> Iterator[Size]:
    """All that are measured."""
    for rows in bench.batch_sizes:
        yield Size(f"{rows:,} rows, 23 fields", "ali-ccp", rows)
    for count in bench.field_counts:
        yield Size(f"2,048 rows, {count} fields", f"{count} fields", 2048)


def models(bench: Growth) -> dict[str, Variant]:
    """By the names in the table; all move only the table's rows that a batch has."""
    plain = Variant("plain", "plain", "d3jax", with_update(reference("plain"), "lazy_adamw"))
    names = {0: "D3, the paper's"}
    found = {names.get(rank, f"D3, rank {rank}"): variant_of(rank) for rank in bench.ranks}
    return ({"plain": plain} if bench.plain else {}) | found


def measure(bench: Growth, size: Size, variant: Variant) -> tuple[str, str, str]:
    """Milliseconds of a step, its rows a second, and the most memory that the process held."""
    request = Request(
        action="time",
        variant=replace(variant, name="growth"),
        workload=size.workload,
        batch_size=size.batch_size,
        seconds=bench.seconds,
        candidates=1,
    )
    answers = [ask(request) for _ in range(bench.rounds)]
    rate = median(answer["train"]["rows_per_second"] for answer in answers)
    gigabytes = max(answer["peak_megabytes"] for answer in answers) / 1024
    return f"{1000 * size.batch_size / rate:,.1f}", f"{rate:,.0f}", f"{gigabytes:.2f}"


def main(bench: Growth) -> None:
    """Measures every cell in a process of its own, and prints the table."""
    console = Console(log_path=False)
    table = Table(title="a training step, and the process that takes it")
    for heading in ("step", "model", "ms", "rows/s", "peak GB"):
        table.add_column(heading, justify="left" if heading in ("step", "model") else "right")
    for size in sizes(bench):
        for name, variant in models(bench).items():
            try:
                cells = measure(bench, size, variant)
            except ChildError as error:
                cells = ("-", "-", str(error))
            console.log(size.text, name, *cells)
            table.add_row(size.text, name, *cells)
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Growth))
