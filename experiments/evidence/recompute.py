"""The committed comparisons of the default, told anew from the figures of every seed.

python -m experiments.evidence.recompute

Reads `experiments/results/default` and `experiments/results/terms`, prints the tables that README
and the results hold, and draws what the default gains by the size of a scenario.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from d3jax.checks import OVERALL
from d3jax.console.safe_text import csv_lines
from d3jax.pictures.charts import COLOURS, MARKERS, save
from experiments.compare.markdown import Strong, markdown_table
from experiments.compare.statistics import LEVEL, paired_p
from experiments.compare.tables import MLP, default

RESULTS = Path(__file__).parents[1] / "results"

DATA = {
    "ml": "MovieLens-1M, 100,000 ratings, random",
    "ml-100k": "MovieLens-100K, random",
    "ep": "Epinions, 27 categories, random",
    "eb": "EB-NeRD demo, 3 devices, time",
}
"""The comparisons `default/NAME.csv`, and what they are of."""
RIVALS = ("Shared-Bottom", "MMoE", "PEPNet")
DEFAULT = "the default"
WITH_TERMS = "MLP with terms"
WORLDS = {
    "worlds": ("made up, the scenario decides", ""),
    "devices": ("made up, the device decides", ", domains found"),
}
"""The studies `terms/NAME.csv`, what they are of, and what methods are called there that have found
domains."""
FEWEST = 100
"""Scenarios of fewer test rows are left out of the picture: their AUC is mostly chance."""


class Figures(NamedTuple):
    """The AUC of each method and group by seed, and the test rows of each group."""

    auc: Mapping[tuple[str, str], Mapping[int, float]]
    rows: Mapping[str, int]

    def of(self, method: str, group: str = OVERALL) -> list[float]:
        """Return a method's figures in the order of the seeds."""
        by_seed = self.auc[method, group]
        return [by_seed[seed] for seed in sorted(by_seed)]


def read_comparison(path: Path) -> Figures:
    """Return the figures that a comparison's CSV holds."""
    auc, rows = {}, {}
    for line in csv_lines(path):
        if line["metric"] == "auc" and line["by_seed"]:
            pairs = (each.split(":") for each in line["by_seed"].split())
            auc[line["method"], line["group"]] = {int(s): float(v) for s, v in pairs}
            rows[line["group"]] = int(line["rows"])
    return Figures(auc, rows)


def read_worlds(path: Path) -> tuple[Figures, float]:
    """Return the figures of a study of worlds, with worlds for seeds, and the mean of what was
    possible."""
    auc: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    best = {}
    for line in csv_lines(path):
        auc[line["method"], line["group"]][int(line["world"])] = float(line["auc"])
        if line["group"] == OVERALL:
            best[line["world"]] = float(line["best"])
    return Figures(auc, {}), float(np.mean(list(best.values())))


def spread_text(values: Sequence[float] | np.ndarray) -> str:
    """Return mean and standard deviation, such as "0.7567 ± 0.0005"."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def p_text(p: float) -> str:
    """Return a p-value in two digits, such as ".003" or "4.1e-5"."""
    return f"{p:.2g}".removeprefix("0").replace("e-0", "e-")


def text_against(ours: Sequence[float], base: Sequence[float]) -> str:
    """Return mean, spread and p against the base, which stand out where that is worse."""
    p = paired_p(ours, base)
    if p is None:
        return spread_text(ours)
    text = f"{spread_text(ours)} (p {p_text(p)})"
    return Strong(text) if p < LEVEL and np.mean(ours) > np.mean(base) else text


def summary() -> list[list[str]]:
    """Return README's table: the plain network, the best of the rivals, the plain network with the
    default's terms, and the default."""
    lines = [["data, split", MLP.name, f"best of {', '.join(RIVALS)}", WITH_TERMS, DEFAULT]]
    for name, title in DATA.items():
        figures = read_comparison(RESULTS / "default" / f"{name}.csv")
        best = max(RIVALS, key=lambda rival: np.mean(figures.of(rival)))
        rival = f"{best} {spread_text(figures.of(best))}"
        lines.append([title, *_line(figures, rival, WITH_TERMS, DEFAULT)])
    for name, (title, found) in WORLDS.items():
        figures, possible = read_worlds(RESULTS / "terms" / f"{name}.csv")
        methods = f"MLP + crosses{found}", f"Shared-Bottom + D3 + crosses{found}"
        title = f"{title} (best possible: {possible:.4f})"
        lines.append([title, *_line(figures, "", *methods)])
    return lines


def _line(figures: Figures, rival: str, *methods: str) -> list[str]:
    mlp = figures.of(MLP.name)
    tested = (text_against(figures.of(method), mlp) for method in methods)
    return [spread_text(mlp), rival, *tested]


def by_method() -> list[list[str]]:
    """Return the table of the results: a line a method, a column a data set."""
    all_figures = [read_comparison(RESULTS / "default" / f"{name}.csv") for name in DATA]
    lines = [["", *DATA.values()]]
    for method in default().methods:
        cells = [
            spread_text(figures.of(method.name))
            if method.name == MLP.name
            else text_against(figures.of(method.name), figures.of(MLP.name))
            for figures in all_figures
        ]
        lines.append([method.name, *cells])
    return lines


def gains() -> Figure:
    """A point a scenario: what the default has more than the plain network, by its test rows."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    for number, (name, title) in enumerate(DATA.items()):
        figures = read_comparison(RESULTS / "default" / f"{name}.csv")
        groups = [g for g, rows in figures.rows.items() if g != OVERALL and rows >= FEWEST]
        gain = np.array(
            [np.subtract(figures.of(DEFAULT, g), figures.of(MLP.name, g)) for g in groups]
        )
        axes.errorbar(
            [figures.rows[group] for group in groups],
            gain.mean(1),
            gain.std(1, ddof=1) / np.sqrt(gain.shape[1]),
            fmt=MARKERS[number],
            color=COLOURS[number],
            markersize=4,
            linewidth=0.8,
            label=title,
        )
    axes.set_xscale("log")
    axes.set_xlabel("test rows of the scenario")
    axes.set_ylabel(f"AUC more than {MLP.name}, ± standard error")
    axes.legend(fontsize="small", frameon=False)
    return figure


def main() -> None:
    """Prints the tables, and draws the picture."""
    for head, *lines in (summary(), by_method()):
        print("\n".join(markdown_table(head, lines)), end="\n\n")
    save(gains(), RESULTS / "default" / "gains")


if __name__ == "__main__":
    main()
