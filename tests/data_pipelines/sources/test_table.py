"""Tables with joins, rules and splits against plain Python, and what is refused."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, check_rows
from d3jax.errors import ConfigError, D3jaxError, DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig, Source
from data_pipelines.sources.table import MAX_VALUES, TableConfig, read_table
from tests.cases import cases
from tests.data_pipelines.raw_files import RawFiles

ML_100K = Path(__file__).parents[4] / "shared" / "data" / "ml-100k"

CONFIG = TableConfig(
    label="rating>3",
    scenario="age=25,35",
    user="user",
    item="item",
    time="time",
    fields=("city",),
    multi=("kinds=|",),
)


class World(RawFiles):
    """A log, its users and its items, in files that a test may spoil before it reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw = random.Random(3)
        self.users = {f"u{n}": (str(draw.randrange(15, 60)), draw.choice("xy")) for n in range(40)}
        self.items = {f"i{n}": "|".join(draw.choices("pqr", k=n % 4)) for n in range(30)}
        self.log = [
            (draw.choice([*self.users]), draw.choice([*self.items]), draw.randrange(1, 6), time)
            for time in range(1000, 1400)
        ]
        self.write("log.csv", "user,item,rating,time", self.log)
        self.write("users.csv", "user,age,city", [(k, *v) for k, v in self.users.items()])
        self.write("items.csv", "item,kinds", [*self.items.items()])

    def read(self, **changes: Any) -> Source:
        joins = (f"{self.folder}/users.csv=user", f"{self.folder}/items.csv=item")
        config = replace(CONFIG, **({"join": joins} | changes))
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        return read_table(ibis.duckdb.connect(threads=2), self.folder / "log.csv", scratch, config)

    def prepare(self, config: PrepareConfig | None = None, **changes: Any) -> Prepared:
        return prepare(self.read(**changes), self.folder / "out", config or PrepareConfig())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def decoded(prepared: Prepared, split: str) -> list[tuple[Any, ...]]:
    """Every row of a split by the values of its fields, its scenario and its label."""
    fields = prepared.schema.fields
    names = [prepared.vocabulary(field.name)["value"].to_pylist() for field in fields]
    ids, scenario, label = prepared.rows(split)
    owners = prepared.schema.slot_field
    return [
        (
            *(
                "|".join(sorted(names[f][i - 1] for i in row[owners == f] if i > 0))
                for f in range(len(fields))
            ),
            int(s),
            int(y),
        )
        for row, s, y in zip(ids, scenario, label, strict=True)
    ]


def test_joined_rows_are_those_of_plain_python(world: World) -> None:
    prepared = world.prepare()
    assert [field.name for field in prepared.schema.fields] == [
        *("user", "item", "city", "kinds", "age")
    ]
    assert prepared.schema.scenarios == ("age < 25", "25 <= age < 35", "age >= 35")
    expected = []
    for user, item, rating, _ in world.log:
        age, city = world.users[user]
        kinds = "|".join(sorted(set(world.items[item].split("|")) - {""}))
        scenario = (int(age) >= 25) + (int(age) >= 35)
        expected.append((user, item, city, kinds, age, scenario, int(rating > 3)))
    found = [row for split in SPLITS for row in decoded(prepared, split)]
    assert sorted(found) == sorted(expected)
    assert set(prepared.provenance["sources"]) == {"log.csv", "users.csv", "items.csv"}
    assert not {"unmatched", "unused_columns"} & set(prepared.provenance)


@pytest.mark.slow
def test_named_scenarios_in_the_order_of_numbers(world: World) -> None:
    world.users = {user: (str(8 + n % 3), "x") for n, user in enumerate(world.users)}
    world.write("users.csv", "user,age,city", [(k, *v) for k, v in world.users.items()])
    prepared = world.prepare(scenario="age", fields=())
    assert prepared.schema.scenarios == ("8", "9", "10")
    for row in decoded(prepared, "test"):
        assert prepared.schema.scenarios[row[-2]] == row[3]


