"""Ali-CCP: invented files against a plain reading of them, and every message about bad ones."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ibis
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, check_rows
from d3jax.errors import ConfigError, DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig, Source
from data_pipelines.sources.ali_ccp import AliCCP
from data_pipelines.sources.ali_ccp.lines import FIELD_NAMES, MULTI_VALUED
from data_pipelines.sources.ali_ccp.published import ali_ccp
from tests.cases import cases

CONNECTION = ibis.duckdb.connect(threads=2)

Features = list[tuple[str, str]]
Impression = tuple[str, int, int, str, Features]

LEFT, MIDDLE, RIGHT = "9351665", "9351666", "9351667"

COMMON: dict[str, Features] = {
    "aa11": [("101", "7"), ("124", "20"), ("109_14", "50"), ("109_14", "51"), ("109_14", "52")],
    "bb22": [("101", "8"), ("216", "99"), ("150_14", "60")],
}
TRAIN: list[Impression] = [
    ("1", 0, 0, "aa11", [("205", "300"), ("210", "1"), ("210", "2"), ("301", RIGHT)]),
    ("2", 1, 1, "aa11", [("205", "301"), ("853", "5"), ("301", LEFT), ("206", "40")]),
    ("3", 0, 1, "aa11", [("205", "302"), ("301", LEFT)]),
    ("4", 1, 0, "bb22", [("216", "98"), ("205", "300"), ("301", MIDDLE)]),
]
TEST: list[Impression] = [("1", 1, 0, "cc33", [("205", "303"), ("301", LEFT)])]
COMMON_TEST: dict[str, Features] = {"cc33": [("101", "9")], "aa11": [("101", "10")]}


def to_list(features: Features) -> str:
    return "\x01".join(f"{name}\x02{value}\x031.38629" for name, value in features)


def common_lines(common: dict[str, Features]) -> list[str]:
    return [f"{key},{len(items)},{to_list(items)}" for key, items in common.items()]


def skeleton_lines(impressions: Iterable[Impression]) -> list[str]:
    return [
        f"{sample},{click},{purchase},{key},{len(items)},{to_list(items)}"
        for sample, click, purchase, key, items in impressions
    ]


def write(
    directory: Path,
    train: list[Impression] = TRAIN,
    test: list[Impression] = TEST,
    common: dict[str, Features] = COMMON,
    common_test: dict[str, Features] = COMMON_TEST,
) -> Path:
    files = {
        "common_features_train.csv": common_lines(common),
        "sample_skeleton_train.csv": skeleton_lines(train),
        "common_features_test.csv": common_lines(common_test),
        "sample_skeleton_test.csv": skeleton_lines(test),
    }
    directory.mkdir(exist_ok=True)
    for name, lines in files.items():
        (directory / name).write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path / "ali-ccp")


def read(directory: Path, **settings: Any) -> Source:
    scratch = directory.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return ali_ccp(CONNECTION, directory, scratch, **settings)


def rows_of(source: Source) -> list[dict[str, Any]]:
    rows = source.rows.to_pyarrow().to_pylist()
    return sorted(rows, key=lambda row: (row["split"] or "", row["sample_id"]))


def filled(row: dict[str, Any]) -> dict[str, str]:
    return {name: row[name] for name in FIELD_NAMES if row[name] is not None}


def append(directory: Path, name: str, line: str) -> None:
    with (directory / name).open("a") as file:
        file.write(line + "\n")


def test_rows_by_hand(directory: Path) -> None:
    rows = rows_of(read(directory))
    assert [(row["split"], row["sample_id"]) for row in rows] == [
        (None, "1"),
        (None, "2"),
        (None, "4"),
        ("test", "1"),
    ]
    assert [(row["label"], row["scenario"]) for row in rows] == [(0, 2), (1, 0), (1, 1), (1, 0)]
    user = {"101": "7", "124": "20", "109_14": "52"}
    assert [filled(row) for row in rows] == [
        {**user, "205": "300", "210": "2", "301": RIGHT},
        {**user, "205": "301", "206": "40", "853": "5", "301": LEFT},
        # The common features' 216 stands, not the impression's own.
        {"101": "8", "150_14": "60", "205": "300", "216": "99", "301": MIDDLE},
        {"101": "9", "205": "303", "301": LEFT},
    ]


@pytest.mark.slow
def test_lists_keep_their_last_values(directory: Path) -> None:
    rows = rows_of(read(directory, last_value=False, max_slots=2))
    assert (rows[0]["109_14"], rows[0]["210"], rows[2]["109_14"]) == ("51|52", "1|2", None)
    rows = rows_of(read(directory, last_value=False))
    assert (rows[0]["109_14"], rows[0]["101"]) == ("50|51|52", "7")


def test_a_field_that_takes_one_value_keeps_the_last(tmp_path: Path) -> None:
    common = {**COMMON, "aa11": [("124", "1"), ("124", "2")]}
    rows = rows_of(read(write(tmp_path / "raw", common=common), last_value=False))
    assert rows[0]["124"] == "2"


def test_names_that_begin_alike_are_apart(tmp_path: Path) -> None:
    common = {**COMMON, "aa11": [("127_14", "5"), ("12", "3"), ("127", "4"), ("1270", "6")]}
    row = rows_of(read(write(tmp_path / "raw", common=common)))[0]
    assert (row["127"], row["127_14"]) == ("4", "5")


def test_source_names_its_columns(directory: Path, tmp_path: Path) -> None:
    source = read(directory)
    # fmt: off
    assert [field.name for field in source.fields] == [
        "101", "121", "122", "124", "125", "126", "127", "128", "129", "205", "206", "207",
        "210", "216", "508", "509", "702", "853", "301", "109_14", "110_14", "127_14", "150_14",
    ]
    # fmt: on
    assert source.fields[18].name == "301"
    assert {field.separator for field in source.fields} == {None}
    assert "purchase" not in source.rows.columns
    assert source.dropped == {"purchase without a click": 1}
    assert source.scenarios == (LEFT, MIDDLE, RIGHT)
    assert (source.scenario_field, source.user_field, source.item_field) == ("301", "101", "205")
    assert [path.name for path in source.files] == [
        "common_features_train.csv",
        "sample_skeleton_train.csv",
        "common_features_test.csv",
        "sample_skeleton_test.csv",
    ]
    lists = {field.name for field in read(directory, last_value=False).fields if field.separator}
    # fmt: off
    assert lists == {
        "210", "508", "509", "702", "853", "109_14", "110_14", "127_14", "150_14",
    } == set(MULTI_VALUED)
    # fmt: on
    assert AliCCP(files=directory, out=tmp_path / "out").config == PrepareConfig(min_count=10)


@pytest.mark.slow
def test_positions_are_numbered_by_their_code_not_their_place(tmp_path: Path) -> None:
    for name, order in [("a", TRAIN), ("b", TRAIN[::-1])]:
        source = read(write(tmp_path / name, train=order))
        assert source.scenarios == (LEFT, MIDDLE, RIGHT)
    codes = ["10", "9"]
    train = [("1", 0, 0, "aa11", [("301", code)]) for code in codes]
    source = read(write(tmp_path / "c", train=train, test=train, common_test=COMMON))
    assert source.scenarios == ("9", "10")


def test_positions_can_be_given(directory: Path) -> None:
    source = read(directory, positions=(RIGHT, LEFT, MIDDLE))
    assert source.scenarios == (RIGHT, LEFT, MIDDLE)
    assert [row["scenario"] for row in rows_of(source)] == [0, 1, 2, 1]
    assert source.scenario_values == {RIGHT: RIGHT, LEFT: LEFT, MIDDLE: MIDDLE}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([("301", "77")], r"^file sample_skeleton_test.csv, line 2: field 301 is 77; the known "),
        ([("205", "1")], f"line 2: field 301 is missing; .* are {LEFT}, {MIDDLE}, {RIGHT}$"),
    ],
)
def test_unknown_position_in_test(tmp_path: Path, features: Features, message: str) -> None:
    test = [*TEST, ("2", 0, 0, "cc33", features)]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "raw", test=test))


def test_position_that_was_not_given(directory: Path) -> None:
    message = rf"train.csv, line 4: field 301 is {MIDDLE}; the known positions are {LEFT}, {RIGHT}$"
    with pytest.raises(DataError, match=message):
        read(directory, positions=(LEFT, RIGHT))


@pytest.mark.parametrize("end", cases(["\r\n", "\n\n", "\n \n"], quick=["\r\n"]))
def test_line_ends_and_blank_lines(directory: Path, end: str) -> None:
    expected = rows_of(read(directory))
    for path in directory.iterdir():
        path.write_bytes(path.read_text().replace("\n", end).encode())
    assert rows_of(read(directory)) == expected


GOOD = to_list([("205", "1"), ("301", LEFT)])


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "sample_skeleton_train.csv",
            "9,0,0,aa11",
            r"^file sample_skeleton_train.csv, line 5: 4 columns, expected 6 \(sample_id,click,"
            r"purchase,common_feature_index,feature_num,feature_list\); download the file again$",
        ),
        ("sample_skeleton_test.csv", f"9,0,0,cc33,2,{GOOD},1", "line 2: 7 columns, expected 6"),
        # The beginning of a good line is another line.
        ("sample_skeleton_train.csv", "1,0,0,aa11", "line 5: 4 columns, expected 6"),
        ("sample_skeleton_train.csv", f"9,2,0,aa11,2,{GOOD}", "line 5: click is '2'; download"),
        ("sample_skeleton_train.csv", f"9,0,,aa11,2,{GOOD}", "line 5: purchase is ''; download"),
        ("sample_skeleton_train.csv", f",0,0,aa11,2,{GOOD}", "line 5: sample_id is ''"),
        ("sample_skeleton_train.csv", f"9,0,0,,2,{GOOD}", "line 5: common_feature_index is ''"),
        ("sample_skeleton_train.csv", f"9,0,0,aa11,x,{GOOD}", "line 5: feature_num is 'x'"),
        (
            "sample_skeleton_train.csv",
            f"9,0,0,aa11,3,{GOOD}\x01206\x022",
            r"line 5: item '206\\x022' is not field\\x02id\\x03value; download the file again$",
        ),
        ("sample_skeleton_train.csv", f"9,0,0,aa11,3,{GOOD}\x01", r"line 5: item '' is not field"),
        (
            "sample_skeleton_train.csv",
            f"9,0,0,aa11,3,{GOOD}\x01206\x02\x031",
            r"line 5: item '206\\x02\\x031' is not",
        ),
        (
            "sample_skeleton_train.csv",
            f"9,0,0,aa11,3,{GOOD}\x01206\x021|2\x031",
            r"line 5: item '206\\x021\|2\\x031' is not",
        ),
        ("common_features_train.csv", "dd44,1", r"common_features_train.csv, line 3: 2 columns, "),
        ("common_features_test.csv", "dd44,1,101", "test.csv, line 3: item '101' is not field"),
        (
            "sample_skeleton_train.csv",
            f"9,0,0,cc33,2,{GOOD}",
            r"^file sample_skeleton_train.csv, line 5: common_feature_index 'cc33' is not in "
            "common_features_train.csv; take both files from one download$",
        ),
        (
            "common_features_train.csv",
            "aa11,0,",
            r"^file common_features_train.csv: common_feature_index 'aa11' appears more than once, "
            "in lines 1, 3; download the file again$",
        ),
    ],
)
def test_bad_line(directory: Path, name: str, line: str, message: str) -> None:
    append(directory, name, line)
    with pytest.raises(DataError, match=message):
        read(directory)


def test_bytes_that_are_no_text(directory: Path) -> None:
    with (directory / "sample_skeleton_test.csv").open("ab") as file:
        file.write(b"9,0,0,cc33,1,205\x02\xff\x031\n")
    message = r"file sample_skeleton_test.csv can't be read as lines of UTF-8 \(.*\); download"
    with pytest.raises(DataError, match=message):
        read(directory)


def test_missing_and_empty_files(directory: Path) -> None:
    (directory / "sample_skeleton_test.csv").write_text("")
    with pytest.raises(DataError, match=r"file sample_skeleton_test.csv is empty; download the"):
        read(directory)
    (directory / "sample_skeleton_test.csv").unlink()
    message = (
        "ali-ccp has no sample_skeleton_test.csv, only common_features_test.csv, "
        "common_features_train.csv, sample_skeleton_train.csv; unpack sample_train and sample_test"
    )
    with pytest.raises(DataError, match=message):
        read(directory)


def test_slots_out_of_range(directory: Path) -> None:
    with pytest.raises(ConfigError, match="max_slots is 0; it must be at least 1"):
        read(directory, max_slots=0)


def test_progress_names_the_files(directory: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    read(directory, progress=lambda *step: seen.append(step))
    assert seen == [
        ("reading common_features_train.csv", 0, 4),
        ("reading sample_skeleton_train.csv", 1, 4),
        ("reading common_features_test.csv", 2, 4),
        ("reading sample_skeleton_test.csv", 3, 4),
    ]


def some_half(draw: random.Random, name: str) -> tuple[list[Impression], dict[str, Features]]:
    """600 impressions, a quarter of them of one user; any field in either file, lists of any."""

    def features(names: Iterable[str], size: int) -> Features:
        return [
            (field, str(1 + int(draw.paretovariate(0.5)) % size))
            for field in names
            if draw.random() < 0.8
            for _ in range(draw.randrange(1, 6) if field in MULTI_VALUED else 1)
        ]

    common = {f"{name}{k}": features([*FIELD_NAMES[:9], *FIELD_NAMES[19:]], 9) for k in range(40)}
    for key in list(common)[:5]:
        common[key] += features(["205", "210"], 50)
    impressions = []
    for sample in range(600):
        key = f"{name}{min(int(draw.paretovariate(0.4)), 39)}"
        items = [*features(FIELD_NAMES[9:18], 300), ("301", draw.choice([LEFT, MIDDLE, RIGHT]))]
        draw.shuffle(items)
        click = int(draw.random() < 0.3)
        impressions.append((str(sample), click, int(draw.random() < 0.05), key, items))
    return impressions, common


def expected_values(
    impression: Impression, common: dict[str, Features], most: int
) -> dict[str, list[str]]:
    """The last `most` values of each field, of the common features where they have it."""
    own, shared = impression[4], common[impression[3]]
    values = {}
    for name in FIELD_NAMES:
        found = [v for n, v in shared if n == name] or [v for n, v in own if n == name]
        values[name] = found[-most if name in MULTI_VALUED else -1 :]
    return values


def decoded(prepared: Prepared, split: str) -> Counter[tuple[Any, ...]]:
    """Rows as (label, scenario, values of each field), None for an unknown value."""
    names = {
        field.name: [None, *prepared.vocabulary(field.name)["value"].to_pylist()]
        for field in prepared.schema.fields
    }
    owner = prepared.schema.slot_field
    rows = prepared.rows(split)
    return Counter(
        (
            int(label),
            int(scenario),
            *(
                frozenset(names[field.name][value] for value in row[owner == at] if value >= 0)
                for at, field in enumerate(prepared.schema.fields)
            ),
        )
        for row, scenario, label in zip(rows.ids, rows.scenario, rows.label, strict=True)
    )


@pytest.mark.parametrize("most", [1, 3])
def test_prepared_rows_agree_with_plain_python(tmp_path: Path, most: int) -> None:
    draw = random.Random(most)
    (train, common), (test, common_test) = some_half(draw, "a"), some_half(draw, "b")
    raw = write(tmp_path / "raw", train, test, common, common_test)
    source = read(raw, last_value=most == 1, max_slots=3)
    prepared = prepare(source, tmp_path / "out", PrepareConfig(min_count=10))
    check_rows(prepared)
    dropped = sum(line[1:3] == (0, 1) for line in [*train, *test])
    assert dropped > 10
    assert prepared.provenance["dropped"] == {"purchase without a click": dropped}
    rows: dict[str, list[tuple[Impression, dict[str, list[str]]]]] = {s: [] for s in SPLITS}
    for impression in train:
        digest = hashlib.md5(f"0|{impression[0]}".encode()).hexdigest()
        split = "validation" if int(digest, 16) < 0.1 * 2**128 else "train"
        rows[split].append((impression, expected_values(impression, common, most)))
    rows["test"] = [(line, expected_values(line, common_test, most)) for line in test]
    rows = {
        split: [pair for pair in pairs if pair[0][1:3] != (0, 1)] for split, pairs in rows.items()
    }
    counts = Counter(
        (name, value)
        for _, values in rows["train"]
        for name in FIELD_NAMES
        for value in set(values[name])
    )
    for split, pairs in rows.items():
        assert decoded(prepared, split) == Counter(
            (
                impression[1],
                [LEFT, MIDDLE, RIGHT].index(values["301"][0]),
                *(
                    frozenset(v for v in values[name] if counts[name, v] >= 10) or frozenset({None})
                    for name in FIELD_NAMES
                ),
            )
            for impression, values in pairs
        )
    assert max(field.slots for field in prepared.schema.fields) == most
