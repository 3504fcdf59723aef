"""Variants take turns, so that what slows the machine down for a while slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.bench.children import ChildError, Request, ask

Answers = dict[str, list[dict[str, Any]]]
Failures = dict[str, str]


def take_turns(
    requests: Mapping[str, Request], rounds: int, report: Callable[[str], None]
) -> tuple[Answers, Failures]:
    """The answers to each request, `rounds` of them; a reason instead where a child failed."""
    answers: Answers = {}
    failures: Failures = {}
    for turn in range(1, rounds + 1):
        for name, request in requests.items():
            if name in failures:
                continue
            report(f"round {turn}: {name}")
            try:
                answers.setdefault(name, []).append(ask(request))
            except ChildError as error:
                failures[name] = str(error)
                answers.pop(name, None)
    return answers, failures
