"""From what the processes answered to a line, a table and a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from d3jax.parameters import count
from d3jax.parts import build_model
from experiments.bench.limits import Limits
from experiments.bench.results import Line, draw, make_line, results_table
from experiments.bench.timing import Summary
from experiments.bench.variants import TUNED, Variant, reference
from experiments.bench.workload import WORKLOADS, make_schema

TINY = WORKLOADS["tiny"]


def answer(train: float, score: float, **changed: Any) -> dict[str, Any]:
    rate = {"first_seconds": 3.0, "others": 0.01, "faults": 7.0}
    return {
        "train": {"rows_per_second": train, **rate, **changed},
        "score": {"rows_per_second": score, **rate},
        "peak_megabytes": train,
        "latency": {"1": [*range(100), train], "500": [2.0, 4.0]},
    }


def line(name: str, train: float, score: float, others: float = 0.0) -> Line:
    summaries = (Summary(value, 0.9 * value, 1.1 * value) for value in (train, score))
    return Line(name, *summaries, 512.0, 1.5, 0.25, 0.5, {"1": (0.1, 0.2)}, others, 0.0)


def test_line_holds_the_medians() -> None:
    variant = Variant(TUNED, "plain", "torch", reference("plain"))
    rounds = [answer(100, 1000), answer(300, 3000, others=0.5, faults=9.0), answer(200, 2000)]
    made = make_line(variant, rounds, TINY, 50, Limits(1e9, 1e6, "numpy"))
    assert made.train == (200, 150, 250)
    assert made.score == (2000, 1500, 2500)
    assert made.peak_megabytes == 300
    assert made.compile_seconds == 3.0 - 50 / 100
    assert made.latency == {"1": (50.0, pytest.approx(99.0)), "500": (3.0, 4.0)}
    assert (made.others, made.faults, made.disturbed) == (0.5, 7.0, True)


def test_line_s_share_of_the_limit() -> None:
    variant = Variant("", "plain", "torch", reference("plain"))
    schema = make_schema(TINY)
    network = count(build_model(schema, variant.config).declared.params.network)
    row = 2 * (4 * 16 * 128 + 128 * 64 + 64)
    by_arithmetic = make_line(variant, [answer(100, 1000)], TINY, 50, Limits(1e7, 1e30, ""))
    assert by_arithmetic.train_share == pytest.approx(3 * row * 100 / 1e7)
    assert by_arithmetic.score_share == pytest.approx(row * 1000 / 1e7)
    by_memory = make_line(variant, [answer(100, 1000)], TINY, 50, Limits(1e30, 1e6, ""))
    moved = network + 16 * schema.num_rows
    assert by_memory.train_share == pytest.approx(24 * moved / 1e6 / 0.5)
    assert by_memory.score_share == pytest.approx(4 * network / 1e6 / 0.05)


def printed(lines: list[Line]) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(results_table("plain at tiny", lines))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table() -> None:
    text = printed([line("d3jax", 30_000, 5_000, others=0.2), line(TUNED, 10_000, 10_000)])
    assert "plain at tiny" in text
    ours, theirs = (row for row in text.splitlines() if "25% / 50%" in row)
    assert "d3jax*" in ours
    assert TUNED in theirs
    assert "*" not in theirs
    assert [cell.strip() for cell in ours.split("│")[2:6]] == [
        "30,000 ±20%",
        "3.00",
        "5,000 ±20%",
        "0.50",
    ]
    assert "0.10 (0.20)" in ours


def test_table_without_the_tuned_variant_has_no_ratios() -> None:
    cells = printed([line("d3jax", 30_000, 5_000)]).splitlines()[4].split("│")
    assert cells[3].strip() == cells[5].strip() == ""
    assert "variant" in printed([])


def test_picture(tmp_path: Path) -> None:
    lines = {"d3 at tiny": [line("d3jax", 1e4, 1e5), line(TUNED, 5e3, 2e4)], "none": []}
    draw(tmp_path / "bars.png", lines, "rows a second")
    pixels = matplotlib.image.imread(tmp_path / "bars.png")
    assert pixels.shape[1] == 9 * 150
    assert len({tuple(color) for color in pixels.reshape(-1, 4)}) > 10
