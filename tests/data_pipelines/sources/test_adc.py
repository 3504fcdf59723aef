"""Ali_Display_Ad_Click from files written by hand, with everything that is odd in the real ones."""

from __future__ import annotations

import gzip
import random
import tempfile
from pathlib import Path
from typing import Any

import ibis
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared
from d3jax.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig, Source
from data_pipelines.sources.adc import FIELDS, POSITIONS, adc
from tests.data_pipelines.raw_files import RawFiles

MIDNIGHT = 1494000000
"""2017-05-06 00:00:00 in UTC+8, where the eight days begin."""

LOG = "user,time_stamp,adgroup_id,pid,nonclk,clk"
ADS = "adgroup_id,cate_id,campaign_id,customer,brand,price"
USERS = (
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level "
)


class World(RawFiles):
    """Eight days of impressions; user 39 has no profile, some brands are NULL, levels are empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw = random.Random(1)
        self.ads = {
            str(a): (str(a % 7), str(a % 11), str(a % 5), "NULL" if a % 3 else f"{a}", f"{a * a}.5")
            for a in range(100, 130)
        }
        self.users = {
            str(u): (
                "0",
                str(u % 13),
                "1",
                str(u % 7),
                str(u % 4 or ""),
                "3",
                "0",
                str(u % 5 or ""),
            )
            for u in range(39)
        }
        self.log = []
        for number in range(800):
            clk = int(draw.random() < 0.3)
            self.log.append(
                (
                    str(draw.randrange(40)),
                    MIDNIGHT + number * 864,
                    str(draw.randrange(100, 130)),
                    POSITIONS[draw.random() < 0.6],
                    1 - clk,
                    clk,
                )
            )
        self.log += self.log[10:60]
        self.write("raw_sample.csv", LOG, self.log)
        self.write("ad_feature.csv", ADS, [(k, *v) for k, v in self.ads.items()])
        self.write("user_profile.csv", USERS, [(k, *v) for k, v in self.users.items()])

    def read(self, last_day: bool = False) -> Source:
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        return adc(ibis.duckdb.connect(threads=2), self.folder, scratch, last_day)

    def prepare(self, last_day: bool = False) -> Prepared:
        return prepare(self.read(last_day), self.folder / "out", PrepareConfig())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def decoded(prepared: Prepared, split: str) -> list[tuple[Any, ...]]:
    names = [prepared.vocabulary(field.name)["value"].to_pylist() for field in FIELDS]
    ids, scenario, label = prepared.rows(split)
    return [
        (*(names[f][i - 1] if i else "" for f, i in enumerate(row)), int(s), int(y))
        for row, s, y in zip(ids.tolist(), scenario, label, strict=True)
    ]


def test_rows_are_those_of_plain_python(world: World) -> None:
    """Sixteen fields; the price aside, which is in buckets. Equal impressions are on one side."""
    prepared = world.prepare()
    assert len(prepared.schema.fields) == 16
    expected = []
    for user, _, ad, pid, _, clk in world.log:
        cate, campaign, customer, brand, _ = world.ads[ad]
        brand = "" if brand == "NULL" else brand
        profile = world.users.get(user, ("",) * 8)
        expected.append(
            (user, ad, pid, cate, campaign, customer, brand, *profile, POSITIONS.index(pid), clk)
        )
    found = [row for split in SPLITS for row in decoded(prepared, split)]
    assert sorted(row[:7] + row[8:] for row in found) == sorted(expected)
    assert prepared.schema.scenario_field == "pid"
    assert prepared.schema.scenarios == POSITIONS
    lonely = sum(user == "39" for user, *_ in world.log)
    assert prepared.provenance["unmatched"] == {"user_profile.csv": lonely}
    assert set(prepared.vocabulary("occupation")["value"].to_pylist()) == {"0"}


def test_prices_are_in_twenty_buckets_of_train(world: World) -> None:
    prepared = world.prepare()
    edges = prepared.provenance["buckets"]["price"]
    assert len(edges) == 19
    price, ad = (prepared.schema.index(name) for name in ("price", "adgroup_id"))
    ads = prepared.vocabulary("adgroup_id")["value"].to_pylist()
    for row in prepared.rows("test").ids.tolist():
        value = float(world.ads[ads[row[ad] - 1]][-1])
        assert row[price] == 1 + sum(edge <= value for edge in edges)


def test_last_day_is_test(world: World) -> None:
    prepared = world.prepare(last_day=True)
    last = MIDNIGHT + 7 * 24 * 3600
    late = sum(time >= last for _, time, *_ in world.log)
    assert prepared.provenance["rows"]["test"] == late
    assert prepared.provenance["split"]["method"].startswith("the last day, in UTC+8, is test; ")
    users = sorted(row[:2] for row in decoded(prepared, "test"))
    assert users == sorted((user, ad) for user, time, ad, *_ in world.log if time >= last)


def test_gzip_is_read_too(world: World) -> None:
    path = world.folder / "raw_sample.csv"
    (world.folder / "raw_sample.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert sum(world.prepare().provenance["rows"].values()) == len(world.log)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "raw_sample.csv",
            "5,1494000000,101,430549_1007,1,0",
            "file raw_sample.csv, line 2: pid is '430549_1007', not one of 430539_1007, 430548_",
        ),
        (
            "raw_sample.csv",
            "5,1494000000,101,430539_1007,1,2",
            "line 2: clk is '2', not 0 or 1",
        ),
        (
            "raw_sample.csv",
            "5,1494000000,101,430539_1007,1,1",
            "file raw_sample.csv, line 2: clk and nonclk are equal; one of them must be 1",
        ),
        (
            "raw_sample.csv",
            "5,today,101,430539_1007,1,0",
            "line 2: time_stamp is 'today', not a number of seconds",
        ),
        (
            "ad_feature.csv",
            "101,1,2,3,4,5",
            "adgroup_id '101' appears more than once: file ad_feature.csv, line 2, file ad_feature",
        ),
        (
            "ad_feature.csv",
            "999,1,2,3,4,cheap",
            "file ad_feature.csv, line 2: price is 'cheap', not a number",
        ),
        (
            "user_profile.csv",
            "7,0,0,0,0,0,0,0,0",
            "userid '7' appears more than once: file user_profile.csv, line 2, file user_profile",
        ),
    ],
)
def test_what_is_refused(world: World, name: str, line: str, message: str) -> None:
    world.edit(name, lambda lines: [lines[0], line, *lines[1:]])
    with pytest.raises(DataError, match=message):
        world.read()


def test_missing_files_and_columns(world: World) -> None:
    world.edit("user_profile.csv", lambda lines: [lines[0].replace("age_", "years_"), *lines[1:]])
    with pytest.raises(DataError, match=r"user_profile.csv has no column 'age_level'; it has user"):
        world.read()
    (world.folder / "ad_feature.csv").unlink()
    with pytest.raises(DataError, match=r"has no ad_feature.csv, only .*raw_sample.csv.*; unpack"):
        world.read()
