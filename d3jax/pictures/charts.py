"""Charts of metrics, curves and distributions: legible in grey, and for the colour-blind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d3jax.checks import OVERALL
from d3jax.console.safe_text import for_picture, picture_families
from d3jax.disk import writing
from d3jax.errors import ConfigError
from d3jax.training.metrics import Calibration

rcParams["font.family"] = picture_families()

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
ACROSS = 7
"""Panels side by side that are still legible on a page."""


class Spread(NamedTuple):
    """Mean and standard deviation over seeds, NaN where there is none."""

    mean: Float[np.ndarray, "methods groups"]
    std: Float[np.ndarray, "methods groups"]


class Curve(NamedTuple):
    """Values by step."""

    steps: Sequence[int]
    values: Sequence[float]


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes a figure as `path` with .png and with .svg, the same bytes for the same figure."""
    png, svg = path.with_name(path.name + ".png"), path.with_name(path.name + ".svg")
    save_as(figure, png, dpi=150)
    with rc_context({"svg.hashsalt": path.name}):
        save_as(figure, svg, metadata={"Date": None})
    return png, svg


def save_as(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure in the format that the suffix names, and makes the folder it goes to.

    Raises `ConfigError` for a suffix that names none, `OutputError` for a place that can't be
    written.
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ConfigError(
            f"{path} has the suffix of no picture; name it .png, .svg or .pdf "
            f"(Matplotlib writes {', '.join(sorted(formats))})"
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, **options)


def method_dots(
    methods: Sequence[str], groups: Sequence[str], spread: Spread, metric: str, over: str = "seeds"
) -> Figure:
    """A panel a group, `ACROSS` in a row: each method's mean as a dot, its deviation as a bar.

    `over` says what the deviation is over.
    """
    across = min(len(groups), ACROSS)
    down = math.ceil(len(groups) / across)
    size = (1.9 + 2.1 * across, 0.3 + down * (1.0 + 0.3 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for spare in panels[len(groups) :]:
        spare.remove()
    titles, names = for_picture(groups, fold=18), for_picture(methods)
    places = np.arange(len(methods))
    for index, (axes, group) in enumerate(zip(panels, groups, strict=False)):
        mean, std = spread.mean[:, index], np.nan_to_num(spread.std[:, index])
        axes.errorbar(
            mean, places, xerr=std, fmt="o", color=COLOURS[0], capsize=3, markersize=5, lw=1.5
        )
        axes.axvline(mean[0], color="0.6", lw=1, ls="--", zorder=0)
        axes.set_title(titles[group], fontsize=10)
        axes.set_xlabel(metric)
        axes.xaxis.set_major_locator(_few_ticks())
        _quiet(axes, "x")
    panels[0].set_yticks(places, [names[method] for method in methods])
    panels[0].invert_yaxis()
    figure.suptitle(
        f"Mean and standard deviation over {over}; dashed: {names[methods[0]]}", fontsize=10
    )
    return figure


def start_ratio_lines(
    ratios: Sequence[float],
    groups: Sequence[str],
    spread: Spread,
    bar: tuple[str, Float[np.ndarray, " groups"]] | None,
) -> Figure:
    """AUC against the moment at which loss adaptation starts, a panel a group (Figure 3 of the
    D3 paper); `bar` names a method and gives its AUCs, drawn as a dashed line."""
    figure = Figure(figsize=(0.8 + 2.6 * len(groups), 3.1), layout="constrained")
    panels, titles = _row(figure, len(groups)), for_picture(groups, fold=22)
    for index, (axes, group) in enumerate(zip(panels, groups, strict=True)):
        mean, std = spread.mean[:, index], np.nan_to_num(spread.std[:, index])
        axes.errorbar(ratios, mean, yerr=std, fmt="o-", color=COLOURS[0], capsize=3, lw=1.5)
        if bar is not None:
            axes.axhline(
                bar[1][index], color=COLOURS[1], ls="--", lw=1.2, label=for_picture(bar[:1])[bar[0]]
            )
        axes.set_title(titles[group], fontsize=10)
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axes.yaxis.set_major_locator(_few_ticks())
        _quiet(axes, "y")
    panels[0].set_ylabel("AUC")
    figure.supxlabel("loss adaptation starts at this share of the steps (1: never)", fontsize=10)
    if bar is not None:
        legend = panels[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper right", fontsize=9)
    return figure


def learning_curves(
    training: Curve, logloss: Mapping[str, Curve], auc: Mapping[str, Curve], best: int | None
) -> Figure:
    """Training loss, and validation logloss and AUC by group; a dotted line at the best step."""
    labels = for_picture({**logloss, **auc})
    figure = Figure(figsize=(9.5, _beside(labels, 3.6)), layout="constrained")
    panels = _row(figure, 2)
    panels[0].plot(
        training.steps, training.values, color="0.6", lw=1, label="training loss, as weighed"
    )
    for axes, curves, name in zip(
        panels, (logloss, auc), ("logloss", "AUC on validation rows"), strict=True
    ):
        for index, (group, curve) in enumerate(curves.items()):
            axes.plot(
                curve.steps,
                curve.values,
                label=labels[group],
                markersize=4,
                **_style(index, group),
            )
        if best is not None:
            axes.axvline(best, color="0.4", ls=":", lw=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        _quiet(axes, "y")
    title = "" if best is None else f"dotted: best weights, step {best}"
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right center", title=title)
    return figure


def balance_curves(
    curves: Mapping[str, Curve], label: str, best: int | None, start: int | None
) -> Figure:
    """A mean by group over training; dotted at the best step, dashed where rows begin to be
    weighed, if that is within the picture."""
    labels = for_picture(curves)
    figure = Figure(figsize=(6.4, _beside(labels, 3.8)), layout="constrained")
    axes = figure.subplots()
    for index, (group, curve) in enumerate(curves.items()):
        axes.plot(
            curve.steps,
            curve.values,
            label=labels[group],
            markersize=4,
            **_style(index, group),
        )
    last = max(max(curve.steps) for curve in curves.values())
    notes = []
    if best is not None:
        axes.axvline(best, color="0.4", ls=":", lw=1.2)
        notes.append(f"dotted: best weights, step {best}")
    if start is not None and start <= last:
        axes.axvline(start, color="0.4", ls="--", lw=1.2)
        notes.append(f"dashed: rows are weighed, from step {start}")
    elif start is not None:
        notes.append(f"rows would be weighed from step {start}")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_title("\n".join(["validation rows", *notes]), fontsize=9)
    _quiet(axes, "y")
    figure.legend(loc="outside right center")
    return figure


def calibration_curves(bins: Mapping[str, Calibration], errors: Mapping[str, str]) -> Figure:
    """Click rate against prediction, a panel a group; `errors` are the panels' subtitles."""
    figure = Figure(figsize=(0.8 + 2.6 * len(bins), 3.3), layout="constrained")
    panels, titles = _row(figure, len(bins)), for_picture(bins, fold=22)
    for axes, (group, curve) in zip(panels, bins.items(), strict=True):
        low = min(curve.predicted.min(), curve.observed.min())
        high = max(curve.predicted.max(), curve.observed.max())
        margin = 0.06 * (high - low) or 0.01
        ends = low - margin, high + margin
        axes.plot(ends, ends, color="0.6", lw=1, ls="--")
        axes.plot(curve.predicted, curve.observed, "o-", color=COLOURS[0], markersize=4, lw=1.2)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.xaxis.set_major_locator(_few_ticks())
        axes.yaxis.set_major_locator(_few_ticks())
        axes.set_title(f"{titles[group]}\n{errors[group]}", fontsize=9)
        _quiet(axes, "both")
    panels[0].set_ylabel("click rate")
    figure.supxlabel("predicted probability (bins of equally many rows)", fontsize=10)
    return figure


def distributions(values: Mapping[str, np.ndarray], label: str, note: str = "") -> Figure:
    """A box a group: median, quartiles and the 5th to 95th percentile of a number per row."""
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(values)), layout="constrained")
    axes = figure.subplots()
    boxes = axes.boxplot(
        list(values.values()),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.6,
    )
    for index, (box, median) in enumerate(zip(boxes["boxes"], boxes["medians"], strict=True)):
        box.set(facecolor=COLOURS[index % len(COLOURS)], alpha=0.55)
        median.set(color="black", lw=1.6)
    axes.set_yticks(range(1, len(values) + 1), list(for_picture(values).values()))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if note:
        axes.set_title(note, fontsize=9)
    _quiet(axes, "x")
    return figure


def _beside(labels: Mapping[str, str], height: float) -> float:
    """A height in inches that leaves room for a legend."""
    return max(height, 0.8 + 0.23 * len(labels))


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _few_ticks():  # type: ignore[no-untyped-def]
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, min_n_ticks=2)


def _style(index: int, group: str) -> dict[str, Any]:
    """Colour, marker and line of a group's curve; all rows together are black."""
    if group == OVERALL:
        return {"color": "black", "marker": "x", "lw": 1.8}
    return {
        "color": COLOURS[index % (len(COLOURS) - 1)],
        "marker": MARKERS[index % len(MARKERS)],
        "ls": LINES[index % len(LINES)],
        "lw": 1.3,
    }


def _quiet(axes: Axes, grid: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=grid, color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
