"""Evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from d3jax.checks import OVERALL
from d3jax.console.terminal import Console, Grid, styled
from d3jax.training.metrics import Evaluation, Metrics
from d3jax.unknown import Unknown


def evaluation_table(title: str, evaluation: Evaluation, best: Evaluation | None = None) -> Grid:
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


def trust_table(evaluation: Evaluation) -> Grid:
    """Return a table of the AUC's intervals, the ranking within users and the calibration."""
    return _table(
        "95 % interval of AUC, AUC by user, calibration",
        ["interval", "GAUC", "PCOC", "ECE"],
        {name: _trust(group) for name, group in evaluation.groups.items()},
    )


def tell_unknown(unknown: Unknown, console: Console) -> None:
    """Says what of the rows training had not seen, and warns where that is much more than there."""
    console.print(unknown.report())
    for warning in unknown.warnings().values():
        console.print(styled("warning:", "yellow"), warning)


def split_grid(
    title: str,
    scenarios: Sequence[str],
    splits: Mapping[str, tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]],
    caption: str | None = None,
) -> Grid:
    """Rows and click rate of each scenario, and of all, in the splits' (rows, clicks)."""
    head = ("scenario", *(f"{split} {what}" for split in splits for what in ("rows", "CTR")))
    lines = [(name, *_sizes(splits, slice(n, n + 1))) for n, name in enumerate(scenarios)]
    lines.append((OVERALL, *_sizes(splits, slice(None))))
    return Grid(title, head, lines, caption=caption, apart=[len(scenarios)])


def _sizes(splits: Mapping[str, tuple[np.ndarray, np.ndarray]], scenarios: slice) -> Iterator[str]:
    for rows, clicks in splits.values():
        count = int(rows[scenarios].sum())
        yield f"{count:,}"
        yield f"{int(clicks[scenarios].sum()) / count:.4f}" if count else "-"


def interval_text(interval: tuple[float, float] | None) -> str:
    """Both ends, or a dash."""
    return "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}"


def number_text(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def _trust(group: Metrics) -> list[str]:
    values = (group.gauc, group.pcoc, group.ece)
    return [interval_text(group.auc_interval), *map(number_text, values)]


def _table(title: str, columns: list[str], lines: dict[str, list[str]]) -> Grid:
    """A column for the group's name and those given; all rows together stand apart."""
    apart = [number for number, name in enumerate(lines) if name == OVERALL]
    rows = [[name, *line] for name, line in lines.items()]
    return Grid(title, ["scenario", *columns], rows, apart=apart)
