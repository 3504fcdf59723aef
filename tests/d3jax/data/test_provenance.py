"""The rules that decide ids, scenarios and labels are of their types, and those of old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from d3jax.data.prepared import read_schema
from d3jax.errors import DataError
from tests.d3jax.data.directory import edit_schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p.update(label_rule="rating < 3"),
            "rule for the scenario or the label has",
        ),
        (
            lambda p: p.update(separators=None),
            r"provenance.separators is None; it must be",
        ),
        (lambda p: p.update(unknown={"user": "3"}), r"provenance.unknown is .*; it must be an obj"),
        (lambda p: p.update(buckets={"user": 3}), r"provenance.buckets.user is 3; it must be"),
        (lambda p: p.update(scenario={"field": 1}), r"provenance.scenario"),
        (lambda p: p["rows"].update(test=-1), r"provenance.rows.test is below 0"),
    ],
)
def test_rules_that_have_changed_are_refused(
    directory: Path, change: Callable[[dict], object], message: str
) -> None:
    edit_schema(directory, lambda content: change(content["provenance"]))
    with pytest.raises(DataError, match=message):
        read_schema(directory)
