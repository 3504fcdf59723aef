"""A comparison as a table for the terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d3jax.console.report import interval_text, number_text
from d3jax.console.safe_text import csv_writer, for_markdown, markdown_code
from d3jax.console.terminal import Grid
from experiments.compare.comparison import Comparison
from experiments.compare.markdown import Strong, markdown_table
from experiments.compare.paper import CAVEATS, printed
from experiments.compare.statistics import FEWEST_PAIRS, METRICS, MetricName, Summary
from experiments.compare.verdict import verdict

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
    "three or more seeds (p < .05 after Holm's correction over the method's columns); the averages "
    "of scenarios are not tested. Bold: the best mean of a column."
)


def terminal_grid(comparison: Comparison, metric: MetricName) -> Grid:
    """One metric: a line a method, a column a group."""
    head, *lines = grid(comparison, metric)
    short = [[text.replace(" ± 0.", " ±.") for text in line] for line in lines]
    return Grid(f"{comparison.table.title}: {TITLES[metric]}", head, short, fixed=3)


def grid(comparison: Comparison, metric: MetricName) -> list[list[str]]:
    """One metric as text: the header, a line a method, and what the paper prints beneath its own.

    Logloss ends with the constant predictor.
    """
    table = {method: comparison.line(method, metric) for method in comparison.methods}
    best = [_best(column, metric) for column in zip(*table.values(), strict=True)]
    columns = [one.group for one in next(iter(table.values()))]
    lines = [["method", "seeds", "weights", *columns]]
    for method, cells in table.items():
        texts = [
            Strong(cell_text(cell)) if _distance(cell, metric) in winning else cell_text(cell)
            for cell, winning in zip(cells, best, strict=True)
        ]
        seeds = str(len(comparison.results[method]))
        lines.append([method, seeds, f"{comparison.weights(method):,}", *texts])
        if (paper := printed(comparison.prepared.schema, method, metric)) is not None:
            blanks = [""] * (len(columns) - len(paper))
            lines.append(["  (the paper)", "", "", *blanks, *(f"{value:.4f}" for value in paper)])
    if metric == "logloss":
        constants = (number_text(value) for value in comparison.constants.values())
        lines.append(["constant (click rate)", "", "0", *constants])
    return lines


def _best(column: Sequence[Summary], metric: MetricName) -> set[float]:
    """The smallest distance of a column's means; none where no method stands out."""
    found = {far for one in column if (far := _distance(one, metric)) is not None}
    return {min(found)} if len(found) > 1 else set()


def _distance(summary: Summary, metric: MetricName) -> float | None:
    """The distance of a mean from the ideal, in the digits that are shown."""
    ideal = {"auc": 1, "gauc": 1, "pcoc": 1, "logloss": 0, "ece": 0}[metric]
    return None if summary.mean is None else round(abs(round(summary.mean, 4) - ideal), 4)


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
    said = [for_markdown(sentence) for sentence in verdict(comparison)]
    parts = [f"# {for_markdown(comparison.table.title)}", "", " ".join(said), "", LEGEND]
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
        "Notes": [*_warnings(comparison), *comparison.notes],
        "About the paper's numbers": list(CAVEATS) if own_data else [],
    }
    return {title: notes for title, notes in found.items() if notes}


def _warnings(comparison: Comparison) -> list[str]:
    """Return what keeps the whole comparison from being believed."""
    most = max(len(cells) for cells in comparison.results.values())
    if most >= FEWEST_PAIRS:
        return []
    return [
        f"No method has more than {most} of the {FEWEST_PAIRS} runs that a test needs, so that "
        f"every difference may be chance; give --seeds {FEWEST_PAIRS} or more, which leaves "
        "finished cells as they are."
    ]


def write_csv(path: Path, comparison: Comparison) -> None:
    """One line a method, group and metric, with all digits; the test's columns beside it, and at
    the end the figure of each seed, as in "0:0.7 1:0.8"."""
    fields = (
        "table,method,base,group,rows,metric,seeds,mean,std,interval_low,interval_high,difference,"
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
    index = comparison.groups.index(group) - 1
    return [
        comparison.table.name,
        method,
        one.base,
        group,
        comparison.rows[group],
        metric,
        one.seeds,
        one.mean,
        one.std,
        *(one.interval or (None, None)),
        one.difference,
        one.p,
        one.p_holm,
        paper[index] if paper is not None and 0 <= index < len(paper) else None,
        comparison.constants[group] if metric == "logloss" else None,
        comparison.weights(method),
        round(sum(cell.seconds for cell in cells) / len(cells), 1),
        " ".join(f"{seed}:{value!r}" for seed, value in one.by_seed.items()),
    ]
