"""Variants take turns, and one that fails drops out."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.bench import turns
from experiments.bench.children import ChildError, Request
from experiments.bench.turns import take_turns
from experiments.bench.variants import variants

REQUESTS = {
    variant.name: Request("time", variant, "tiny", 8, 0.1, 5) for variant in variants("mmoe")[:3]
}


def test_rounds_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: Request) -> dict[str, Any]:
        asked.append(request.variant.name)
        if asked.count(second) == 2 and request.variant.name == second:
            raise ChildError("no memory")
        return {"number": len(asked)}

    first, second, third = REQUESTS
    monkeypatch.setattr(turns, "ask", answer)
    reported: list[str] = []
    answers, failures = take_turns(REQUESTS, 3, reported.append)
    assert asked == [first, second, third, first, second, third, first, third]
    assert answers == {
        first: [{"number": 1}, {"number": 4}, {"number": 7}],
        third: [{"number": 3}, {"number": 6}, {"number": 8}],
    }
    assert failures == {second: "no memory"}
    assert reported[0] == f"round 1: {first}"
