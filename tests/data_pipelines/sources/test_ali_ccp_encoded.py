"""Ali-CCP with ids already encoded: they are kept, and every message about bad files."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Any

import ibis
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, check_rows
from d3jax.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig
from data_pipelines.sources.ali_ccp.encoded import ali_ccp_encoded
from data_pipelines.sources.ali_ccp.lines import FIELD_NAMES

CONNECTION = ibis.duckdb.connect(threads=2)

SAMPLE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "ali-ccp-sample"

NAMES = {"train": "train", "validation": "val", "test": "test"}
DENSE = ("D109_14", "D853")
HEADER = ("click", "purchase", *FIELD_NAMES, *DENSE)

Row = dict[str, str]


def some_rows(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "click": str(draw.randrange(2)),
            "purchase": "0",
            **{name: str(draw.randrange(20 + 10 * seed)) for name in FIELD_NAMES},
            "301": str(draw.randrange(1, 4)),
            **dict.fromkeys(DENSE, "0.4734"),
        }
        for _ in range(count)
    ]


def write(directory: Path, rows: dict[str, list[Row]]) -> Path:
    directory.mkdir(exist_ok=True)
    for split, name in NAMES.items():
        with (directory / f"ali_ccp_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(rows[split])
    return directory


@pytest.fixture
def rows() -> dict[str, list[Row]]:
    return {split: some_rows(60, seed) for seed, split in enumerate(NAMES)}


def decoded(prepared: Prepared, split: str) -> Counter[tuple[int, ...]]:
    columns = prepared.rows(split)
    return Counter(
        (int(label), int(scenario), *map(int, ids))
        for ids, scenario, label in zip(*columns, strict=True)
    )


def expected(rows: list[Row]) -> Counter[tuple[int, ...]]:
    return Counter(
        (int(row["click"]), int(row["301"]) - 1, *(int(row[name]) for name in FIELD_NAMES))
        for row in rows
    )


def assert_kept(prepared: Prepared, rows: dict[str, list[Row]]) -> None:
    """Ids are the files' own; the vocabulary has every one, with its count in train."""
    check_rows(prepared)
    for split in SPLITS:
        assert decoded(prepared, split) == expected(rows[split])
    for name in FIELD_NAMES:
        largest = max(int(row[name]) for part in rows.values() for row in part)
        counts = Counter(int(row[name]) for row in rows["train"])
        assert prepared.vocabulary(name).to_pylist() == [
            {"value": str(value), "id": value, "count": counts[value]}
            for value in range(1, largest + 1)
        ]


@pytest.mark.slow
def test_ids_are_kept(tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    source = ali_ccp_encoded(CONNECTION, write(tmp_path / "raw", rows))
    prepared = prepare(source, tmp_path / "out", PrepareConfig(min_count=5))
    assert_kept(prepared, rows)
    assert prepared.schema.scenarios == ("1", "2", "3")
    assert [field.name for field in prepared.schema.fields] == list(FIELD_NAMES)
    assert prepared.schema.fields[18].name == prepared.schema.scenario_field == "301"
    assert prepared.provenance["rows"] == dict.fromkeys(SPLITS, 60)
    assert prepared.provenance["scenario"]["values"] == {"1": "1", "2": "2", "3": "3"}


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the Ali-CCP sample is not here")
@pytest.mark.slow
def test_published_sample(tmp_path: Path) -> None:
    rows: dict[str, Any] = {}
    for split, name in NAMES.items():
        with (SAMPLE / f"ali_ccp_{name}_sample.csv").open(newline="") as file:
            rows[split] = list(csv.DictReader(file))
    prepared = prepare(ali_ccp_encoded(CONNECTION, SAMPLE), tmp_path / "out", PrepareConfig())
    assert_kept(prepared, rows)
    assert prepared.provenance["dropped"] == {"purchase without a click": 0}


@pytest.mark.slow
def test_leading_zeros_are_no_other_id(tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    expected_rows = {split: [dict(row) for row in part] for split, part in rows.items()}
    for row in rows["train"]:
        row["205"] = f"00{row['205']}"
    source = ali_ccp_encoded(CONNECTION, write(tmp_path / "raw", rows))
    assert_kept(prepare(source, tmp_path / "out", PrepareConfig()), expected_rows)


@pytest.mark.slow
def test_purchases_without_a_click_are_dropped(tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    lines = rows["train"]
    lines[0] |= {"click": "0", "purchase": "1"}
    lines[1] |= {"click": "1", "purchase": "1"}
    source = ali_ccp_encoded(CONNECTION, write(tmp_path / "raw", rows))
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    assert prepared.provenance["dropped"] == {"purchase without a click": 1}
    assert decoded(prepared, "train") == expected(lines[1:])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "205",
            "12.5",
            r"^file ali_ccp_val.csv, line 4: column 205 is '12.5', not a whole number below "
            "1,000,000,000; download the file again$",
        ),
        ("205", "-1", "line 4: column 205 is '-1', not a whole number"),
        ("109_14", "", "line 4: column 109_14 is '', not a whole number"),
        ("101", "1000000000", "line 4: column 101 is '1000000000', not a whole number below"),
        ("301", "0", "line 4: column 301 is '0', not 1, 2 or 3; download"),
        ("301", "4", "line 4: column 301 is '4', not 1, 2 or 3; download"),
        ("click", "2", "line 4: column click is '2', not 0 or 1; download"),
        ("purchase", "yes", "line 4: column purchase is 'yes', not 0 or 1"),
    ],
)
def test_bad_value(
    tmp_path: Path, rows: dict[str, list[Row]], column: str, value: str, message: str
) -> None:
    rows["validation"][2][column] = value
    with pytest.raises(DataError, match=message):
        ali_ccp_encoded(CONNECTION, write(tmp_path / "raw", rows))


def test_bad_files(tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    directory = write(tmp_path / "raw", rows)
    path = directory / "ali_ccp_test.csv"
    text = path.read_text()
    path.write_text(text.replace("205", "204", 1))
    message = r"file ali_ccp_test.csv has no column '205'; it has click, purchase, 101, 121, 122"
    with pytest.raises(DataError, match=message):
        ali_ccp_encoded(CONNECTION, directory)
    path.write_text(text + "1,0,1\n")
    with pytest.raises(DataError, match=r"ali_ccp_test.csv can't be read as CSV \(.*\); download"):
        ali_ccp_encoded(CONNECTION, directory)
    (directory / "ali_ccp_test_sample.csv").write_text(text)
    message = r"must have one file ali_ccp_test\*.csv; it has ali_ccp_test.csv, ali_ccp_test_sample"
    with pytest.raises(DataError, match=message):
        ali_ccp_encoded(CONNECTION, directory)
    (directory / "ali_ccp_train.csv").unlink()
    with pytest.raises(DataError, match=r"must have one file ali_ccp_train\*.csv; it has none"):
        ali_ccp_encoded(CONNECTION, directory)
