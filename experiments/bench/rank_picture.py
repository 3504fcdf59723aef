"""AUC and speed against the rank of D3's generator, as a table and a picture.

for r in 0 16 32 64; do
    d3jax train ml --preset movielens --rank $r --seeds 5 --out runs/rank-$r
done
python -m experiments.bench.rank --ranks 0 16 32 64 --out rank.json
python -m experiments.bench.rank_picture rank.json runs/rank-0 runs/rank-16 runs/rank-32 \\
    runs/rank-64 --out experiments/results/rank
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.bench.timing import Summary
from experiments.compare.markdown import markdown_table


@dataclass(frozen=True)
class RankPicture:
    """What `experiments.bench.rank` and `d3jax train --seeds` have written."""

    speeds: tyro.conf.Positional[Path]
    """The JSON of the rank benchmark."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """A folder of seeds for each rank."""
    out: Path = Path("rank")
    """Where to write, without the endings .md and .png."""


class RankResult(NamedTuple):
    """What one rank came to: test AUC of each seed, and training rows a second by data size."""

    rank: int
    auc: list[float]
    rates: dict[str, float]


def read(picture: RankPicture) -> list[RankResult]:
    """The results by rank, smallest first and the paper's form (0) last."""
    speeds = json.loads(picture.speeds.read_text(encoding="utf-8"))["results"]
    results = [_read_run(folder, speeds) for folder in picture.runs]
    return sorted(results, key=lambda result: result.rank or np.inf)


def _read_run(folder: Path, speeds: dict[str, list[dict[str, Any]]]) -> RankResult:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((folder / next(iter(summary)) / "config.json").read_text(encoding="utf-8"))
    rank = config["config"]["d3"]["rank"]
    rates = {
        name: Summary(*line["train"]).median
        for name, lines in speeds.items()
        for line in lines
        if line["variant"] == f"rank {rank}"
    }
    return RankResult(rank, [each["overall"]["auc"] for each in summary.values()], rates)


def title(rank: int) -> str:
    """The rank as it is called in the table."""
    return str(rank) if rank else "the paper's"


def table(results: list[RankResult]) -> str:
    """A Markdown table."""
    sizes = list(results[0].rates)
    head = ["generator", f"AUC, {len(results[0].auc)} seeds", *(f"{s}, rows/s" for s in sizes)]
    lines = [
        [
            title(result.rank),
            f"{np.mean(result.auc):.4f} ± {np.std(result.auc, ddof=1):.4f}",
            *(f"{result.rates[size]:,.0f}" for size in sizes),
        ]
        for result in results
    ]
    return "\n".join(markdown_table(head, lines, 2)) + "\n"


def draw(results: list[RankResult], path: Path) -> None:
    """AUC with its spread above, rows a second below, on a log axis."""
    places = np.arange(len(results))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 5.5), sharex=True, layout="constrained")
    means = [np.mean(result.auc) for result in results]
    spreads = [np.std(result.auc, ddof=1) for result in results]
    top.errorbar(places, means, spreads, fmt="o", capsize=4, color="#0072b2")
    top.set_ylabel("test AUC, mean and std")
    for size, colour, mark in zip(results[0].rates, ("#d55e00", "#009e73"), "sD", strict=False):
        rates = [result.rates[size] for result in results]
        bottom.plot(places, rates, f"{mark}-", color=colour, label=f"{size} size")
    bottom.set_yscale("log")
    bottom.set_ylabel("training, rows/s")
    bottom.set_xlabel("rank of the generator")
    bottom.set_xticks(places, [title(result.rank) for result in results])
    bottom.legend(frameon=False)
    for axis in (top, bottom):
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(picture: RankPicture) -> None:
    """Writes both files."""
    results = read(picture)
    picture.out.with_suffix(".md").write_text(table(results), encoding="utf-8")
    draw(results, picture.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(RankPicture))
