"""The table says what was measured, and a dash where nothing could be."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from d3jax.console.report import evaluation_table, trust_table
from d3jax.training.metrics import Evaluation, Metrics

HOME = Metrics(12345, 0.12344, 0.71236, 0.31111, 0.41)
SLOT = Metrics(7, 0.0, None, 0.25, 0.0)
EMPTY = Metrics(0, None, None, None, None)
EVALUATION = Evaluation(
    overall=Metrics(12352, 0.25, 0.7, 0.3, 0.5),
    scenarios={"home": HOME, "slot": SLOT, "detail": EMPTY},
)
TRUTH = Evaluation(
    overall=Metrics(12352, 0.25, 0.9, 0.2, 0.5),
    scenarios={
        "detail": EMPTY,
        "slot": SLOT,
        "home": Metrics(12345, 0.12344, 0.83331, 0.2, 0.41),
    },
)


def shown(table: Table) -> tuple[str, list[list[str]]]:
    """The title, and the cells of the header and of each line, as they are printed."""
    screen = io.StringIO()
    Console(file=screen, width=200).print(table)
    title, *lines = screen.getvalue().splitlines()
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in lines]
    return title.strip(), [[cell.strip() for cell in row] for row in rows if row]


def test_one_line_a_scenario_in_their_order_and_the_overall_one_last() -> None:
    title, rows = shown(evaluation_table("run: test rows", EVALUATION))
    assert title == "run: test rows"
    assert rows == [
        ["scenario", "rows", "click rate", "AUC", "logloss", "constant's logloss"],
        ["home", "12,345", "0.1234", "0.7124", "0.3111", "0.4100"],
        ["slot", "7", "0.0000", "-", "0.2500", "0.0000"],
        ["detail", "0", "-", "-", "-", "-"],
        ["overall", "12,352", "0.2500", "0.7000", "0.3000", "0.5000"],
    ]


def test_the_planted_truths_auc_stands_beside_each_scenario_by_name() -> None:
    _, rows = shown(evaluation_table("run", EVALUATION, TRUTH))
    assert [(row[0], row[3], row[-1]) for row in rows] == [
        ("scenario", "AUC", "best possible AUC"),
        ("home", "0.7124", "0.8333"),
        ("slot", "-", "-"),
        ("detail", "-", "-"),
        ("overall", "0.7000", "0.9000"),
    ]


def test_what_is_sure_has_a_table_of_its_own() -> None:
    extras = {"gauc": 0.61116, "pcoc": 1.0349, "ece": 0.0208, "auc_interval": (0.7, 0.72336)}
    evaluation = Evaluation(replace(HOME, **extras), {"home": HOME})
    title, rows = shown(trust_table(evaluation))
    assert title == "95 % interval of AUC, AUC by user, calibration"
    assert rows == [
        ["scenario", "interval", "GAUC", "PCOC", "ECE"],
        ["home", "-", "-", "-", "-"],
        ["overall", "0.7000-0.7234", "0.6112", "1.0349", "0.0208"],
    ]