def test_columns_may_be_called_as_prepare_calls_its_own(world: World) -> None:
    world.write(
        "log.csv",
        "user,item,label,scenario,split,digest",
        [(u, i, r % 2, "ab"[t % 2], t, t) for u, i, r, t in world.log],
    )
    config = {"label": "label", "scenario": "scenario", "fields": ("split",), "time": "digest"}
    prepared = world.prepare(**config, multi=(), join=())
    assert prepared.schema.scenario_field == "scenario"
    found = sorted(row[:2] + row[-2:] for split in SPLITS for row in decoded(prepared, split))
    assert found == sorted((u, i, t % 2, r % 2) for u, i, r, t in world.log)


@pytest.mark.slow
def test_repeated_events_stay_on_one_side(world: World) -> None:
    world.edit("log.csv", lambda lines: [*lines, *lines[1:200], lines[1]])
    for split in ("random", "time", "user"):
        out = world.folder / split
        fields = ("city", "event")
        rows = world.read().rows
        event = rows.mutate(event=rows.user + rows.item + rows.time)
        source = replace(world.read(), rows=event)
        source = replace(source, fields=(*source.fields, replace(source.fields[0], name="event")))
        prepared = prepare(source, out, PrepareConfig(split=split))  # type: ignore[arg-type]
        assert prepared.provenance["repeated_events"] == 200
        known = set(prepared.vocabulary("event")["value"].to_pylist())
        assert len(known) > 200, fields
        for other in ("validation", "test"):
            assert not (prepared.rows(other).ids[:, -1] > 0).any()


@pytest.mark.slow
def test_times_of_every_kind_are_put_in_order(world: World) -> None:
    def with_time(form: Callable[[int], str]) -> Prepared:
        rows = [(u, i, r, form(t)) for u, i, r, t in world.log]
        world.write("log.csv", "user,item,rating,time", rows)
        out = Path(tempfile.mkdtemp(dir=world.folder)) / "out"
        return prepare(world.read(), out, PrepareConfig(split="time"))

    forms = [
        lambda t: f"{t - 1200}",
        lambda t: f"{t / 7:.3f}e2",
        lambda t: f"2024-01-0{1 + t // 1200} 10:{t % 1200 // 60:02}:{t % 60:02}",
        lambda t: f"2024/1/{1 + t // 1200}T{9 + t % 1200 // 600}:{t % 600 // 10:02}:{t % 10:02}",
        lambda t: f"2024-01-01T{t // 60:02}:{t % 60:02}:00{'+01:00' if t % 2 else '+0100'}",
    ]
    first, *others = (with_time(form) for form in forms)
    assert [first.provenance["rows"][split] for split in SPLITS] == [288, 32, 80]
    for other in others:
        for split in SPLITS:
            assert sorted(decoded(other, split)) == sorted(decoded(first, split))
    late = [row[:2] for row in decoded(first, "test")]
    assert sorted(late) == sorted((u, i) for u, i, _, t in world.log if t >= 1320)


@pytest.mark.slow
def test_a_column_of_the_same_name_matters_only_where_it_is_used(world: World) -> None:
    """Both tables may have an id, a date, or a column that pandas left without a name."""
    for name, extra in (("log.csv", "7"), ("users.csv", "8")):
        world.edit(
            name,
            lambda lines, extra=extra: [
                f"{line},{extra if n else 'id'},{extra if n else ''}"
                for n, line in enumerate(lines)
            ],
        )
    prepared = world.prepare()
    assert prepared.provenance["unused_columns"] == ["id", " column 6", " column 5"]


@pytest.mark.slow
def test_keys_and_scenarios_are_whole_numbers_with_and_without_a_point(world: World) -> None:
    plain = world.prepare()
    for name in ("log.csv", "users.csv"):
        world.edit(name, lambda lines: [re.sub(r"^u(\d+)", r"\1", line) for line in lines])
    world.edit("users.csv", lambda lines: [re.sub(r"^(\d+),(\d+)", r"\1.0,\2.0", x) for x in lines])
    shifted = prepare(world.read(), world.folder / "b", PrepareConfig())
    for split in SPLITS:
        assert len(shifted.rows(split).label) > 0
    assert "unmatched" not in shifted.provenance
    ages = (set(p.vocabulary("age")["value"].to_pylist()) for p in (plain, shifted))
    assert next(ages) == next(ages)
    named = world.read(scenario="age", fields=())
    assert all("." not in name for name in named.scenarios)
    world.edit("users.csv", lambda lines: [*lines, lines[3].replace(".0,", ",")])
    with pytest.raises(DataError, match=r"user '2' appears more than once: file users.csv, line 4"):
        world.read()


