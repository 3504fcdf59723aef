"""MovieLens-1M: rows, labels and scenarios of invented files, and every message about bad ones."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ibis
import numpy as np
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import check_rows
from d3jax.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import PrepareConfig
from data_pipelines.sources.movielens import SCENARIOS, movielens_1m, opened

USERS = """1::F::1::10::02139
2::M::18::0::55117-1234
3::M::25::15::55117
4::F::56::7::V1A
"""
MOVIES = """1::Été à la mer (1995)::Animation|Comedy
2::1984 (1956)::Drama
30::"Quoted", or not (a.k.a. Other) (2000)::Comedy|Drama|War
"""
RATINGS = """1::1::5::900000001
2::1::4::900000002
2::30::3::900000003
3::2::1::900000004
4::30::4::900000005
"""
FILES = {"users.dat": USERS, "movies.dat": MOVIES, "ratings.dat": RATINGS}

SAMPLE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "ml-1m-sample"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "ml-1m"
    path.mkdir()
    for name, text in FILES.items():
        (path / name).write_bytes(text.encode("latin-1"))
    return path


CONNECTION = ibis.duckdb.connect()


def read(directory: Path) -> list[tuple[object, ...]]:
    rows = movielens_1m(CONNECTION, directory).rows.to_pyarrow().to_pylist()
    return sorted(tuple(row.values()) for row in rows)


def append(directory: Path, name: str, text: str) -> None:
    with (directory / name).open("ab") as file:
        file.write(text.encode("latin-1"))


def test_rows_by_hand(directory: Path) -> None:
    quoted = ("Comedy|Drama|War", "2000")
    assert read(directory) == [
        ("1", "1", "F", "1", "10", "02139", "Animation|Comedy", "1995", 900000001, 1, 0),
        ("2", "1", "M", "18", "0", "55117-1234", "Animation|Comedy", "1995", 900000002, 1, 0),
        ("2", "30", "M", "18", "0", "55117-1234", *quoted, 900000003, 0, 0),
        ("3", "2", "M", "25", "15", "55117", "Drama", "1956", 900000004, 0, 1),
        ("4", "30", "F", "56", "7", "V1A", *quoted, 900000005, 1, 2),
    ]


def test_source_names_its_columns(directory: Path) -> None:
    source = movielens_1m(CONNECTION, directory)
    names = [field.name for field in source.fields]
    assert names == ["user", "movie", "gender", "age", "occupation", "zip", "genres", "year"]
    assert {field.name: field.separator for field in source.fields if field.separator} == {
        "genres": "|"
    }
    assert source.scenarios == ("under 25", "25-34", "35 and over")
    assert source.scenario_values == {
        "1": "under 25",
        "18": "under 25",
        "25": "25-34",
        "35": "35 and over",
        "45": "35 and over",
        "50": "35 and over",
        "56": "35 and over",
    }
    assert (source.scenario_field, source.user_field, source.item_field) == ("age", "user", "movie")
    assert source.key == ("user", "movie", "timestamp")
    assert source.label_rule == "rating > 3"
    assert source.files == tuple(directory / name for name in FILES)


@pytest.mark.parametrize(
    ("end", "tail"),
    [("\r\n", ""), ("\r\n", "\r\n"), ("\n", "\r\n"), ("\n\n", "\n\n"), ("\n \r\n", "")],
)
def test_line_ends_and_blank_lines(directory: Path, end: str, tail: str) -> None:
    expected = read(directory)
    for name, text in FILES.items():
        changed = text.rstrip().replace("\n", end) + tail
        (directory / name).write_bytes(changed.encode("latin-1"))
    assert read(directory) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "ratings.dat",
            "4::1::2",
            r"^file ratings.dat, line 6: 3 columns, expected 4 "
            r"\(UserID::MovieID::Rating::Timestamp\): '4::1::2'; download the file again$",
        ),
        ("ratings.dat", "4::1::2::3::4", r"ratings.dat, line 6: 5 columns, expected 4"),
        ("users.dat", "\n\n5::M::1", r"users.dat, line 7: 3 columns, expected 5 \(UserID::Gender"),
        ("movies.dat", "31", r"movies.dat, line 4: 1 columns, expected 3 .*: '31'; download"),
        (
            "ratings.dat",
            "4::1::6::1",
            r"line 6: Rating '6' is not a whole number from 1 to 5: '4::1::6::1'; download",
        ),
        ("ratings.dat", "4::1::0::1", r"line 6: Rating '0' is not a whole number from 1 to 5"),
        ("ratings.dat", "4::1::4.5::1", r"line 6: Rating '4.5' is not a whole number"),
        ("ratings.dat", "4::1::::1", r"line 6: Rating '' is not a whole number"),
        ("ratings.dat", "4::1::5\x00::1", r"line 6: Rating '5\\x00' is not a whole number"),
        ("ratings.dat", "4::1::\x01::1", r"line 6: Rating '\\x01' is not a whole number"),
        ("ratings.dat", "4::1::5::", r"line 6: Timestamp '' is not a number of seconds"),
        (
            "users.dat",
            "5::M::17::1::1",
            r"users.dat, line 5: Age '17' is not an age code \(1, 18, 25, 35, 45, 50, 56\)",
        ),
        (
            "ratings.dat",
            "9::1::5::1",
            r"ratings.dat, line 6: UserID '9' is not in users.dat; take the three files from one",
        ),
        ("ratings.dat", "4::3::5::1", r"ratings.dat, line 6: MovieID '3' is not in movies.dat"),
        (
            "users.dat",
            "3::F::1::1::1",
            r"^file users.dat: UserID '3' appears more than once, in lines 3, 5; download",
        ),
        (
            "movies.dat",
            "2::Another (1999)::War",
            r"^file movies.dat: MovieID '2' appears more than once, in lines 2, 4; download",
        ),
        (
            "movies.dat",
            "31::\x85 (1999)::War",
            r"movies.dat can't be read as Latin-1 lines \(.*lat",
        ),
    ],
)
def test_bad_line(directory: Path, name: str, text: str, message: str) -> None:
    append(directory, name, text)
    with pytest.raises(DataError, match=message):
        movielens_1m(CONNECTION, directory)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=f"file {name} is empty; download the file again"):
        movielens_1m(CONNECTION, directory)


@pytest.mark.parametrize("enter", [lambda path: opened(path).__enter__(), read])
def test_missing_file(directory: Path, enter: Callable[[Path], object]) -> None:
    (directory / "movies.dat").rename(directory / "films.dat")
    message = (
        r"ml-1m has no movies.dat, only films.dat, ratings.dat, users.dat; "
        "MovieLens-1M has users.dat, movies.dat, ratings.dat"
    )
    with pytest.raises(DataError, match=message):
        enter(directory)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ml-1m.zip is missing; give the MovieLens-1M directory"):
        opened(tmp_path / "ml-1m.zip").__enter__()
    with pytest.raises(DataError, match=r"has no users.dat, only nothing"):
        opened(tmp_path).__enter__()


def test_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"ml-1m.zip is neither a directory nor a zip file; down"):
        opened(tmp_path / "ml-1m.zip").__enter__()


def zipped(directory: Path, folder: str, **more: str) -> Path:
    path = directory.parent / "ml-1m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}README", "read me")
        for name in FILES:
            archive.write(directory / name, f"{folder}{name}")
        for name, text in more.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("folder", ["", "ml-1m/", "../../escaped/", "/rooted/"])
def test_zip_is_the_same_as_its_directory(directory: Path, folder: str) -> None:
    before = {path.name for path in directory.parent.iterdir()}
    with opened(zipped(directory, folder)) as inside:
        assert {path.name for path in inside.iterdir()} == set(FILES)
        assert all(
            (inside / name).read_bytes() == (directory / name).read_bytes() for name in FILES
        )
        assert read(inside) == read(directory)
    assert not inside.exists()
    assert {path.name for path in directory.parent.iterdir()} == before | {"ml-1m.zip"}
    assert not (directory.parents[2] / "escaped").exists()


def test_zip_without_a_file(directory: Path) -> None:
    path = directory.parent / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", "1")
    with pytest.raises(
        DataError, match=r"other.zip has no users.dat, only u.data; MovieLens-1M has"
    ):
        opened(path).__enter__()


def test_zip_with_a_file_twice(directory: Path) -> None:
    path = zipped(directory, "ml-1m/", **{"copy/users.dat": USERS})
    with pytest.raises(DataError, match=r"ml-1m.zip has users.dat in several folders; keep one"):
        opened(path).__enter__()


def test_damaged_zip(directory: Path) -> None:
    path = zipped(directory, "")
    content = bytearray(path.read_bytes())
    start = content.index(b"users.dat") + len("users.dat") + 8
    content[start] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ml-1m.zip is damaged \(.*\); download the file again"):
        opened(path).__enter__()


def test_locked_zip(directory: Path) -> None:
    path = zipped(directory, "")
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for start in [n for n in range(len(content)) if content[n : n + 4] == mark]:
            content[start + place] |= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"ml-1m.zip can't be unpacked \(.*password.*or unpack it and give the dir"
    ):
        opened(path).__enter__()


def test_no_byte_of_a_zip_brings_another_error(directory: Path) -> None:
    path = zipped(directory, "")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flipped in (0xFF, 0x01, 0x08):
            content = bytearray(whole)
            content[place] ^= flipped
            path.write_bytes(content)
            with suppress(DataError), opened(path):
                pass


def lines_of(directory: Path, name: str) -> list[list[str]]:
    text = (directory / name).read_text(encoding="latin-1")
    return [line.split("::") for line in text.splitlines()]


needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the MovieLens sample is not here")


@needs_sample
def test_real_sample_agrees_with_plain_python(tmp_path: Path) -> None:
    source = movielens_1m(CONNECTION, SAMPLE)
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    check_rows(prepared)
    ages = {line[0]: int(line[2]) for line in lines_of(SAMPLE, "users.dat")}
    ratings = lines_of(SAMPLE, "ratings.dat")
    expected = Counter(
        (sum(ages[user] >= bound for bound in (25, 35)), int(rating) > 3)
        for user, _, rating, _ in ratings
    )
    found: Counter[tuple[int, bool]] = Counter()
    ratings_of_user: Counter[str] = Counter()
    users = ["unknown", *prepared.vocabulary("user")["value"].to_pylist()]
    for split in SPLITS:
        ids, scenario, label = prepared.rows(split)
        found.update(zip(scenario.tolist(), (label > 0).tolist(), strict=True))
        ratings_of_user.update(users[user] for user in ids[:, 0])
    assert found == expected
    del ratings_of_user["unknown"]
    all_ratings = Counter(line[0] for line in ratings)
    assert ratings_of_user == {user: all_ratings[user] for user in users[1:]}
    assert len(prepared.rows("test").label) == pytest.approx(20_000, abs=500)
    assert len(prepared.rows("validation").label) == pytest.approx(8_000, abs=350)
    years = {line[0]: line[1].rstrip()[-5:-1] for line in lines_of(SAMPLE, "movies.dat")}
    genres = {line[0]: line[2].split("|") for line in lines_of(SAMPLE, "movies.dat")}
    check_movies(prepared, years, genres)


def check_movies(prepared, years: dict[str, str], genres: dict[str, list[str]]) -> None:
    ids = np.asarray(prepared.rows("train").ids)
    texts = {
        name: ["", *prepared.vocabulary(name)["value"].to_pylist()]
        for name in ("movie", "genres", "year")
    }
    for row in ids[:2000]:
        movie = texts["movie"][row[1]]
        assert texts["year"][row[-1]] == years[movie]
        assert {texts["genres"][value] for value in row[6:-1] if value > 0} == set(genres[movie])
        assert [value for value in row[6:-1] if value > 0] == sorted(set(row[6:-1]) - {-1})


@needs_sample
@pytest.mark.slow
def test_order_of_ratings_does_not_show(tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled"
    shutil.copytree(SAMPLE, shuffled, copy_function=shutil.copyfile)
    shuffled.chmod(0o755)
    lines = (SAMPLE / "ratings.dat").read_bytes().splitlines(keepends=True)
    (shuffled / "ratings.dat").write_bytes(b"".join(random.Random(0).sample(lines, len(lines))))
    outs = []
    for directory, threads in [(SAMPLE, 1), (shuffled, 3)]:
        source = movielens_1m(ibis.duckdb.connect(threads=threads), directory)
        outs.append(prepare(source, tmp_path / f"out{threads}", PrepareConfig()).directory)
    names = [path.relative_to(outs[0]) for path in outs[0].rglob("*.*")]
    assert len(names) == 3 * len(SPLITS) + 8 + 3
    differing = [
        str(name)
        for name in names
        if (outs[0] / name).read_bytes() != (outs[1] / name).read_bytes()
    ]
    # Only the checksum of ratings.dat differs, and that of the schema that holds it.
    assert sorted(differing) == ["checksums.json", "schema.json"]


def test_scenarios_are_in_the_order_of_age() -> None:
    assert SCENARIOS == ("under 25", "25-34", "35 and over")
