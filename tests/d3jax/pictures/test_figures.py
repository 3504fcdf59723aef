"""The heat map is a PNG that grows with the fields and scenarios."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from d3jax.pictures.figures import attention_heat_map
from tests.names import HOSTILE

FIELDS = ["scenario", "user", "age"]
ATTENTION = np.array([[0.2, 0.2, 0.6], [0.4, 0.3, 0.3]])


def size(path: Path) -> tuple[int, int]:
    """Width and height that a PNG file declares."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], str]:
    """The text that is put into each (row, column)."""
    put: dict[tuple[int, int], str] = {}
    text = Axes.text

    def noted(self: Axes, x: float, y: float, s: str, **style: object) -> object:
        put[int(y), int(x)] = s
        return text(self, x, y, s, **style)

    monkeypatch.setattr(Axes, "text", noted)
    return put


def test_cells_are_multiples_of_an_even_share(
    tmp_path: Path, cells: dict[tuple[int, int], str]
) -> None:
    attention_heat_map(tmp_path / "a.png", ATTENTION, ["home", "slot"], FIELDS)
    assert cells == {
        (0, 0): "0.60",
        (0, 1): "0.60",
        (0, 2): "1.80",
        (1, 0): "1.20",
        (1, 1): "0.90",
        (1, 2): "0.90",
    }
    width, height = size(tmp_path / "a.png")
    attention_heat_map(tmp_path / "b.png", np.full((5, 9), 1 / 9), list("abcde"), list("abcdefghi"))
    assert size(tmp_path / "b.png")[0] > width
    assert size(tmp_path / "b.png")[1] > height


@pytest.mark.parametrize(("off", "said"), [(0.0, True), (0.0014, True), (0.002, False)])
def test_an_even_attention_is_said_in_the_title(
    off: float, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda self, title, **style: titles.append(title))
    attention = np.full((2, 3), 1 / 3) + off * np.array([[1, -1, 0], [0, 0, 0]])
    attention_heat_map(tmp_path / "a.png", attention, ["home", "slot"], FIELDS)
    assert ("it selects nothing" in titles[0]) == said


def test_only_marked_cells_are_outlined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outlined: list[tuple[float, float]] = []
    monkeypatch.setattr(Axes, "add_patch", lambda self, patch: outlined.append(patch.get_xy()))
    marked = np.array([[False, False, True], [False, True, False]])
    attention_heat_map(tmp_path / "a.png", ATTENTION, ["home", "slot"], FIELDS, marked)
    np.testing.assert_allclose(outlined, [(1.54, -0.46), (0.54, 0.54)])


def test_a_scenario_without_rows_leaves_a_picture(tmp_path: Path) -> None:
    attention = np.array([[0.2, 0.2, 0.6], [np.nan] * 3])
    attention_heat_map(tmp_path / "a.png", attention, ["home", "slot"], FIELDS)
    assert size(tmp_path / "a.png")[0] > 100


def test_a_trained_run_has_one(trained: Path) -> None:
    assert size(trained / "figures" / "attention.png")[0] > 500


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    even = np.full((len(HOSTILE), len(HOSTILE)), 1 / len(HOSTILE))
    attention_heat_map(tmp_path / "a.png", even, HOSTILE, HOSTILE)
    assert size(tmp_path / "a.png")[0] > 500
