"""The growth table has a line for every size and model, and says which could not be measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import growth
from experiments.bench.children import ChildError, Request
from experiments.bench.growth import Growth, cells, main, sizes
from experiments.bench.workload import WORKLOADS

SMALL = Growth(batch_sizes=(256,), field_counts=(4,), scenario_counts=(3, 10), ranks=(0, 32))


def answers() -> Callable[[Request], dict[str, Any]]:
    """A child that is slow, fast and then between the two, and fails at rank 32."""
    rates = itertools.cycle((1000.0, 4000.0, 2000.0))

    def answer(request: Request) -> dict[str, Any]:
        if request.variant.config.d3.rank == 32:
            raise ChildError("no memory")
        rate = next(rates)
        return {
            "train": {"rows_per_second": rate},
            "score": {"rows_per_second": 3 * rate},
            "peak_megabytes": rate,
        }

    return answer


def test_every_size_names_a_workload_and_its_models() -> None:
    listed = list(sizes(SMALL))
    assert [size.text for size in listed] == [
        "256 rows, 23 fields",
        "2,048 rows, 4 fields",
        "2,048 rows, 3 scenarios",
        "2,048 rows, 10 scenarios",
    ]
    assert {size.workload for size in listed} <= set(WORKLOADS)
    assert list(listed[0].models) == ["plain", "D3, the paper's", "D3, rank 32"]
    assert [listed[0].models[name].config.d3.rank for name in listed[0].models][1:] == [
        0,
        32,
    ]
    assert [model.config.model.backbone for model in listed[2].models.values()] == ["star", "mmoe"]
    updates = {m.config.optimizer.embedding_update for s in listed for m in s.models.values()}
    assert updates == {"lazy_adamw"}


def test_scenarios_of_a_size_are_as_many_as_it_says() -> None:
    for count in growth.SCENARIO_COUNTS:
        assert len(WORKLOADS[f"{count} scenarios"].scenario_shares) == count


def test_a_line_has_medians_of_the_rates_and_the_most_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growth, "ask", answers())
    three = Growth(batch_sizes=(256,), rounds=3)
    line = cells(three, next(sizes(three)), "plain")
    assert line == ("256 rows, 23 fields", "plain", "128.0", "2,000", "6,000", "3.91")


def test_what_fails_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "ask", answers())
    path = tmp_path / "growth.md"
    main(Growth(**(vars(SMALL) | {"out": path})))
    written = path.read_text().splitlines()
    assert written[4] == "| step | model | ms | rows/s | scored rows/s | peak GB |"
    assert len(written[6:]) == 10
    assert written[8] == "| 256 rows, 23 fields | D3, rank 32 | - | - | - | no memory |"
    assert written[-1].startswith("| 2,048 rows, 10 scenarios | MMoE | ")
    assert "no memory" in capsys.readouterr().out
