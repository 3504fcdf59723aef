"""Time and memory by the rows of a step, the number of fields and that of scenarios.

python -m experiments.bench.growth --out growth.md

With the size of the embedding table: `table_growth`; with the rows of the data: `loader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tyro

from d3jax.console.terminal import Console, Table
from experiments.bench.children import ChildError, Request, ask
from experiments.bench.outputs import check_outputs
from experiments.bench.variants import Family, Variant, reference, text_d3, with_update
from experiments.bench.workload import FIELD_COUNTS, SCENARIO_COUNTS
from experiments.compare.markdown import markdown_table

HEADINGS = ("step", "model", "ms", "rows/s", "scored rows/s", "peak GB")


@dataclass(frozen=True)
class Growth:
    """The sizes of a step, and how long each is measured."""

    batch_sizes: tuple[int, ...] = (256, 1024, 4096, 16_384)
    """Rows of a step at Ali-CCP's size."""
    field_counts: tuple[int, ...] = FIELD_COUNTS
    """Fields of 10,000 ids each, in steps of 2,048 rows."""
    scenario_counts: tuple[int, ...] = SCENARIO_COUNTS
    """Scenarios, in steps of 2,048 rows of 8 fields; for backbones that have layers for each."""
    ranks: tuple[int, ...] = (0, 32)
    """The rank of D3's generator; 0 is the paper's form."""
    seconds: float = 3.0
    """The seconds for which each kind of call is measured, at least two steps."""
    rounds: int = 1
    out: Path | None = None
    """The Markdown file of the table."""


class Size(NamedTuple):
    """The sizes of a step, and the models that take it."""

    text: str
    workload: str
    batch_size: int
    models: dict[str, Variant]


class Cost(NamedTuple):
    """The cost of a training step, of scoring, and of the process that does both."""

    train_rows: float
    """A second."""
    score_rows: float
    gigabytes: float
    """The most that the process held."""


def sizes(bench: Growth) -> Iterator[Size]:
    """All that are measured; every model moves only the table's rows that a batch has."""
    ranks = {f"D3, rank {rank}" if rank else "D3, the paper's": rank for rank in bench.ranks}
    models = {"plain": _own("plain")} | {name: _d3(rank) for name, rank in ranks.items()}
    for rows in bench.batch_sizes:
        yield Size(f"{rows:,} rows, 23 fields", "ali-ccp", rows, models)
    for count in bench.field_counts:
        yield Size(f"2,048 rows, {count} fields", f"{count} fields", 2048, models)
    divided = {"STAR": _own("star"), "MMoE": _own("mmoe")}
    for count in bench.scenario_counts:
        yield Size(f"2,048 rows, {count} scenarios", f"{count} scenarios", 2048, divided)


def measure(bench: Growth, size: Size, variant: Variant) -> Cost:
    """Medians over the rounds, each in a process of its own; raises what `ask` raises."""
    request = Request(
        action="time",
        variant=variant,
        workload=size.workload,
        batch_size=size.batch_size,
        seconds=bench.seconds,
        candidates=1,
    )
    answers = [ask(request) for _ in range(bench.rounds)]
    return Cost(
        median(answer["train"]["rows_per_second"] for answer in answers),
        median(answer["score"]["rows_per_second"] for answer in answers),
        max(answer["peak_megabytes"] for answer in answers) / 1024,
    )


def cells(bench: Growth, size: Size, name: str) -> tuple[str, ...]:
    """One line of the table."""
    try:
        cost = measure(bench, size, size.models[name])
    except ChildError as error:
        return (size.text, name, "-", "-", "-", str(error))
    return (
        size.text,
        name,
        f"{1000 * size.batch_size / cost.train_rows:,.1f}",
        f"{cost.train_rows:,.0f}",
        f"{cost.score_rows:,.0f}",
        f"{cost.gigabytes:.2f}",
    )


def markdown(lines: list[tuple[str, ...]]) -> str:
    """The table, below what it shows."""
    table = "\n".join(markdown_table(HEADINGS, lines, 2))
    return (
        "# How a step grows\n\n`python -m experiments.bench.growth`: a training step in "
        "milliseconds, rows a second that are trained and scored, and the most memory that the "
        f"process held.\n\n{table}\n"
    )


def main(bench: Growth) -> None:
    """Measures every line, prints the table and writes it."""
    check_outputs(bench.out)
    console = Console(log_path=False)
    table = Table(title="a training step, scoring, and the process that does them")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("step", "model") else "right")
    lines = []
    for size in sizes(bench):
        for name in size.models:
            lines.append(cells(bench, size, name))
            console.log(*lines[-1])
            table.add_row(*lines[-1])
            if bench.out:
                bench.out.write_text(markdown(lines), encoding="utf-8")
        table.add_section()
    console.print(table)


def _d3(rank: int) -> Variant:
    """Return D3 of a rank; the generator is what its step spends its time on."""
    return Variant("growth", "d3", "d3jax", with_update(text_d3(rank), "lazy_adamw"))


def _own(family: Family) -> Variant:
    return Variant("growth", family, "d3jax", with_update(reference(family), "lazy_adamw"))


if __name__ == "__main__":
    main(tyro.cli(Growth))