@pytest.mark.parametrize(
    "words",
    cases(["0 1", "0.0 1.0", "False True", "false TRUE"], quick=["false TRUE"]),
)
def test_a_label_of_its_own_is_0_and_1_or_false_and_true(world: World, words: str) -> None:
    rows = [(u, i, words.split()[r > 3], t) for u, i, r, t in world.log]
    world.write("log.csv", "user,item,rating,time", rows)
    prepared = world.prepare(label="rating")
    clicks = sum(prepared.rows(split).label.sum() for split in SPLITS)
    assert clicks == sum(r > 3 for _, _, r, _ in world.log)


@pytest.mark.slow
def test_list_columns_are_fields_of_several_values(world: World) -> None:
    plain = world.prepare()
    table = pa.table(
        {
            "item": list(world.items),
            "kinds": [[kind for kind in v.split("|") if kind] for v in world.items.values()],
            "unused": [[1]] * len(world.items),
            "struct": [{"a": 1}] * len(world.items),
        }
    )
    pq.write_table(table, world.folder / "items.parquet")
    joins = (f"{world.folder}/users.csv=user", f"{world.folder}/items.parquet=item")
    for multi in ("kinds", "kinds=|"):
        out = Path(tempfile.mkdtemp(dir=world.folder)) / "out"
        prepared = prepare(world.read(join=joins, multi=(multi,)), out, PrepareConfig())
        assert prepared.provenance["unused_columns"] == ["unused"]
        for split in SPLITS:
            assert decoded(prepared, split) == decoded(plain, split)
    with pytest.raises(DataError, match=r"column 'kinds' is a list column, .*; name it by --multi"):
        world.read(join=joins, multi=(), fields=("kinds",))
    with pytest.raises(DataError, match=r"column 'struct' is struct<.*>, which has no text; give"):
        world.read(join=joins, multi=("kinds",), fields=("struct",))


@pytest.mark.slow
def test_only_so_many_values_of_a_row_are_kept(world: World) -> None:
    history = "|".join(f"h{n}" for n in range(3000))
    rows = [
        (item, history if n == 3 else kinds) for n, (item, kinds) in enumerate(world.items.items())
    ]
    world.write("items.csv", "item,kinds", rows)
    prepared = world.prepare()
    assert prepared.schema.fields[prepared.schema.index("kinds")].slots == MAX_VALUES
    assert prepared.provenance["cut"] == {"kinds": 3000}


@pytest.mark.slow
def test_columns_that_no_flag_names_are_told(world: World) -> None:
    prepared = world.prepare(fields=(), multi=(), item=None)
    assert prepared.provenance["unused_columns"] == ["city", "kinds"]
    prepared = prepare(world.read(scenario="item", multi=()), world.folder / "b", PrepareConfig())
    assert prepared.provenance["unused_columns"] == ["age", "kinds"]


@pytest.mark.slow
def test_rows_without_a_partner(world: World) -> None:
    world.edit("items.csv", lambda lines: [line for line in lines if not line.startswith("i7,")])
    prepared = world.prepare()
    lonely = sum(item == "i7" for _, item, *_ in world.log)
    assert prepared.provenance["unmatched"] == {"items.csv": lonely}
    found = [row for split in SPLITS for row in decoded(prepared, split)]
    assert len(found) == 400
    assert {row[3] for row in found if row[1] == "i7"} == {""}


def replaced(number: int, old: str, new: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new)
        return lines

    return change


