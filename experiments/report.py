"""Evaluations as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from d3jax.training.metrics import Evaluation, Metrics


def evaluation_table(title: str, evaluation: Evaluation, best: Evaluation | None = None) -> Table:
    """One line a scenario and one overall; `best` adds the AUC of the planted truth."""
    table = Table(title=title, title_justify="left")
    table.add_column("scenario")
    columns = ["rows", "click rate", "AUC", "logloss", "constant's logloss"]
    for column in columns + (["best possible AUC"] if best else []):
        table.add_column(column, justify="right")
    for name, metrics in evaluation.scenarios.items():
        table.add_row(name, *_cells(metrics, best.scenarios[name] if best else None))
    table.add_section()
    table.add_row("overall", *_cells(evaluation.overall, best.overall if best else None))
    return table


def _cells(metrics: Metrics, best: Metrics | None) -> list[str]:
    cells = [
        f"{metrics.rows:,}",
        _number(metrics.click_rate),
        _number(metrics.auc),
        _number(metrics.logloss),
        _number(metrics.constant_logloss),
    ]
    return cells + ([_number(best.auc)] if best else [])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
