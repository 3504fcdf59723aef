"""The study over worlds pairs a method with the one without, world by world."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from d3jax.config import Config
from d3jax.domains import AUTO
from experiments.evidence.worlds import Outcome, Study, gains, main, markdown, methods
from tests.experiments.evidence.test_planted import TINY


def test_differences_are_paired_over_worlds() -> None:
    table = methods(())
    aucs = {"MLP": (0.6, 0.7, 0.65), "MLP + crosses": (0.62, 0.71, 0.68)}
    found = [
        Outcome(world, method.name, "slot", aucs.get(method.name, (0.5, 0.6, 0.5))[n], 0, 0, 0.75)
        for n, world in enumerate((1, 2, 3))
        for method in table.methods
    ]
    text = markdown(found, table, "the command")
    p = ttest_rel(aucs["MLP + crosses"], aucs["MLP"]).pvalue
    assert "| MLP | 0.6500 ± 0.0500 |" in text
    assert f"| MLP + crosses | 0.6700 ± 0.0458 (+0.0200, p {p:.2g}) |" in text
    assert "| Shared-Bottom + D3 + crosses | 0.5333 ± 0.0577 (+0.0000, p 1) |" in text
    assert "| best possible | 0.7500 |" in text


def test_the_gains_are_those_over_the_first_method_in_the_same_world() -> None:
    table = methods(("device",))
    found = [
        Outcome(world, method.name, "slot", 0.5 + 0.1 * n + 0.01 * k * (n + 1), 0, 0, 0.75)
        for n, world in enumerate((1, 2, 3))
        for k, method in enumerate(table.methods)
    ]
    [panel] = gains(found, table).axes
    assert [text.get_text() for text in panel.get_yticklabels()][:2] == ["MLP", "MLP + residual"]
    [dots] = panel.lines[:1]
    np.testing.assert_allclose(dots.get_xdata(), 0.02 * np.arange(len(table.methods)), atol=1e-12)


def test_found_domains_are_compared_with_the_residual_by_scenario() -> None:
    scenario, found = (methods(domain).methods for domain in ((), ("device",)))
    assert found[: len(scenario)] == scenario
    configs = [method.configure(Config(), 0).model for method in found]
    assert [model.domain for model in configs] == [()] * 5 + [AUTO] * 4
    assert {method.base for method in found[5:]} == {"MLP + residual"}


@pytest.mark.slow
def test_the_study_writes_a_table_and_goes_on(tmp_path: Path) -> None:
    study = Study(worlds=(1, 2, 3), rows=9_000, out=tmp_path, settings=TINY)
    main(study)
    rows = list(csv.DictReader((tmp_path / "worlds.csv").read_text().splitlines()))
    assert len(rows) == 3 * 5 * 4
    assert "| Shared-Bottom + D3 + crosses |" in (tmp_path / "worlds.md").read_text()
    before = (tmp_path / "worlds.csv").read_bytes()
    main(study)
    assert (tmp_path / "worlds.csv").read_bytes() == before