REFUSED: list[Any] = [
    (
        "log.csv",
        lambda lines: [*lines[:4], "u1,i1,good,1", *lines[4:]],
        {},
        "file log.csv, line 5: rating is 'good', not a number",
    ),
    (
        "log.csv",
        lambda lines: [*lines[:4], "u1,i1,,1", *lines[4:]],
        {"label": "rating=good"},
        "file log.csv, line 5: there is no rating for this row; every row needs one",
    ),
    (
        "log.csv",
        lambda lines: [*lines[:4], "u1,i1,2,1"],
        {"label": "rating"},
        r"line \d: rating is '[2-5]', not 0 or 1; give a rule such as x>3",
    ),
    (
        "users.csv",
        lambda lines: [*lines, lines[3]],
        {},
        "user 'u2' appears more than once: file users.csv, line 4, file users.csv, line 42",
    ),
    (
        "users.csv",
        lambda lines: [line for line in lines if not line.startswith("u3,")],
        {},
        r"file log.csv, line \d+: there is no age for this row, which is from users.csv; every",
    ),
    (
        "users.csv",
        lambda lines: [line.replace(",y", ",") for line in lines],
        {"scenario": "city=1,2"},
        r"file log.csv, line \d+: there is no city for this row, which is from users.csv",
    ),
    (
        "users.csv",
        lambda lines: (
            [line.replace(",y", ",7").replace(",x", ",7") for line in lines[:-1]]
            + [lines[-1][:-1] + "north"]
        ),
        {"scenario": "city=1,2"},
        "file users.csv, line 41: city is 'north', not a number",
    ),
    (
        "users.csv",
        lambda lines: [line.replace("u", "x", 1) if n else line for n, line in enumerate(lines)],
        {},
        "no user of log.csv is in users.csv, so the join adds nothing; check how both files",
    ),
    (
        "users.csv",
        replaced(1, "city", "rating"),
        {"fields": ()},
        "column 'rating' is in users.csv and already in the tables before it; rename one",
    ),
    (
        "log.csv",
        lambda lines: [*lines[:2], "u1,i1,3,yesterday"],
        {},
        "file log.csv, line 3: time is 'yesterday'; write all times as numbers, or all as",
    ),
    (
        "log.csv",
        lambda lines: [*lines[:2], "u1,i1,3,2024-01-01"],
        {},
        "file log.csv, line 3: time is '2024-01-01'; write all times as numbers, or all as",
    ),
    *(
        (
            "log.csv",
            lambda lines, wrong=wrong: [lines[0], f"u1,i1,3,{wrong}"],
            {},
            f"file log.csv, line 2: time is '{wrong}'; write all times as numbers, or all as",
        )
        for wrong in (
            "2024-01-01-05",
            "2024-01-01T10:00.99:99",
            "2024-13-45",
            "2023-02-29",
            "2024-01-01 24:00:00",
            "9:05:00",
            "1e999",
        )
    ),
    *(
        (
            "log.csv",
            lambda lines, wrong=wrong: [f"{lines[0]},price", f'u1,i1,3,1,"{wrong}"'],
            {"numeric": ("price=5",)},
            f"line 2: price is '{re.escape(wrong)}', not a number; leave it empty where",
        )
        for wrong in ("inf", "NaN", "1,299.00", "$12", "1e999", "9" * 400)
    ),
    (
        "log.csv",
        lambda lines: [f"{lines[0]},place", "u1,i1,3,1,3", "u1,i1,3,1,NaN"],
        {"scenario": "place"},
        "file log.csv, line 3: place is 'NaN', but every row needs a scenario",
    ),
    (
        "log.csv",
        lambda lines: [*lines[:2], "u1,i1,3,"],
        {},
        "file log.csv, line 3: there is no time for this row; every row needs one",
    ),
    (
        "log.csv",
        lambda lines: lines,
        {"scenario": "time", "time": None},
        "column 'time' has more than 100 values, too many for scenarios; divide its numbers",
    ),
    (
        "log.csv",
        lambda lines: lines,
        {"fields": ("town",)},
        "there is no column 'town' in log.csv, users.csv, items.csv; they have user, item,",
    ),
    (
        "log.csv",
        lambda lines: lines,
        {"label": "click"},
        "there is no column 'click' in log.csv",
    ),
    ("log.csv", lambda lines: [], {}, "file log.csv, line 1 is blank"),
    ("log.csv", lambda lines: lines[:1], {"join": ()}, "there is no column 'age' in log.csv"),
]


