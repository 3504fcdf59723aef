"""When D3 helps: made-up data whose scenarios differ more and more, or grow ever smaller.

python -m experiments.evidence.planted --out planted

For every data set a plain MLP, a backbone and that backbone with D3 are trained over several
seeds. Says how much AUC D3 adds, how far everybody stays below the best possible, and whether the
attention finds the fields that were planted. The same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy.stats import rankdata

from d3jax.checks import OVERALL
from d3jax.config import Config
from d3jax.console.safe_text import csv_writer, for_picture, markdown_code
from d3jax.console.terminal import Console
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.evaluate import best_possible, planted_fields
from d3jax.owned import claim
from d3jax.pictures.charts import COLOURS, MARKERS, save
from d3jax.presets import PRESETS
from experiments.compare.compare import Plan, compare
from experiments.compare.comparison import Comparison
from experiments.compare.figures import mean_attention
from experiments.compare.markdown import markdown_table
from experiments.compare.tables import MLP, TITLES, Table, find_table

PRECISION = (
    "Of the k fields that get most attention in a scenario, the share of planted ones, k being "
    "their number: by the attention itself, by what exceeds the other scenarios' mean, and by "
    "chance. The scenario's own field is left out."
)

MEASURED = ("sensitivities", "shares", "rows", "on", "seeds")
"""The study's settings that decide its numbers."""


@dataclass(frozen=True)
class Study:
    """The data sets, and the models that are trained on each."""

    sensitivities: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """The strengths of a scenario's own fields, the smallest scenario at its usual share."""
    shares: tuple[float, ...] = (0.002, 0.008, 0.05, 0.2)
    """The smallest scenario's share of the rows, the sensitivity at 1."""
    rows: int = 400_000
    on: str = "shared_bottom"
    """The backbone that gets D3."""
    seeds: int = 3
    out: Path = Path("planted")
    """The folder of data, runs, table and pictures."""
    settings: tyro.conf.Suppress[Config] = field(default_factory=lambda: PRESETS["synthetic"])


class Setting(NamedTuple):
    """One data set: what varies in it, that value, and all of it."""

    varied: str
    value: float
    data: SyntheticConfig


class Outcome(NamedTuple):
    """A method on a data set, in one group of rows: mean AUC and its standard deviation over
    seeds, the best possible AUC, and the precision of its attention; None where there is none."""

    setting: Setting
    method: str
    group: str
    auc: float
    std: float | None
    best: float
    precision: float | None
    lifted_precision: float | None
    chance: float | None


def settings(study: Study) -> Iterator[Setting]:
    """All data sets, by sensitivity and by the smallest scenario's share."""
    for value in study.sensitivities:
        yield Setting("sensitivity", value, SyntheticConfig(study.rows, sensitivity=value))
    for value in study.shares:
        yield Setting("smallest share", value, SyntheticConfig(study.rows, smallest_share=value))


def three_methods(backbone: str) -> Table:
    """The MLP, the backbone, and the backbone with D3, which is tested against it."""
    table = find_table(3, None, backbone, None)
    d3 = table.method(f"{TITLES[backbone]} + D3")
    own = table.method(TITLES[backbone])
    assert d3 is not None
    assert own is not None
    return Table("planted", "Planted domains", (MLP, own, d3))


def precision(
    scores: np.ndarray, planted: np.ndarray, considered: Sequence[int]
) -> tuple[float, float]:
    """Return the planted share of the k fields with the highest scores, k being the number of
    planted ones, and that of k fields drawn at random; a tie counts by its share."""
    score, hit = scores[list(considered)], planted[list(considered)]
    count = int(hit.sum())
    # A field above the k-th place counts fully, and those that tie for it share what is left.
    ranks = rankdata(-score, method="min"), rankdata(-score, method="max")
    places = np.clip((count + 1 - ranks[0]) / (ranks[1] - ranks[0] + 1), 0.0, 1.0)
    return float((places * hit).sum() / count), count / len(considered)


def outcomes(setting: Setting, comparison: Comparison) -> Iterator[Outcome]:
    """Return the outcome of every method in every group of rows."""
    prepared, schema = comparison.prepared, comparison.prepared.schema
    best = best_possible(prepared, "test")
    planted = planted_fields(prepared)
    assert best is not None
    assert planted is not None
    others = [n for n, field in enumerate(schema.fields) if field.name != schema.scenario_field]
    for method in comparison.methods:
        attention = mean_attention(comparison, method)
        for group, metrics in best.groups.items():
            summary = comparison.summaries[method, group, "auc"]
            if summary.mean is None or metrics.auc is None:
                continue
            found: tuple[float | None, float | None, float | None] = (None, None, None)
            row = schema.scenarios.index(group) if group in schema.scenarios else None
            if attention is not None and row is not None and planted[row, others].any():
                raw, chance = precision(attention[row], planted[row], others)
                lifted, _ = precision(attention[row] - attention.mean(0), planted[row], others)
                found = raw, lifted, chance
            yield Outcome(setting, method, group, summary.mean, summary.std, metrics.auc, *found)


