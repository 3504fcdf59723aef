"""The measurements of a comparison, and what its reports say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from d3jax.checks import OVERALL
from d3jax.config import Config
from d3jax.data.prepared import Prepared
from d3jax.training.metrics import Evaluation, mean_and_std
from experiments.compare.cells import CellResult
from experiments.compare.statistics import MetricName, Repeat, Summary, summarize, summary_of
from experiments.compare.tables import Table

AMPLE = 1000
"""Test rows from which a scenario's AUC is worth a place in an average."""


@dataclass(frozen=True)
class Comparison:
    """The measurements of a comparison, and all that a report needs to say about it."""

    table: Table
    prepared: Prepared
    config: Config
    command: str
    results: Mapping[str, Mapping[Repeat, CellResult]]
    """Finished cells by method and seed."""
    notes: list[str] = field(default_factory=list)
    """Remarks on what was left out, what failed, and what to know of the rest."""

    @cached_property
    def evaluations(self) -> dict[str, dict[Repeat, Evaluation]]:
        """The finished cells' evaluations."""
        return {
            method: {seed: cell.evaluation for seed, cell in cells.items()}
            for method, cells in self.results.items()
        }

    @cached_property
    def summaries(self) -> dict[tuple[str, str, MetricName], Summary]:
        """The summary of each method, group and metric."""
        found = summarize(self.table, self.evaluations)
        return {(one.method, one.group, one.metric): one for one in found}

    @property
    def methods(self) -> list[str]:
        """The methods with a finished cell, in the table's order."""
        return [m.name for m in self.table.methods if self.results.get(m.name)]

    @property
    def groups(self) -> list[str]:
        """ "overall" and the scenarios."""
        return [OVERALL, *self._any.scenarios]

    @property
    def ample(self) -> list[str]:
        """The scenarios of at least `AMPLE` test rows; all of them where none has so many."""
        scenarios = self._any.scenarios
        return [name for name, one in scenarios.items() if one.rows >= AMPLE] or list(scenarios)

    @property
    def rows(self) -> dict[str, int]:
        """The test rows of each group."""
        return {name: self._any.groups[name].rows for name in self.groups}

    @cached_property
    def constants(self) -> dict[str, float | None]:
        """The logloss of answering with a group's click rate, mean over the first method's runs:
        splits differ in it."""
        runs = self.evaluations[self.methods[0]].values()
        found = {name: [one.groups[name].constant_logloss for one in runs] for name in self.groups}
        return {
            name: mean_and_std([value for value in values if value is not None])[0]
            for name, values in found.items()
        }

    def weights(self, method: str) -> int:
        """A method's parameters without the embedding table."""
        return next(iter(self.results[method].values())).weights

    def base(self, method: str) -> str | None:
        """Return the method that another is tested against."""
        found = self.table.method(method)
        return found.base if found else None

    def line(self, method: str, metric: MetricName) -> list[Summary]:
        """A method's summaries in the order of a table's columns: overall, for AUC the averages of
        scenarios, and each scenario."""
        overall, *scenarios = (self.summaries[method, group, metric] for group in self.groups)
        return [overall, *(self._averages(method) if metric == "auc" else ()), *scenarios]

    def _averages(self, method: str) -> list[Summary]:
        """The mean of the scenarios' AUC, each counting the same, and the worst of them."""
        is_ample = any(one.rows >= AMPLE for one in self._any.scenarios.values())
        which = f"(≥ {AMPLE:,} rows)" if is_ample else "(all)"
        seeds, ample = self.evaluations[method], self.ample
        macro = {seed: one.macro_auc(ample) for seed, one in seeds.items()}
        worst = {seed: one.worst_auc(ample) for seed, one in seeds.items()}
        return [
            summary_of(method, f"macro mean {which}", "auc", macro),
            summary_of(method, f"worst scenario {which}", "auc", worst),
        ]

    @property
    def _any(self) -> Evaluation:
        return next(one for seeds in self.evaluations.values() for one in seeds.values())
