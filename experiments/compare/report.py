"""A comparison as a table for the terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from d3jax.config import Config
from d3jax.console.report import interval_text, number_text
from d3jax.console.safe_text import csv_writer, for_markdown, markdown_code
from d3jax.console.terminal import Grid
from d3jax.data.prepared import Prepared
from d3jax.training.metrics import Evaluation
from experiments.compare.cells import CellResult
from experiments.compare.markdown import markdown_table
from experiments.compare.paper import CAVEATS, printed
from experiments.compare.statistics import METRICS, MetricName, Summary, summarize
from experiments.compare.tables import Table

TITLES: dict[MetricName, str] = {
    "auc": "AUC",
    "gauc": "GAUC (by user)",
    "logloss": "logloss",
    "pcoc": "PCOC (predicted over real clicks)",
    "ece": "ECE (ten bins of equally many rows)",
}
INTERVALS = "AUC of one run: 95 % bootstrap interval over test rows (mean of the seeds')"
MARKS = {"better": " ▲", "worse": " ▼", "": ""}
LEGEND = (
    "Mean ± standard deviation over seeds, on the test rows, of the weights that were best on the "
    "validation rows. ▲ better, ▼ worse than the method's base in a paired two-sided t-test over "
    "three or more seeds (p < .05 after Holm's correction over the method's columns)."
)


@dataclass(frozen=True)
class Comparison:
    """The measurements of a comparison, and all that a report needs to say about it."""

    table: Table
    prepared: Prepared
    config: Config
    command: str
    results: Mapping[str, Mapping[int, CellResult]]
    """Finished cells by method and seed."""
    notes: list[str] = field(default_factory=list)
    """Remarks on what was left out, what failed, and what to know of the rest."""

    @cached_property
    def evaluations(self) -> dict[str, dict[int, Evaluation]]:
        """The finished cells' evaluations."""
        return {
            method: {seed: cell.evaluation for seed, cell in cells.items()}
            for method, cells in self.results.items()
        }

    @cached_property
    def summaries(self) -> dict[tuple[str, str, MetricName], Summary]:
        """The summary of each method, group and metric."""
        found = summarize(self.table, self.evaluations)
        return {(one.method, one.group, one.metric): one for one in found}

    @property
    def methods(self) -> list[str]:
        """The methods with a finished cell, in the table's order."""
        return [m.name for m in self.table.methods if self.results.get(m.name)]

    @property
    def groups(self) -> list[str]:
        """The scenarios and "overall"."""
        return list(self._any.groups)

    @property
    def constants(self) -> dict[str, float | None]:
        """The logloss of answering with a group's click rate."""
        return {name: group.constant_logloss for name, group in self._any.groups.items()}

    def weights(self, method: str) -> int:
        """A method's parameters without the embedding table."""
        return next(iter(self.results[method].values())).weights

    def base(self, method: str) -> str | None:
        """Return the method that another is tested against."""
        found = self.table.method(method)
        return found.base if found else None

    @property
    def _any(self) -> Evaluation:
        return next(one for seeds in self.evaluations.values() for one in seeds.values())


def terminal_grid(comparison: Comparison, metric: MetricName) -> Grid:
    """One metric: a line a method, a column a group."""
    head, *lines = grid(comparison, metric)
    short = [[text.replace(" ± 0.", " ±.") for text in line] for line in lines]
    return Grid(f"{comparison.table.title}: {TITLES[metric]}", head, short, fixed=3)


def grid(comparison: Comparison, metric: MetricName) -> list[list[str]]:
    """One metric as text: the header, a line a method, and what the paper prints beneath its own.

    Logloss ends with the constant predictor.
    """
    lines = [["method", "seeds", "weights", *comparison.groups]]
    for method in comparison.methods:
        cells = [comparison.summaries[method, group, metric] for group in comparison.groups]
        seeds = str(len(comparison.results[method]))
        texts = [cell_text(cell) for cell in cells]
        lines.append([method, seeds, f"{comparison.weights(method):,}", *texts])
        if (paper := printed(comparison.prepared.schema, method, metric)) is not None:
            lines.append(["  (the paper)", "", "", *(f"{value:.4f}" for value in paper), ""])
    if metric == "logloss":
        constants = (number_text(value) for value in comparison.constants.values())
        lines.append(["constant (click rate)", "", "0", *constants])
    return lines


