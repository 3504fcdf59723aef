"""KuaiRand from files written by hand, with the columns of the published ones."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared
from d3jax.errors import ConfigError, DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig, Source
from data_pipelines.sources.kuairand import OUTCOMES, USER_FIELDS, kuairand

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{n}" for n in range(18))
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)

EARLY, LATE, RANDOM = (
    *("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08"),
    "log_random_4_22_to_5_08",
)

Row = tuple[Any, ...]


def impressions(count: int, seed: int, is_rand: int) -> list[Row]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        click = draw.randrange(2)
        time = 1650556800000 + seed * 10**9 + number
        row = (draw.randrange(30), draw.randrange(20), 20220422, 1200, time, click, 0, 0, 0, 0, 0)
        rows.append((*row, click, 900 * click, 9000, 0, 0, 0, is_rand, draw.choice("0012346")))
    return rows


class World:
    """The three logs with their users and videos; user 29 and video 19 are unknown."""

    def __init__(self, folder: Path, version: str = "pure") -> None:
        self.folder, self.version = folder, version
        self.logs = {
            EARLY: impressions(600, 1, 0),
            LATE: impressions(400, 2, 0),
            RANDOM: impressions(100, 3, 1),
        }
        self.users = {
            u: (
                *("full_active", 0, 0, u % 2, 5, "(0,10]", 1, "[1,10)", 0, "0", 99, "61-90"),
                *(u % 3 for _ in range(17)),
                "" if u % 2 else "1.0",
            )
            for u in range(29)
        }
        self.videos = {
            v: (v % 6, "NORMAL", "2022-04-22", "Web", 1, 9.0, 720, 1280, v, 9, ["3", "12,3"][v % 2])
            for v in range(19)
        }
        for name, rows in self.logs.items():
            self.write(name, LOG, rows)
        self.write("user_features", USERS, [(k, *v) for k, v in self.users.items()])
        self.write("video_features_basic", VIDEOS, [(k, *v) for k, v in self.videos.items()])

    def path(self, name: str) -> Path:
        return self.folder / f"{name}_{self.version}.csv"

    def write(self, name: str, header: str, rows: list[Row]) -> None:
        def cell(value: Any) -> str:
            return f'"{value}"' if "," in str(value) else str(value)

        lines = [header, *(",".join(map(cell, row)) for row in rows)]
        self.path(name).write_text("\n".join(lines) + "\n")

    def edit(self, name: str, change: Callable[[list[str]], list[str]]) -> None:
        path = self.path(name)
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    def read(self, **options: Any) -> Source:
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        return kuairand(ibis.duckdb.connect(threads=2), self.folder, scratch, **options)

    def prepare(self, **options: Any) -> Prepared:
        return prepare(self.read(**options), self.folder / "out", PrepareConfig())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def decoded(prepared: Prepared, *wanted: str) -> list[tuple[Any, ...]]:
    """The wanted fields of every row, its scenario and its label."""
    names = {name: prepared.vocabulary(name)["value"].to_pylist() for name in wanted}
    slots = {name: prepared.schema.slot_field == prepared.schema.index(name) for name in wanted}
    rows = []
    for split in SPLITS:
        ids, scenario, label = prepared.rows(split)
        for row, s, y in zip(ids, scenario, label, strict=True):
            values = [
                ",".join(sorted(names[name][i - 1] for i in row[slots[name]] if i > 0))
                for name in wanted
            ]
            rows.append((*values, int(s), int(y)))
    return sorted(rows)


def expected(world: World, rows: list[Row], tabs: str = "01246") -> list[tuple[Any, ...]]:
    """User, video, author, tags, scenario and label, computed row by row."""
    lines = []
    for row in rows:
        if str(row[-1]) not in tabs:
            continue
        user, video = row[:2]
        author, tags = ("", "")
        if video in world.videos:
            author, tags = str(world.videos[video][0]), world.videos[video][-1]
        tags = ",".join(sorted(tags.split(",")))
        lines.append((str(user), str(video), author, tags, tabs.index(str(row[-1])), row[5]))
    return sorted(lines)


SHOWN = ("user_id", "video_id", "author_id", "tag")


@pytest.mark.slow
def test_the_second_period_is_read(world: World) -> None:
    prepared = world.prepare()
    assert decoded(prepared, *SHOWN) == expected(world, world.logs[LATE])
    others = sum(row[-1] == "3" for row in world.logs[LATE])
    assert prepared.provenance["dropped"] == {"tab other than 0, 1, 2, 4, 6": others}
    kept = [row for row in world.logs[LATE] if row[-1] != "3"]
    assert prepared.provenance["unmatched"] == {
        "user_features_pure.csv": sum(row[0] == 29 for row in kept),
        "video_features_basic_pure.csv": sum(row[1] == 19 for row in kept),
    }
    names = [field.name for field in prepared.schema.fields]
    assert names[:3] == ["user_id", "video_id", "tab"]
    assert set(USER_FIELDS) < set(names)
    assert not set(names) & set(OUTCOMES)
    assert prepared.schema.scenarios == ("tab 0", "tab 1", "tab 2", "tab 4", "tab 6")


@pytest.mark.slow
def test_both_periods(world: World) -> None:
    prepared = world.prepare(both_periods=True, tabs=("1", "0"))
    rows = world.logs[LATE] + world.logs[EARLY]
    assert decoded(prepared, *SHOWN) == expected(world, rows, "10")


def test_random_exposure_is_told_apart(world: World) -> None:
    prepared = world.prepare(random_exposure=True)
    rows = world.logs[LATE] + world.logs[RANDOM]
    assert decoded(prepared, *SHOWN) == expected(world, rows)
    kept = sum(row[-1] != "3" for row in world.logs[RANDOM])
    assert sum(row[0] == "1" for row in decoded(prepared, "is_rand")) == kept


@pytest.mark.slow
def test_random_rows_in_a_standard_log_are_left_out(world: World) -> None:
    world.logs[LATE][5:25] = [(*row[:-2], 1, "0") for row in world.logs[LATE][5:25]]
    world.write(LATE, LOG, world.logs[LATE])
    assert world.prepare().provenance["dropped"]["random exposure"] == 20


@pytest.mark.slow
def test_larger_versions(tmp_path: Path) -> None:
    """1K has the same files under another name, 27K cuts the logs into parts."""
    for version in ("1k", "27k"):
        (tmp_path / version).mkdir()
        world = World(tmp_path / version, version)
        if version == "27k":
            header, *lines = world.path(LATE).read_text().splitlines()
            world.path(LATE).unlink()
            for part, some in enumerate((lines[:123], lines[123:]), 1):
                path = world.folder / f"{LATE}_27k_part{part}.csv"
                path.write_text("\n".join([header, *some]) + "\n")
        assert decoded(world.prepare(), *SHOWN) == expected(world, world.logs[LATE])


def test_other_fields(world: World) -> None:
    prepared = world.prepare(fields=("music_id", "register_days"))
    names = [field.name for field in prepared.schema.fields]
    assert names == ["user_id", "video_id", "tab", "music_id", "register_days"]


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcomes_are_refused(world: World, name: str) -> None:
    message = f"field '{name}' is known only after the exposure, so it gives the label away; leave"
    with pytest.raises(ConfigError, match=message):
        world.read(fields=("music_id", name))


def test_statistics_of_the_month_are_not_read(world: World) -> None:
    with pytest.raises(DataError, match=r"no column 'play_cnt' in .*; the files have user"):
        world.read(fields=("play_cnt",))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            LATE,
            lambda lines: [*lines[:2], lines[2][:-1] + "x", *lines[3:]],
            "file log_standard_4_22_to_5_08_pure.csv, line 3: tab is 'x', not a whole number",
        ),
        (
            "user_features",
            lambda lines: [*lines, lines[5]],
            "user_id '4' appears more than once: file user_features_pure.csv, line 6, file user_",
        ),
        (
            "video_features_basic",
            lambda lines: [*lines, lines[5]],
            "video_id '4' appears more than once: file video_features_basic_pure.csv, line 6",
        ),
        (LATE, lambda lines: [lines[0].replace("is_click", "click")], "has no column 'is_click'"),
    ],
)
def test_what_is_refused(world: World, name: str, change: Any, message: str) -> None:
    world.edit(name, change)
    with pytest.raises(DataError, match=message):
        world.read()


def test_folders_that_are_refused(world: World, tmp_path: Path) -> None:
    world.path("user_features").unlink()
    with pytest.raises(DataError, match=r"has no user_features_pure.csv; unpack the data set into"):
        world.read()
    (world.folder / f"{LATE}_1k.csv").write_text("")
    with pytest.raises(DataError, match="has the logs of pure and 1k; keep one version in a"):
        world.read()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"has no log_standard_4_22_to_5_08_pure.csv, _1k.csv or"):
        kuairand(ibis.duckdb.connect(), empty, empty)
