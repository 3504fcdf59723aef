"""The study over worlds pairs a method with the one without, world by world."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from experiments.evidence.worlds import Outcome, Study, main, markdown, methods
from tests.experiments.evidence.test_planted import TINY


def test_differences_are_paired_over_worlds() -> None:
    table = methods()
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
