"""Rows that are split again are the same rows, in splits as large as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d3jax.data.checksums import verify_checksums
from d3jax.data.columns import SPLITS
from d3jax.data.encoder import unknown_rows
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.errors import ConfigError, DataError
from experiments.compare import splits
from experiments.compare.splits import check_redrawable, redraw


def table(data: Prepared, split: str) -> np.ndarray:
    """[R K + 2] scenario, label and ids of each row."""
    rows = data.rows(split)
    return np.column_stack([rows.scenario, rows.label, rows.ids])


def ordered(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


def test_all_rows_are_there_once_in_the_same_proportions(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "_CHUNK", 700)  # So that a split takes several.
    before = open_prepared(prepared)
    after = redraw(before, tmp_path / "1", 1)
    check_rows(after)
    assert verify_checksums(tmp_path / "1") > 9
    assert after.schema == before.schema
    assert after.codes() == before.codes()
    for split in SPLITS:
        assert len(after.rows(split).label) == len(before.rows(split).label)
        assert not np.array_equal(table(after, split), table(before, split))
    theirs, ours = (np.concatenate([table(d, s) for s in SPLITS]) for d in (before, after))
    np.testing.assert_array_equal(ordered(ours), ordered(theirs))
    # Rows come from all splits, by their shares; 600 of 3,000 are test rows.
    old = {row.tobytes() for row in table(before, "test")}
    stayed = sum(row.tobytes() in old for row in table(after, "test"))
    assert 0.1 < stayed / 600 < 0.35


def test_what_training_does_not_know_is_counted_again(prepared: Path, tmp_path: Path) -> None:
    before = open_prepared(prepared)
    after = redraw(before, tmp_path / "1", 1)
    rows = unknown_rows(after.schema, after.rows("train").ids)
    names = [field.name for field in after.schema.fields]
    assert after.provenance["unknown"] == dict(zip(names, rows.tolist(), strict=True))
    assert after.provenance["unknown"] != before.provenance["unknown"]


def test_a_seed_draws_the_same_rows_again_and_another_seed_others(
    prepared: Path, tmp_path: Path
) -> None:
    data = open_prepared(prepared)
    one, same, other = (redraw(data, tmp_path / str(n), s) for n, s in enumerate((1, 1, 2)))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint
    assert redraw(data, tmp_path / "0", 1).fingerprint == one.fingerprint
    with pytest.raises(DataError) as error:
        redraw(data, tmp_path / "0", 2)
    assert str(error.value) == (
        f"{tmp_path / '0'} is not {prepared} split with seed 2; choose another --out"
    )


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"method": "the latest rows by time"}, "the latest rows by time"),
        ({"method": "md5 of seed and user"}, "md5 of seed and user"),
        ({}, "a rule that it doesn't say"),
    ],
)
def test_rows_that_were_split_by_time_or_user_are_not_drawn_again(
    rule: dict[str, str], said: str, prepared: Path
) -> None:
    data = replace(open_prepared(prepared), provenance={"split": rule})
    check_redrawable(data, 1)
    with pytest.raises(ConfigError) as error:
        check_redrawable(data, 3)
    assert str(error.value) == (
        f"splits is 3, but {prepared} was split by {said}; rows drawn at random would be tested by "
        "a model that saw later ones, or the same user's; leave --splits out, or prepare the data "
        "with --split random"
    )


def test_rows_that_were_split_at_random_are(prepared: Path) -> None:
    data = open_prepared(prepared)
    check_redrawable(data, 3)
    check_redrawable(replace(data, provenance={"split": {"method": "md5 of seed and key"}}), 3)
