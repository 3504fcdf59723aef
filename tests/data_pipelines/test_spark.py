"""Spark prepares every source to the same bytes as DuckDB, and says what it lacks."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ibis
import pytest

from d3jax.errors import ConfigError, DataError
from data_pipelines.prepare import prepare
from data_pipelines.raw.engine import duckdb_engine, spark_engine
from data_pipelines.source import PrepareConfig, Source
from data_pipelines.sources.adc import adc
from data_pipelines.sources.ali_ccp.encoded import ali_ccp_encoded
from data_pipelines.sources.ali_ccp.published import ali_ccp
from data_pipelines.sources.kuairand import kuairand
from data_pipelines.sources.movielens import movielens_1m
from data_pipelines.sources.table import TableConfig, read_table
from tests.data_pipelines import test_one_rule
from tests.data_pipelines.sources import (
    test_adc,
    test_ali_ccp,
    test_ali_ccp_encoded,
    test_kuairand,
)
from tests.data_pipelines.test_one_rule import some_columns, words

Read = Callable[[ibis.BaseBackend, Path, Path], Source]


def test_missing_pyspark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without_spark(name: str, *others: Any) -> Any:
        if name.startswith("pyspark"):
            raise ImportError("No module named 'pyspark'")
        return find(name, *others)

    monkeypatch.setattr(builtins, "__import__", without_spark)
    message = r"the engine spark is not installed \(No module named 'pyspark'\); run pip install"
    with pytest.raises(ConfigError, match=message):
        spark_engine(tmp_path)


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ibis.BaseBackend]:
    pytest.importorskip("pyspark")
    engine = spark_engine(tmp_path_factory.mktemp("spark"))
    yield engine
    engine.disconnect()


def write_table(folder: Path) -> None:
    draw = random.Random(0)
    rows = ["user,tags,price,when,place,click"]
    for number in range(500):
        tags = "|".join(draw.choice(["a", "b", "é", "rare"]) for _ in range(draw.randrange(4)))
        price = draw.choice(["", "0", f"{draw.lognormvariate(1, 2):.3f}", "1e3"])
        time = f"2024-02-{1 + number % 28:02} 10:00:{draw.randrange(60):02}"
        place = draw.choice(["north", '"south, or\nwest"'])
        rows.append(f"u{draw.randrange(60)},{tags},{price},{time},{place},{draw.randrange(2)}")
    (folder / "log.csv").write_text("\n".join(rows))
    (folder / "users.csv").write_text("user,age\n" + "".join(f"u{n},{n}\n" for n in range(55)))


def write_kinds(folder: Path) -> None:
    test_one_rule.write_csv(folder / "log.csv", words(some_columns(), ".0"))


def read_kinds(engine: ibis.BaseBackend, folder: Path, scratch: Path) -> Source:
    """What is staged lies where a name could be taken for a pattern or a column."""
    odd = scratch / "click=1" / "[a]*{b,c}"
    odd.mkdir(parents=True)
    return read_table(engine, folder / "log.csv", odd, test_one_rule.CONFIG)


def read_log(engine: ibis.BaseBackend, folder: Path, scratch: Path) -> Source:
    config = TableConfig(
        label="click",
        scenario="place",
        user="user",
        time="when",
        fields=("age",),
        multi=("tags=|",),
        numeric=("price=7",),
        hash=("user=40", "tags=9"),
        join=(f"{folder}/users.csv=user",),
    )
    return read_table(engine, folder / "log.csv", scratch, config)


def write_movielens(folder: Path) -> None:
    ages = (1, 25, 56)
    users = [f"{n}::F::{ages[n % 3]}::{n % 4}::{n:05}" for n in range(1, 40)]
    movies = [f"{n}::Café {n} ({1990 + n % 5})::Drama|War" for n in range(1, 20)]
    draw = random.Random(2)
    ratings = [
        f"{draw.randrange(1, 40)}::{draw.randrange(1, 20)}::{draw.randrange(1, 6)}::{9780000 + n}"
        for n in range(500)
    ]
    for name, lines in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_bytes("\n".join(lines).encode("latin-1"))


def write_ali_ccp(folder: Path) -> None:
    draw = random.Random(4)
    sides = (test_ali_ccp.LEFT, test_ali_ccp.MIDDLE)
    impressions = [
        (
            f"{n}",
            draw.randrange(2),
            0,
            draw.choice(["aa11", "bb22"]),
            [("205", f"{draw.randrange(9)}"), ("210", "1"), ("210", "2"), ("301", sides[n % 2])],
        )
        for n in range(200)
    ]
    common = test_ali_ccp.COMMON
    test_ali_ccp.write(folder, impressions, impressions[:60], common, common)


def write_encoded(folder: Path) -> None:
    rows = {name: test_ali_ccp_encoded.some_rows(99, n) for n, name in enumerate(["train", "test"])}
    rows["validation"] = rows["test"][:50]
    test_ali_ccp_encoded.write(folder, rows)


def last_day(engine: ibis.BaseBackend, folder: Path, scratch: Path) -> Source:
    return adc(engine, folder, scratch, last_day=True)


def several(engine: ibis.BaseBackend, folder: Path, scratch: Path) -> Source:
    return ali_ccp(engine, folder, scratch, last_value=False)


def both(engine: ibis.BaseBackend, folder: Path, scratch: Path) -> Source:
    return kuairand(engine, folder, scratch, both_periods=True, random_exposure=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("write", "read", "config"),
    [
        (write_kinds, read_kinds, PrepareConfig(min_count=2)),
        (write_table, read_log, PrepareConfig(min_count=2)),
        (write_table, read_log, PrepareConfig(split="time")),
        (write_table, read_log, PrepareConfig(split="user", seed=1)),
        (write_movielens, movielens_1m, PrepareConfig()),
        (test_adc.World, last_day, PrepareConfig()),
        (test_kuairand.World, both, PrepareConfig(min_count=2)),
        (write_ali_ccp, several, PrepareConfig()),
        (write_encoded, ali_ccp_encoded, PrepareConfig()),
    ],
)
def test_the_same_bytes_as_duckdb(
    spark: ibis.BaseBackend,
    tmp_path: Path,
    write: Callable[[Path], object],
    read: Read,
    config: PrepareConfig,
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw)
    found = {}
    for engine in (spark, duckdb_engine(tmp_path, threads=2)):
        scratch = tmp_path / f"{engine.name} rows"
        scratch.mkdir()
        out = tmp_path / engine.name
        prepare(read(engine, raw, scratch), out, config)
        found[engine.name] = {
            path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()
        }
    assert found["pyspark"].keys() == found["duckdb"].keys()
    assert [
        name for name, content in found["duckdb"].items() if found["pyspark"][name] != content
    ] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "ignore::ResourceWarning")
def test_errors_are_those_of_duckdb(spark: ibis.BaseBackend, tmp_path: Path) -> None:
    write_table(tmp_path)
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "\nu1,a,1,2024-01-01,north,2\n")
    for engine in (spark, duckdb_engine(tmp_path)):
        with pytest.raises(DataError, match=r"file log.csv, line \d+: click is '2', not 0 or 1"):
            read_log(engine, tmp_path, tmp_path)
