"""Charts show the numbers they are given, with names on every axis."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from d3jax.console.safe_text import for_picture
from d3jax.errors import D3jaxError
from d3jax.pictures import charts
from d3jax.pictures.charts import (
    Curve,
    Spread,
    balance_curves,
    calibration_curves,
    distributions,
    learning_curves,
    method_dots,
    save,
    save_as,
    start_ratio_lines,
)
from d3jax.training.metrics import calibration
from tests.cases import cases
from tests.names import HOSTILE

SPREAD = Spread(np.array([[0.7, 0.8], [0.72, 0.79]]), np.array([[0.01, np.nan], [0.02, 0.03]]))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def ends(bars) -> np.ndarray:
    """The x (or y) of both ends of each error bar."""
    return np.array([segment for segment in bars.get_segments()])


def test_methods_have_a_dot_and_a_deviation_in_each_group() -> None:
    figure = method_dots(["MLP", "ADI"], ["home", "slot"], SPREAD, "AUC")
    assert titles(figure) == ["home", "slot"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["AUC", "AUC"]
    home, slot = figure.axes
    assert [text.get_text() for text in home.get_yticklabels()] == ["MLP", "ADI"]
    np.testing.assert_allclose(home.containers[0].lines[0].get_xdata(), [0.7, 0.72])
    bars = ends(home.containers[0].lines[2][0])
    np.testing.assert_allclose(bars[:, :, 0], [[0.69, 0.71], [0.70, 0.74]])
    # A single seed has no deviation, but a dot all the same.
    np.testing.assert_allclose(ends(slot.containers[0].lines[2][0])[0, :, 0], [0.8, 0.8])


def test_many_groups_stand_in_several_rows() -> None:
    groups = [f"s{n}" for n in range(9)]
    spread = Spread(np.full((2, 9), 0.7), np.full((2, 9), 0.01))
    figure = method_dots(["MLP", "ADI"], groups, spread, "AUC")
    figure.draw_without_rendering()
    assert titles(figure) == groups
    assert {round(axes.get_position().y0, 3) for axes in figure.axes[:7]} != {
        round(axes.get_position().y0, 3) for axes in figure.axes[7:]
    }
    labelled = [axes for axes in figure.axes if axes.yaxis.get_tick_params()["labelleft"]]
    assert labelled == [figure.axes[0], figure.axes[7]]


def test_figure_3_has_auc_against_the_start_and_the_bar() -> None:
    figure = start_ratio_lines([0, 1], ["home", "slot"], SPREAD, ("MLP", np.array([0.6, 0.5])))
    slot = figure.axes[1]
    np.testing.assert_allclose(slot.containers[0].lines[0].get_xydata(), [[0, 0.8], [1, 0.79]])
    dashed = next(line for line in slot.lines if line.get_label() == "MLP")
    np.testing.assert_allclose(dashed.get_ydata(), [0.5, 0.5])
    assert figure.axes[0].get_ylabel() == "AUC"
    assert start_ratio_lines([0, 1], ["home", "slot"], SPREAD, None).legends == []


def test_learning_curves_have_both_losses_and_the_best_step() -> None:
    curve = Curve([1, 2], [0.6, 0.5])
    figure = learning_curves(curve, {"home": curve}, {"home": Curve([1, 2], [0.7, 0.8])}, 2)
    loss, auc = figure.axes
    assert (loss.get_ylabel(), auc.get_ylabel()) == ("logloss", "AUC on validation rows")
    np.testing.assert_allclose(auc.lines[0].get_xydata(), [[1, 0.7], [2, 0.8]])
    assert [line.get_label() for line in loss.lines[:2]] == ["training loss, as weighed", "home"]
    assert list(loss.lines[2].get_xdata()) == [2, 2]


@pytest.mark.parametrize(("start", "lines"), [(3, 2), (30, 1), (None, 1)])
def test_balance_over_training_marks_best_and_start(start: int | None, lines: int) -> None:
    curves = {"home": Curve([2, 4], [0.4, 0.5]), "overall": Curve([2, 4], [0.3, 0.2])}
    figure = balance_curves(curves, "mean gate", 4, start)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.4, 0.5])
    assert [line.get_xdata()[0] for line in axes.lines[2:]] == [4, 3][:lines]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "mean gate")
    said = {3: "are weighed, from step 3", 30: "would be weighed from step 30", None: "step 4"}
    assert axes.get_title().endswith(said[start])


def test_calibration_has_a_panel_a_group() -> None:
    probability = np.linspace(0.1, 0.9, 50)
    bins = calibration(probability, (np.arange(50) % 3 == 0).astype(float))
    figure = calibration_curves({"home": bins}, {"home": "PCOC 1.0"})
    assert titles(figure) == ["home\nPCOC 1.0"]
    drawn = figure.axes[0].lines[1].get_xydata()
    np.testing.assert_allclose(drawn, np.stack([bins.predicted, bins.observed], axis=1))


def test_a_box_shows_median_and_quartiles() -> None:
    values = {"home": np.arange(101.0), "slot": np.arange(11.0)}
    figure = distributions(values, "loss weight", "test rows")
    axes = figure.axes[0]
    medians = [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 1.6]
    assert medians == [50.0, 5.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["home", "slot"]
    assert axes.get_xlabel() == "loss weight"


def test_a_picture_is_the_same_file_each_time(tmp_path: Path) -> None:
    files = [
        save(method_dots(["MLP", "ADI"], ["home", "slot"], SPREAD, "AUC"), tmp_path / folder / "x")
        for folder in ("a", "b")
    ]
    assert [path.name for path in files[0]] == ["x.png", "x.svg"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("count", [1, 7])
def test_colours_and_markers_suffice_for_many_groups(count: int) -> None:
    curves = {f"scenario {index}": Curve([1], [0.5]) for index in range(count)}
    figure = learning_curves(Curve([1], [0.5]), curves, curves, None)
    lines = figure.axes[1].lines
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(styles) == count


NUMBERS = {name: np.linspace(0.1, 0.9, 20) for name in HOSTILE}
CURVES = {name: Curve([1, 2], [0.5, 0.6]) for name in HOSTILE}
BINS = {name: calibration(values, values.round()) for name, values in NUMBERS.items()}
EVEN = np.full((len(HOSTILE), len(HOSTILE)), 0.5)


FIGURES: dict[str, Callable[[], Figure]] = {
    "many scenarios": lambda: method_dots(HOSTILE[:2], HOSTILE, Spread(EVEN[:2], EVEN[:2]), "AUC"),
    "many methods": lambda: method_dots(
        HOSTILE, HOSTILE[:2], Spread(EVEN[:, :2], EVEN[:, :2]), "AUC"
    ),
    "start ratios": lambda: start_ratio_lines(
        [0.0, 1.0], HOSTILE, Spread(EVEN[:2], EVEN[:2]), (HOSTILE[2], EVEN[0])
    ),
    "learning curves": lambda: learning_curves(Curve([1], [0.5]), CURVES, CURVES, 1),
    "balance curves": lambda: balance_curves(CURVES, "weight", 1, 1),
    "calibration curves": lambda: calibration_curves(BINS, dict.fromkeys(HOSTILE, "")),
    "distributions": lambda: distributions(NUMBERS, "weight"),
}


@pytest.mark.parametrize("name", cases(FIGURES, quick=["many methods", "calibration curves"]))
def test_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    """Warnings, such as of a missing glyph, are errors here."""
    figure = FIGURES[name]()
    save(figure, tmp_path / "picture")
    shown = {re.sub(r"\s", "", text.get_text()) for text in figure.findobj(Text)}
    labels = for_picture(HOSTILE).values()
    found = [label for label in labels if any(re.sub(r"\s", "", label) in text for text in shown)]
    assert len(found) >= len(HOSTILE)


def test_every_picture_is_tried() -> None:
    made = {
        name
        for name, made in vars(charts).items()
        if callable(made) and getattr(made, "__annotations__", {}).get("return") == "Figure"
    }
    assert made == {
        *("method_dots", "start_ratio_lines", "learning_curves", "balance_curves"),
        *("calibration_curves", "distributions"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.foo", r"x.foo has the suffix of no picture; name it .png, .svg or .pdf"),
        ("x", r"has the suffix of no picture"),
        ("file/x.png", r"can't write .*file/x.png \(.*\); make it writable, or choose an"),
        ("folder.png", r"can't write .*folder.png \(Is a directory\)"),
    ],
)
def test_a_picture_that_cannot_be_written_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(D3jaxError, match=message):
        save_as(Figure(), tmp_path / name)


def test_a_picture_makes_its_folder(tmp_path: Path) -> None:
    save_as(Figure(), tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").is_file()
