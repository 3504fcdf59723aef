"""Evaluations as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from d3jax.training.metrics import Evaluation, Metrics
from experiments.unknown import Unknown


def evaluation_table(title: str, evaluation: Evaluation, best: Evaluation | None = None) -> Table:
    """One line a scenario and one overall; `best` adds the AUC of the planted truth."""
    columns = ["rows", "click rate", "AUC", "logloss", "constant's logloss"]
    return _table(
        title,
        columns + (["best possible AUC"] if best else []),
        {
            name: [
                f"{group.rows:,}",
                number_text(group.click_rate),
                number_text(group.auc),
                number_text(group.logloss),
                number_text(group.constant_logloss),
                *([number_text(best.groups[name].auc)] if best else []),
            ]
            for name, group in evaluation.groups.items()
        },
    )


def trust_table(evaluation: Evaluation) -> Table:
    """How sure the AUC is, what users see, and whether probabilities can be taken at their word."""
    return _table(
        "95 % interval of AUC, AUC by user, calibration",
        ["interval", "GAUC", "PCOC", "ECE"],
        {name: _trust(group) for name, group in evaluation.groups.items()},
    )


def tell_unknown(unknown: Unknown, console: Console) -> None:
    """Says what of the rows training had not seen, and warns where that is much more than there."""
    console.print(escape(unknown.report()), soft_wrap=True)
    for warning in unknown.warnings():
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def interval_text(interval: tuple[float, float] | None) -> str:
    """Both ends, or a dash."""
    return "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}"


def number_text(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def _trust(group: Metrics) -> list[str]:
    values = (group.gauc, group.pcoc, group.ece)
    return [interval_text(group.auc_interval), *map(number_text, values)]


def _table(title: str, columns: list[str], lines: dict[str, list[str]]) -> Table:
    """A column for the group's name and those given; "overall" stands apart."""
    table = Table(title=title, title_justify="left")
    table.add_column("scenario")
    for column in columns:
        table.add_column(column, justify="right")
    for name, line in lines.items():
        if name == "overall":
            table.add_section()
        table.add_row(name, *line)
    return table
