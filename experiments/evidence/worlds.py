"""The gain of a domain's own terms, over made-up worlds that differ in all but their rules.

python -m experiments.evidence.worlds --out worlds
python -m experiments.evidence.worlds --domain device --out devices

In each world a plain MLP, the same with a residual and with crosses, and D3 without and with
crosses are trained once. Where the domains are not the scenarios, the models that divide rows are
trained with the domains that the training rows speak for, too. Differences of two methods are
tested paired over worlds, so that their spread is that of worlds, rows and first weights together.
The same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from d3jax.config import Config
from d3jax.console.safe_text import csv_writer, markdown_code
from d3jax.console.terminal import Console
from d3jax.data.synthetic import SyntheticConfig
from d3jax.evaluate import best_possible
from d3jax.pictures.charts import Spread, method_dots, save
from d3jax.presets import PRESETS
from experiments.compare.compare import Plan
from experiments.compare.comparison import Comparison
from experiments.compare.markdown import markdown_table
from experiments.compare.statistics import paired_p
from experiments.compare.tables import FOUND, SCENARIOS, Table, terms
from experiments.evidence.planted import compare_on
from experiments.evidence.recompute import spread_text


@dataclass(frozen=True)
class Study:
    """The worlds, and where they are kept."""

    worlds: tuple[int, ...] = (201, 202, 203, 204, 205)
    """The seeds of the worlds."""
    rows: int = 400_000
    domain: tuple[str, ...] = ()
    """The fields whose values are the domains; none: the scenarios."""
    out: Path = Path("worlds")
    """The folder of data, runs and table."""
    settings: tyro.conf.Suppress[Config] = field(default_factory=lambda: PRESETS["synthetic"])


class Outcome(NamedTuple):
    """A method's AUC and logloss in a world, in one group of rows, and the best possible AUC."""

    world: int
    method: str
    group: str
    auc: float
    logloss: float
    constant_logloss: float
    best: float


def methods(domain: Sequence[str]) -> Table:
    """The MLP without and with each of the terms, and D3 without and with crosses; where the
    domains are not the scenarios, also with the domains that are found."""
    by_name = {method.name: method for method in terms().methods}
    own = [by_name[name] for name in ("MLP", "MLP + residual", "MLP + crosses")]
    d3 = by_name["Shared-Bottom + D3"]
    crosses = (("model.wide", "crosses"),)
    with_crosses = replace(d3, name=f"{d3.name} + crosses", base=d3.name, settings=crosses)
    told = [
        replace(method, settings=(*method.settings, SCENARIOS))
        for method in (*own, d3, with_crosses)
    ]
    found = [
        replace(
            method,
            name=f"{method.name}, domains found",
            base="MLP + residual",
            settings=(*method.settings, FOUND),
        )
        for method in (*own[1:], with_crosses, by_name["Adaptive D2"])
        if domain
    ]
    return Table("worlds", "A domain's own terms", (*told, *found))


def outcomes(world: int, comparison: Comparison) -> list[Outcome]:
    """Return the outcome of every method in every group of rows."""
    best = best_possible(comparison.prepared, "test")
    assert best is not None
    found = []
    for method in comparison.methods:
        [cell] = comparison.results[method].values()
        for group, metrics in cell.evaluation.groups.items():
            loglosses = (metrics.logloss, metrics.constant_logloss)
            numbers = (metrics.auc, *loglosses, best.groups[group].auc)
            found.append(Outcome(world, method, group, *(float(n or np.nan) for n in numbers)))
    return found


def by_group(found: Sequence[Outcome]) -> tuple[list[str], dict[tuple[str, str], np.ndarray]]:
    """Return the groups of rows, and of each method and group the AUC in each world, in order."""
    by: dict[tuple[str, str], list[float]] = {}
    for one in sorted(found, key=lambda one: one.world):
        by.setdefault((one.method, one.group), []).append(one.auc)
    groups = list(dict.fromkeys(one.group for one in found))
    return groups, {key: np.array(aucs) for key, aucs in by.items()}


def markdown(found: Sequence[Outcome], table: Table, command: str) -> str:
    """Mean and spread of AUC over worlds, and each method's difference from its base."""
    groups, by = by_group(found)
    lines = []
    for method in table.methods:
        line = [method.name]
        for group in groups:
            ours = by[method.name, group]
            text = spread_text(ours)
            if method.base is not None:
                base = by[method.base, group]
                p = paired_p(ours.tolist(), base.tolist())
                text += f" ({(ours - base).mean():+.4f}" + (f", p {p:.2g})" if p else ")")
            line.append(text)
        lines.append(line)
    best = {(one.world, one.group): one.best for one in found}
    possible = [
        f"{np.mean([auc for (_, group), auc in best.items() if group == name]):.4f}"
        for name in groups
    ]
    lines.append(["best possible", *possible])
    parts = [
        "# A domain's own terms, over worlds",
        "",
        markdown_code(command),
        "",
        "AUC on test rows, mean ± standard deviation over worlds; in brackets the difference from "
        "the method without, and the p-value of a paired t-test over worlds, uncorrected.",
        "",
        *markdown_table(["method", *groups], lines, 1),
    ]
    return "\n".join(parts) + "\n"


def gains(found: Sequence[Outcome], table: Table) -> Figure:
    """A panel a group: how much AUC each method has more than the first, over worlds."""
    groups, by = by_group(found)
    names = [method.name for method in table.methods]
    gain = np.array([[by[name, group] - by[names[0], group] for group in groups] for name in names])
    spread = Spread(gain.mean(-1), gain.std(-1, ddof=1 if gain.shape[-1] > 1 else 0))
    return method_dots(names, groups, spread, f"AUC more than {names[0]}", "worlds")


def write_table(path: Path, found: Sequence[Outcome]) -> None:
    """One line an outcome, with all digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        write_row = csv_writer(file)
        write_row(Outcome._fields)
        for one in found:
            write_row(one)


def main(study: Study) -> None:
    """Makes the worlds, trains what isn't trained yet, and writes worlds.md, .csv and a picture."""
    console = Console(stderr=True)
    table, found = methods(study.domain), list[Outcome]()
    for world in study.worlds:
        console.rule(f"world {world}")
        plan = Plan(table, study.settings, 1, study.out / str(world))
        data = SyntheticConfig(study.rows, seed=world, domain=study.domain)
        found += outcomes(world, compare_on(data, plan, console))
    write_table(study.out / "worlds.csv", found)
    save(gains(found, table), study.out / "worlds")
    worlds = " ".join(map(str, study.worlds))
    command = f"python -m experiments.evidence.worlds --worlds {worlds} --rows {study.rows}"
    if study.domain:
        command += f" --domain {' '.join(study.domain)}"
    (study.out / "worlds.md").write_text(markdown(found, table, command), encoding="utf-8")
    console.print(f"worlds.md and worlds.csv are in {study.out}")


if __name__ == "__main__":
    main(tyro.cli(Study))
