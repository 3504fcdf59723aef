"""From the rounds of a benchmark to lines of a table, a JSON file and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d3jax.console.terminal import Table
from d3jax.parameters import count
from d3jax.parts import build_model
from experiments.bench.limits import Limits
from experiments.bench.timing import Summary, summarize
from experiments.bench.variants import TUNED, Variant
from experiments.bench.work import Work, score_work, share_of_limit, train_work
from experiments.bench.workload import Workload, make_schema

DISTURBED = 0.15
"""Cores that other processes may keep busy before a measurement counts as disturbed."""


@dataclass(frozen=True)
class Line:
    """One variant at one size: rows a second, and what else the rounds tell."""

    variant: str
    train: Summary
    score: Summary
    peak_megabytes: float
    compile_seconds: float
    """The seconds that the first training step takes longer than the others."""
    train_share: float
    score_share: float
    """The share that is the machine's least time for the arithmetic or the memory traffic."""
    latency: dict[str, tuple[float, float]]
    """Median and 99th percentile in ms, by number of rows."""
    others: float
    """Most cores that other processes kept busy in a round."""
    faults: float
    """Page faults of a training step, the median."""

    @property
    def disturbed(self) -> bool:
        """Return whether a third process took part in any round."""
        return self.others > DISTURBED


def work_of(variant: Variant, workload: Workload, rows: int) -> tuple[Work, Work]:
    """Return the least work of a training step and of a scoring step of a variant."""
    schema = make_schema(workload)
    network = count(build_model(schema, variant.config).declared.params.network)
    return (
        train_work(variant.config, schema, rows, network, variant.whole_table),
        score_work(variant.config, schema, rows, network),
    )


def make_line(
    variant: Variant,
    rounds: Sequence[Mapping[str, Any]],
    workload: Workload,
    rows: int,
    limits: Limits,
) -> Line:
    """The medians of what a variant's processes answered for steps of `rows` rows."""
    train, score = (
        summarize([answer[kind]["rows_per_second"] for answer in rounds])
        for kind in ("train", "score")
    )
    shares = [
        share_of_limit(work, rows / rate.median, limits.flops, limits.bandwidth)
        for work, rate in zip(work_of(variant, workload, rows), (train, score), strict=True)
    ]
    first = rounds[0]["train"]
    return Line(
        variant=variant.name,
        train=train,
        score=score,
        peak_megabytes=max(answer["peak_megabytes"] for answer in rounds),
        compile_seconds=max(0.0, first["first_seconds"] - rows / first["rows_per_second"]),
        train_share=shares[0],
        score_share=shares[1],
        latency={
            number: _latency([ms for answer in rounds for ms in answer["latency"][number]])
            for number in rounds[0]["latency"]
        },
        others=max(answer[kind]["others"] for answer in rounds for kind in ("train", "score")),
        faults=summarize([answer["train"]["faults"] for answer in rounds]).median,
    )


def _latency(milliseconds: Sequence[float]) -> tuple[float, float]:
    median, worst = np.percentile(milliseconds, (50, 99))
    return float(median), float(worst)


def results_table(title: str, lines: Sequence[Line]) -> Table:
    """A row a variant: medians and, as a share of them, the distance between the quartiles;
    ratios to the tuned torch; `*` where other processes were busy."""
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    columns = ["train rows/s", "×", "score rows/s", "×", "of limit", "peak MB", "compile s"]
    numbers = list(lines[0].latency) if lines else []
    for column in columns + [f"{number} row(s), ms" for number in numbers]:
        table.add_column(column, justify="right")
    tuned = next((line for line in lines if line.variant == TUNED), None)
    for line in lines:
        table.add_row(
            line.variant + ("*" if line.disturbed else ""),
            _spread(line.train),
            _ratio(line.train, tuned.train if tuned else None),
            _spread(line.score),
            _ratio(line.score, tuned.score if tuned else None),
            f"{line.train_share:.0%} / {line.score_share:.0%}",
            f"{line.peak_megabytes:,.0f}",
            f"{line.compile_seconds:.1f}",
            *(f"{median:.2f} ({worst:.2f})" for median, worst in line.latency.values()),
        )
    return table


def _spread(summary: Summary) -> str:
    return f"{summary.median:,.0f} ±{(summary.high - summary.low) / summary.median:.0%}"


def _ratio(ours: Summary, theirs: Summary | None) -> str:
    return "" if theirs is None else f"{ours.median / theirs.median:.2f}"


def draw(path: Path, lines: Mapping[str, Sequence[Line]], unit: str) -> None:
    """Rows a second in training and scoring, a panel for each size and model; beside each dot the
    ratio to the tuned torch, where it was measured."""
    filled = {title: group for title, group in lines.items() if group}
    ratios = [0.9 + 0.3 * len(group) for group in filled.values()]
    figure = Figure(figsize=(9, sum(ratios) + 0.3), dpi=150, layout="constrained")
    panels = figure.subplots(len(filled), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (title, group) in zip(panels, filled.items(), strict=True):
        tuned = next((line for line in group if line.variant == TUNED), None)
        for kind, color, marker in (("train", "#1f5a96", "o"), ("score", "#d55e00", "D")):
            of = attrgetter(kind)
            _draw_kind(axes, [of(line) for line in group], kind, color, marker)
            for place, line in enumerate(group):
                ratio = _ratio(of(line), of(tuned) if tuned else None)
                axes.annotate(
                    f"{ratio}×" if ratio else "",
                    (of(line).median, place),
                    (5, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=color,
                )
        axes.set_yticks(range(len(group)), [line.variant for line in group], fontsize=8)
        axes.set_ylim(len(group) - 0.5, -0.7)
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(axis="both", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=2)
    panels[-1].set_xlabel(f"{unit}; × is the ratio to “{TUNED}”")
    figure.savefig(path)


def _draw_kind(
    axes: Axes, summaries: Sequence[Summary], label: str, color: str, marker: str
) -> None:
    """Medians as markers, quartiles as bars."""
    medians = [summary.median for summary in summaries]
    spread = [
        [summary.median - summary.low for summary in summaries],
        [summary.high - summary.median for summary in summaries],
    ]
    axes.errorbar(
        medians, range(len(medians)), xerr=spread, fmt=marker, color=color, label=label, ms=5
    )