@pytest.mark.parametrize(
    ("name", "change", "changes", "message"), cases(REFUSED, quick=REFUSED[::3])
)
def test_rows_that_are_refused(
    world: World, name: str, change: Any, changes: dict[str, Any], message: str
) -> None:
    world.edit(name, change)
    with pytest.raises(DataError, match=message):
        world.read(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("rating",)}, "field 'rating' is the column of the label; it can't be a field"),
        ({"fields": ("time",)}, "field 'time' is the column of the time; it can't be a field too"),
        ({"scenario": "rating"}, "column 'rating' can't be both the label and the scenario"),
        ({"join": ("users.csv",)}, "--join 'users.csv' must be a file, an equals sign and the"),
        ({"join": ("=user",)}, "--join '=user' must be a file, an equals sign and the column"),
        (
            {"multi": ("kinds",)},
            "--multi kinds does not say what separates the values, and the col",
        ),
        ({"numeric": ("city=5",), "hash": ("city=9",)}, "field 'city' is prepared in two ways"),
    ],
)
def test_flags_that_contradict(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.read(**changes)


def test_a_label_that_hides_in_another_column(world: World) -> None:
    rows = [(u, i, r, t, "liked" if r > 3 else "not") for u, i, r, t in world.log]
    world.write("log.csv", "user,item,rating,time,opinion", rows)
    with pytest.raises(DataError, match="field 'opinion' gives the label away: each of its 2 val"):
        world.prepare(fields=("opinion",))


BYTES = st.one_of(
    st.lists(
        st.sampled_from([b"u,", b"a", b"1", b"0", b",", b"\n", b'"', b"\r", b"\xff", b"\0", b" "]),
        max_size=12,
    ).map(b"".join),
    st.binary(max_size=20),
)


@settings(max_examples=25)
@given(BYTES, st.integers(0, 60))
@pytest.mark.slow
def test_any_bytes_are_prepared_or_refused(spoiled: bytes, place: int) -> None:
    lines = [b"u,s,y\n", *(b"u%d,%d,%d\n" % (n % 9, n % 2, n % 3 % 2) for n in range(60))]
    lines.insert(place, spoiled)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_bytes(b"".join(lines))
        config = TableConfig(label="y", scenario="s", user="u")
        try:
            source = read_table(ibis.duckdb.connect(), folder / "log.csv", folder, config)
            prepared = prepare(source, folder / "out", PrepareConfig(validation_fraction=0.2))
        except D3jaxError:
            return
        check_rows(prepared)
        assert sum(prepared.provenance["rows"].values()) >= 60


@pytest.mark.skipif(not ML_100K.is_dir(), reason="the sample of MovieLens is not here")
@pytest.mark.slow
def test_movielens_100k(tmp_path: Path) -> None:
    """Counts of the published files: 943 users, and ratings above 3 as clicks."""
    config = TableConfig(
        label="rating>3",
        scenario="age=25,35",
        user="user_id",
        item="item_id",
        time="timestamp",
        fields=("gender", "occupation", "zip_code", "release_year"),
        multi=("class= ",),
        join=(f"{ML_100K}/ml-100k.user=user_id", f"{ML_100K}/ml-100k.item=item_id"),
    )
    source = read_table(ibis.duckdb.connect(), ML_100K / "ml-100k.inter", tmp_path, config)
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    rows = [line.split("\t") for line in (ML_100K / "ml-100k.inter").read_text().splitlines()[1:]]
    users = [line.split("\t") for line in (ML_100K / "ml-100k.user").read_text().splitlines()[1:]]
    ages = {user: int(age) for user, age, *_ in users}
    scenario = np.concatenate([prepared.rows(split).scenario for split in SPLITS])
    label = np.concatenate([prepared.rows(split).label for split in SPLITS])
    wanted = [(ages[user] >= 25) + (ages[user] >= 35) for user, *_ in rows]
    assert np.bincount(scenario).tolist() == np.bincount(wanted).tolist()
    assert label.sum() == sum(float(rating) > 3 for _, _, rating, _ in rows)
    assert prepared.schema.fields[prepared.schema.index("class")].slots == 6
