"""The pictures of a comparison: methods side by side, and Figures 3 and 4 of the D3 paper."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from d3jax.evaluate import planted_fields
from d3jax.pictures.charts import Spread, method_dots, save, start_ratio_lines
from d3jax.pictures.figures import attention_heat_map
from experiments.compare.comparison import Comparison
from experiments.compare.report import TITLES
from experiments.compare.statistics import MetricName
from experiments.compare.tables import MLP, Method


def draw_comparison(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Draws what the comparison has; returns the SVG files by their captions."""
    name = comparison.table.name
    drawn: dict[str, Path] = {}
    metrics: tuple[MetricName, ...] = ("auc", "logloss")
    for metric in metrics:
        methods, groups = comparison.methods, comparison.groups
        figure = method_dots(methods, groups, spread(comparison, methods, metric), TITLES[metric])
        caption = f"{TITLES[metric]} by method and scenario"
        drawn[caption] = save(figure, folder / f"{name}-{metric}")[1]
    if name == "figure3" and len(_starts(comparison)) > 1:
        drawn["AUC against the start of loss adaptation"] = _draw_starts(comparison, folder)
    for method in _attentive(comparison):
        drawn[f"Attention of {method.name}, mean over seeds"] = _draw_attention(
            comparison, method, folder / f"{name}-attention-{method.slug}"
        )
    return drawn


def spread(comparison: Comparison, methods: list[str], metric: MetricName) -> Spread:
    """Mean and standard deviation of the methods in every group."""
    summaries = [
        [comparison.summaries[method, group, metric] for group in comparison.groups]
        for method in methods
    ]
    mean = np.array([[one.mean for one in row] for row in summaries], float)
    return Spread(mean, np.array([[one.std for one in row] for row in summaries], float))


def mean_attention(comparison: Comparison, method: str) -> np.ndarray | None:
    """[S N] attention averaged over the method's seeds; None for a model without."""
    seeds = [cell.attention for cell in comparison.results[method].values()]
    known = [attention for attention in seeds if attention is not None]
    if not known:
        return None
    with warnings.catch_warnings():
        # A scenario without rows has no mean; its line stays NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(known, axis=0)


def _starts(comparison: Comparison) -> list[Method]:
    methods = [comparison.table.method(name) for name in comparison.methods]
    return [m for m in methods if m is not None and m.start_ratio is not None]


def _draw_starts(comparison: Comparison, folder: Path) -> Path:
    methods = _starts(comparison)
    ratios = [method.start_ratio for method in methods if method.start_ratio is not None]
    values = spread(comparison, [method.name for method in methods], "auc")
    bar = None
    if MLP.name in comparison.methods:
        bar = MLP.name, spread(comparison, [MLP.name], "auc").mean[0]
    figure = start_ratio_lines(ratios, comparison.groups, values, bar)
    return save(figure, folder / "figure3-start-ratios")[1]


def _attentive(comparison: Comparison) -> list[Method]:
    """The methods whose attention is drawn: those with all of D3, which read raw embeddings."""
    methods = [comparison.table.method(name) for name in comparison.methods]
    return [
        method
        for method in methods
        if method is not None
        and method.head == "d3"
        and method.parts == "d3"
        and method.start_ratio is None
        and mean_attention(comparison, method.name) is not None
    ]


def _draw_attention(comparison: Comparison, method: Method, path: Path) -> Path:
    attention = mean_attention(comparison, method.name)
    assert attention is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = comparison.prepared.schema
    for suffix in (".png", ".svg"):
        attention_heat_map(
            path.with_name(path.name + suffix),
            attention,
            schema.scenarios,
            [field.name for field in schema.fields],
            planted_fields(comparison.prepared),
        )
    return path.with_name(path.name + ".svg")
