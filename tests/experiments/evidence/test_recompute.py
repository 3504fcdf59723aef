"""The figures that are told are those of the committed files, to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.compare.markdown import Strong, markdown_table
from experiments.evidence.recompute import (
    RESULTS,
    by_method,
    gains,
    p_text,
    read_comparison,
    read_worlds,
    summary,
    text_against,
)

ROOT = RESULTS.parents[1]


def cells(text: str) -> list[list[str]]:
    """The lines of all tables of a Markdown text, cell by cell."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def told(lines: list[list[str]]) -> list[list[str]]:
    """What Markdown makes of a table's lines."""
    return cells("\n".join(markdown_table(lines[0], lines[1:])))


def test_the_front_page_tells_the_figures_of_the_files() -> None:
    front = cells((ROOT / "README.md").read_text(encoding="utf-8"))
    for line in told(summary())[2:]:
        assert line in front


def test_the_results_tell_the_figures_of_the_files() -> None:
    results = cells((RESULTS / "README.md").read_text(encoding="utf-8"))
    for line in told(by_method())[2:]:
        assert line in results


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.00312, ".0031"),
        (0.07, ".07"),
        (4.1e-5, "4.1e-5"),
        (0.8, ".8"),
        (2e-11, "2e-11"),
        (1, "1"),
    ],
)
def test_a_p_value_has_two_digits(p: float, text: str) -> None:
    assert p_text(p) == text


def test_only_what_is_significantly_better_stands_out() -> None:
    base = [0.5, 0.51, 0.49]
    up, down = np.add(base, [0.1, 0.11, 0.1]), np.subtract(base, [0.1, 0.11, 0.1])
    all_figures = [[*up], [*down], [0.5, 0.52, 0.49]]
    texts = [text_against(each, base) for each in all_figures]
    for text, figures in zip(texts, all_figures, strict=True):
        p = ttest_rel(figures, base).pvalue
        assert text == f"{np.mean(figures):.4f} ± {np.std(figures, ddof=1):.4f} (p {p_text(p)})"
    assert [isinstance(text, Strong) for text in texts] == [True, False, False]
    assert text_against(base[:2], base[:2]) == "0.5050 ± 0.0071"


def test_figures_come_by_seed_and_undefined_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "method,group,metric,rows,by_seed\n"
        "MLP,home,auc,90,1:0.6 0:0.5\n"
        "MLP,home,logloss,90,0:0.1\n"
        "MLP,slot,auc,3,\n"
    )
    figures = read_comparison(path)
    assert figures.of("MLP", "home") == [0.5, 0.6]
    assert dict(figures.rows) == {"home": 90}
    assert ("MLP", "slot") not in figures.auc


def test_worlds_are_as_seeds(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "world,method,group,auc,best\n"
        "7,MLP,overall,0.7,0.9\n6,MLP,overall,0.6,0.8\n6,MLP,home,0.5,0.1\n"
    )
    figures, possible = read_worlds(path)
    assert figures.of("MLP") == [0.6, 0.7]
    assert possible == pytest.approx(0.85)


def test_the_picture_has_a_point_for_each_scenario_of_enough_rows() -> None:
    axes = gains().axes[0]
    points = [np.asarray(line[0].get_xdata()) for line in axes.containers]
    assert len(points[0]) == 3
    assert all(xs.min() >= 100 for xs in points)
