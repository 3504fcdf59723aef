"""Made-up rows fit their schema, are skewed as ids are, and are the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.bench.workload import WORKLOADS, make_batches, make_schema


def test_sizes_are_those_of_the_data_sets() -> None:
    movielens, ali_ccp = (make_schema(WORKLOADS[name]) for name in ("movielens", "ali-ccp"))
    assert (movielens.num_fields, movielens.num_slots, movielens.num_scenarios) == (8, 8, 3)
    assert (ali_ccp.num_fields, ali_ccp.num_rows, ali_ccp.num_scenarios) == (23, 1_560_498, 3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_rows_fit_the_schema(name: str) -> None:
    schema = make_schema(WORKLOADS[name])
    for batch in make_batches(WORKLOADS[name], 500, 2):
        schema.check(batch.ids, batch.scenario)
        assert batch.ids.dtype == batch.scenario.dtype == np.int32
        assert batch.mask.all()
        assert set(batch.label) == {0.0, 1.0}


def test_ids_and_scenarios_are_skewed_as_stated() -> None:
    batch = make_batches(WORKLOADS["ali-ccp"], 200_000, 1)[0]
    counts = np.bincount(batch.ids[:, 0])
    assert counts[0] / counts[9] == pytest.approx(7.3, rel=0.1)  # ln 2 / ln 1.1
    assert batch.ids[:, 0].max() > 200_000
    shares = np.bincount(batch.scenario) / len(batch.scenario)
    assert shares == pytest.approx([0.378, 0.0075, 0.6145], abs=0.004)


def test_the_same_rows_for_a_seed() -> None:
    first, again, other = (make_batches(WORKLOADS["tiny"], 50, 2, seed) for seed in (1, 1, 2))
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
    assert (first[0].ids != first[1].ids).any()
    assert (first[0].ids != other[0].ids).any()
