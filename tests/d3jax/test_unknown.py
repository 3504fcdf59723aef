"""Unknown values are counted, and warned of where they are many."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from d3jax.batch import Field, Schema
from d3jax.data.prepared import Prepared
from d3jax.unknown import ENOUGH, Watch

SCHEMA = Schema((Field("user", 9), Field("tab", 3)), ("home",))


@pytest.fixture
def watch(tmp_path) -> Watch:  # type: ignore[no-untyped-def]
    return Watch(Prepared(tmp_path, SCHEMA, {"rows": {"train": 10}, "unknown": {}}, ""))


def rows(count: int, user: int) -> np.ndarray:
    return np.full((count, 2), [user, 1], np.int32)


def said(watch: Watch) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.warn()
    return [str(each.message) for each in caught]


def test_a_call_is_judged_by_its_own_rows_however_many_came_before(watch: Watch) -> None:
    watch.look(rows(100 * ENOUGH, user=3))
    assert said(watch) == []
    watch.look(rows(ENOUGH, user=0))
    [warning] = said(watch)
    assert warning.startswith("field 'user': 100.0% of the rows have no value that training saw")
    watch.look(rows(ENOUGH, user=0))
    assert said(watch) == [], "once of each field"
    assert watch.seen.total == 102 * ENOUGH
    np.testing.assert_array_equal(watch.seen.rows, [2 * ENOUGH, 0])


def test_few_rows_wait_for_more(watch: Watch) -> None:
    for _ in range(3):
        watch.look(rows(ENOUGH // 2 - 10, user=0))
        warnings_so_far = said(watch)
    assert len(warnings_so_far) == 1
