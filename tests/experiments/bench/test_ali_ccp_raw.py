"""The made-up Ali-CCP files have the published form: keys that rows share, lists, positions."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import ibis
import pytest

from data_pipelines.sources.ali_ccp.lines import MULTI_VALUED
from data_pipelines.sources.ali_ccp.published import ali_ccp
from experiments.bench.ali_ccp_raw import POSITIONS, ROWS_PER_KEY, write_raw

NUM_ROWS = 40_000


def test_files_are_format_true(tmp_path: Path) -> None:
    write_raw(tmp_path, NUM_ROWS, tmp_path)
    lines = (tmp_path / "sample_skeleton_train.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    assert len(rows) == NUM_ROWS / 2
    sizes = Counter(row[3] for row in rows)
    assert set(sizes.values()) == {ROWS_PER_KEY, NUM_ROWS // 2 % ROWS_PER_KEY}
    assert sum(row[1] == "1" for row in rows) / len(rows) == pytest.approx(0.0389, abs=0.006)
    values = defaultdict(list)
    for row in rows:
        items = [item.split("\x02") for item in row[5].split("\x01")]
        assert len(items) == int(row[4])
        assert [name for name, _ in items].count("301") == 1
        for name, value in items:
            values[name].append(value.split("\x03")[0])
    assert set(values) == {"205", "206", "207", "210", "216", "301", "508", "509", "702", "853"}
    positions = Counter(values["301"])
    shares = [positions[str(position)] / len(rows) for position in POSITIONS]
    assert shares == pytest.approx([0.378, 0.0075, 0.6145], abs=0.015)
    # Zipf: the k-th most frequent item has about 1 / k of the clicks of the first.
    top = [count for _, count in Counter(values["205"]).most_common(20)]
    assert top[0] / top[9] == pytest.approx(10, rel=0.4)
    source = ali_ccp(ibis.duckdb.connect(), tmp_path, tmp_path, last_value=False)
    assert source.scenarios == tuple(map(str, POSITIONS))
    joined = source.rows.filter(source.rows["101"].notnull()).count().to_pyarrow().as_py()
    assert joined == NUM_ROWS - source.dropped["purchase without a click"]
    longest = source.rows.agg(
        [source.rows[name].length().max().name(name) for name in MULTI_VALUED]
    )
    assert longest.to_pyarrow().to_pylist()[0]["109_14"] == 8 * len("250001") + 7


def test_the_same_files_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name, 2000, tmp_path)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