def interval_grid(comparison: Comparison) -> list[list[str]]:
    """The bootstrap intervals of AUC: the header, and a line a method."""
    return [
        ["method", *comparison.groups],
        *(
            [
                method,
                *(
                    interval_text(comparison.summaries[method, group, "auc"].interval)
                    for group in comparison.groups
                ),
            ]
            for method in comparison.methods
        ),
    ]


def cell_text(summary: Summary) -> str:
    """Mean, spread and verdict, such as "0.7552 ± 0.0011 ▲"."""
    if summary.mean is None:
        return "-"
    spread = "" if summary.std is None else f" ± {summary.std:.4f}"
    return f"{summary.mean:.4f}{spread}{MARKS[summary.verdict]}"


def markdown(comparison: Comparison) -> str:
    """The whole report as Markdown."""
    parts = [f"# {for_markdown(comparison.table.title)}", "", LEGEND]
    if comparison.command:
        parts += ["", markdown_code(comparison.command)]
    for title, lines in sections(comparison).items():
        parts += ["", f"## {title}", "", *markdown_table(lines[0], lines[1:])]
    for title, notes in remarks(comparison).items():
        parts += ["", f"## {title}", "", *(f"- {for_markdown(note)}" for note in notes)]
    return "\n".join(parts) + "\n"


def sections(comparison: Comparison) -> dict[str, list[list[str]]]:
    """All tables of a report by their titles."""
    return {
        **{TITLES[metric]: grid(comparison, metric) for metric in METRICS},
        INTERVALS: interval_grid(comparison),
    }


def remarks(comparison: Comparison) -> dict[str, list[str]]:
    """Return remarks: the tests, what was left out, and the worth of the paper's numbers."""
    bases = [
        f"{method} against {comparison.base(method)}"
        for method in comparison.methods
        if comparison.base(method)
    ]
    schema = comparison.prepared.schema
    own_data = any(printed(schema, method, "auc") for method in comparison.methods)
    found = {
        "Tested": bases,
        "Notes": comparison.notes,
        "About the paper's numbers": list(CAVEATS) if own_data else [],
    }
    return {title: notes for title, notes in found.items() if notes}


def write_csv(path: Path, comparison: Comparison) -> None:
    """One line a method, group and metric, with all digits; the test's columns beside it, and at
    the end the figure of each seed, as in "0:0.7 1:0.8"."""
    fields = (
        "table,method,base,group,metric,seeds,mean,std,interval_low,interval_high,difference,"
        "p,p_holm,paper,constant_logloss,weights,seconds_per_seed,by_seed"
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        write = csv_writer(file)
        write(fields.split(","))
        for method in comparison.methods:
            for group in comparison.groups:
                for metric in METRICS:
                    write(_csv_row(comparison, method, group, metric))


def _csv_row(
    comparison: Comparison, method: str, group: str, metric: MetricName
) -> list[str | int | float | None]:
    one = comparison.summaries[method, group, metric]
    cells = comparison.results[method].values()
    paper = printed(comparison.prepared.schema, method, metric)
    index = comparison.groups.index(group)
    return [
        comparison.table.name,
        method,
        one.base,
        group,
        metric,
        one.seeds,
        one.mean,
        one.std,
        *(one.interval or (None, None)),
        one.difference,
        one.p,
        one.p_holm,
        paper[index] if paper is not None and index < len(paper) else None,
        comparison.constants[group] if metric == "logloss" else None,
        comparison.weights(method),
        round(sum(cell.seconds for cell in cells) / len(cells), 1),
        " ".join(f"{seed}:{value!r}" for seed, value in one.by_seed.items()),
    ]