def write_table(path: Path, found: Sequence[Outcome]) -> None:
    """One line an outcome, with all digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        write = csv_writer(file)
        write(("varied", "value", *Outcome._fields[1:]))
        for one in found:
            write((one.setting.varied, one.setting.value, *one[1:]))


def markdown(found: Sequence[Outcome], command: str) -> str:
    """The outcomes as tables: AUC by method and group, then the attention's precision."""
    methods = list(dict.fromkeys(one.method for one in found))
    groups = list(dict.fromkeys(one.group for one in found))
    by = {(one.setting, one.method, one.group): one for one in found}
    parts = ["# When D3 helps: planted domains", "", markdown_code(command), ""]
    parts += ["AUC on test rows, mean ± standard deviation over seeds.", ""]
    head = ["varied", "value", "method", *groups]
    lines = []
    for setting in dict.fromkeys(one.setting for one in found):
        for method in methods:
            cells = [by[setting, method, group] for group in groups]
            texts = [f"{c.auc:.4f}" + (f" ± {c.std:.4f}" if c.std else "") for c in cells]
            lines.append([setting.varied, f"{setting.value:g}", method, *texts])
        best = [f"{by[setting, methods[0], group].best:.4f}" for group in groups]
        lines.append([setting.varied, f"{setting.value:g}", "best possible", *best])
    parts += markdown_table(head, lines, 3)
    seeing = [one for one in found if one.precision is not None]
    if seeing:
        parts += ["", PRECISION, ""]
        head = ["varied", "value", "scenario", "precision", "above the other scenarios", "chance"]
        lines = [
            [
                one.setting.varied,
                f"{one.setting.value:g}",
                one.group,
                f"{one.precision:.2f}",
                f"{one.lifted_precision:.2f}",
                f"{one.chance:.2f}",
            ]
            for one in seeing
        ]
        parts += markdown_table(head, lines, 3)
    return "\n".join(parts) + "\n"


def draw(found: Sequence[Outcome], base: str, method: str) -> Figure:
    """Draws what `method` adds to `base`, for each group, against what varies in the data."""
    varied = list(dict.fromkeys(one.setting.varied for one in found))
    groups = list(dict.fromkeys(one.group for one in found))
    by = {(one.setting, one.method, one.group): one for one in found}
    labels = for_picture(groups)
    figure = Figure(figsize=(1.2 + 3.6 * len(varied), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(varied), squeeze=False)[0], varied, strict=True):
        chosen = list(dict.fromkeys(one.setting for one in found if one.setting.varied == name))
        places = np.arange(len(chosen))
        for index, group in enumerate(groups):
            gain = [by[s, method, group].auc - by[s, base, group].auc for s in chosen]
            spread = [
                float(np.hypot(by[s, method, group].std or 0.0, by[s, base, group].std or 0.0))
                for s in chosen
            ]
            axes.errorbar(
                places + 0.06 * (index - (len(groups) - 1) / 2),
                gain,
                yerr=spread,
                marker=MARKERS[index],
                color="black" if group == OVERALL else COLOURS[index],
                capsize=2,
                lw=1.3,
                label=labels[group],
            )
        axes.axhline(0.0, color="0.6", lw=1, ls="--")
        axes.set_xticks(places, [f"{setting.value:g}" for setting in chosen])
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("AUC gained")
    legend = figure.axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right center", fontsize=9)
    figure.suptitle(f"What {method} adds to {base}", fontsize=10)
    return figure


def compare_on(data: SyntheticConfig, plan: Plan, console: Console) -> Comparison:
    """Compares on made-up data, which are written beside the comparison where they aren't yet."""
    place = plan.out / "data"
    if not place.is_dir():
        claim(plan.out, "comparison")
        write(synthetic(data), place)
    return compare(place, plan, console)


def command(study: Study) -> str:
    """The command that runs the study, with the flags that say what is measured."""
    values = {name: getattr(study, name) for name in MEASURED}
    texts = [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}".rstrip()
        for name, value in values.items()
    ]
    return " ".join(["python -m experiments.evidence.planted", *texts])


def main(study: Study) -> None:
    """Makes the data, trains what isn't trained yet, and writes planted.md, .csv and pictures."""
    console = Console(stderr=True)
    table = three_methods(study.on)
    found: list[Outcome] = []
    for setting in settings(study):
        name = f"{setting.varied} {setting.value:g}".replace(" ", "-")
        console.rule(name)
        plan = Plan(table, study.settings, study.seeds, study.out / name)
        found += outcomes(setting, compare_on(setting.data, plan, console))
    write_table(study.out / "planted.csv", found)
    (study.out / "planted.md").write_text(markdown(found, command(study)), encoding="utf-8")
    own, d3 = (method.name for method in table.methods[1:])
    save(draw(found, own, d3), study.out / "planted-gain")
    save(draw(found, MLP.name, d3), study.out / "planted-gain-mlp")
    console.print(f"planted.md, planted.csv and the pictures are in {study.out}")


if __name__ == "__main__":
    main(tyro.cli(Study))
