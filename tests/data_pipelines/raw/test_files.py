"""Raw files against Python's csv module, and the message of everything that can be wrong."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import tempfile
import zipfile
from contextlib import nullcontext
from encodings.aliases import aliases
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d3jax.data.format import Format
from d3jax.data.reading import find_files, open_files, raw_batches, text_batches
from d3jax.errors import ConfigError, DataError
from data_pipelines.raw.engine import duckdb_engine
from data_pipelines.raw.files import (
    Raw,
    check_unique,
    check_values,
    places,
    read_raw,
    require_columns,
)
from data_pipelines.raw.stage import Stage

Rows = list[list[str | None]]


@pytest.fixture(scope="module")
def engine() -> ibis.BaseBackend:
    return ibis.duckdb.connect(threads=2)


@pytest.fixture
def read(engine: ibis.BaseBackend, tmp_path: Path) -> Any:
    """`read(content, name, **format)`: writes a file and reads it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def write_and_read(content: bytes, name: str = "log.csv", **form: Any) -> Raw:
        (tmp_path / name).write_bytes(content)
        return read_raw(engine, tmp_path / name, scratch, Format(**form))

    return write_and_read


def zipped(content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("log.csv", content)
    return made.getvalue()


def to_rows(table: pa.Table | pa.RecordBatch) -> Rows:
    columns = (column.to_pylist() for column in table.columns)
    return [list(row) for row in zip(*columns, strict=True)]


def rows_of(raw: Raw) -> Rows:
    return to_rows(raw.table.to_pyarrow())


def sorted_rows(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: [cell or "" for cell in row])


def reference(content: bytes) -> tuple[list[str], Rows] | None:
    """Header and rows by Python's csv module; None for what it does not accept."""
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        lines = list(csv.reader(text, strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    if not lines or not lines[0]:
        return None
    header, *rows = [line for line in lines if line]
    names = [name.strip() for name in header]
    if not any(header):
        return None
    lowered = [name.lower() for name in names]
    names = [
        name if name and name.isprintable() and lowered.count(name.lower()) == 1 else f" column {n}"
        for n, name in enumerate(names, 1)
    ]
    if any(len(row) != len(header) for row in rows):
        return None
    return names, [[cell or None for cell in row] for row in rows]


def check_against_reference(content: bytes) -> None:
    expected = reference(content)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "any.csv").write_bytes(content)
        with nullcontext() if expected else pytest.raises(DataError):
            files = open_files([folder / "any.csv"], Format(), folder)
            rows = [row for batch in text_batches(files) for row in to_rows(batch)]
        if expected is not None:
            assert (list(files.columns), rows) == expected


PIECES = [
    *(b'"', b'""', b",", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\v", b"x", b"1", b"\0"),
    *("é".encode(), b"\xff", b"\xef\xbb\xbf", b"NULL", b"#", b"\\", b"'"),
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from([b"", b"a,b\n", b"a\n"]))
@example([b"\x1f\x8b"], b"")
def test_any_bytes_are_read_as_csv_reads_them_or_refused(pieces: list[bytes], start: bytes) -> None:
    check_against_reference(start + b"".join(pieces))


CELLS = st.one_of(
    st.sampled_from(["", "x", "1", 'say "hi"', "a,b", "two\nlines", "two\r\nlines", " x ", "é"]),
    st.text(st.characters(codec="utf-8"), max_size=4),
)


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1)
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_csv_writes_is_read_back(rows: list[list[str]], end: str, quoting: int) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([[f"column {n}" for n in range(len(rows[0]))], *rows])
    check_against_reference(text.getvalue().encode())


def test_columns_are_strings_and_empty_is_null(read: Any) -> None:
    raw = read(b'user,n,t\n007,"",NULL\n"a""b,\n",1e3,\n')
    assert set(raw.table.schema().values()) == {ibis.dtype("string")}
    assert sorted_rows(rows_of(raw)) == [["007", None, "NULL"], ['a"b,\n', "1e3", None]]


def test_byte_order_mark_and_blanks_in_the_header(read: Any) -> None:
    raw = read(b"\xef\xbb\xbfuser, new_class_level \r\n1,2\r\n")
    assert raw.columns == ("user", "new_class_level")
    assert rows_of(raw) == [["1", "2"]]


def test_atomic_files_have_types_in_the_header(read: Any) -> None:
    raw = read(b"user_id:token\tclass:token_seq\n1\tAction Comedy\n", "ml.inter")
    assert raw.columns == ("user_id", "class")
    assert rows_of(raw) == [["1", "Action Comedy"]]


def test_blanks_beside_quotes_stay_as_csv_has_them(read: Any) -> None:
    assert rows_of(read(b'a,b\n "q",x\n')) == [[' "q"', "x"]]


def test_line_ends_of_two_systems(read: Any) -> None:
    assert rows_of(read(b"a,b\n1,2\r\n3,4\n")) == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize("name", ["latin-1", "utf-16", "gbk", "utf-8-sig"])
def test_encodings(read: Any, name: str) -> None:
    text = "a,b\nü,x\n" if name != "gbk" else "a,b\n中,x\n"
    raw = read(text.encode(name), encoding=name)
    assert rows_of(raw) == [[text[4], "x"]]


def test_gzip(read: Any) -> None:
    assert rows_of(read(gzip.compress(b"a,b\n1,2\n"), "log.csv.gz")) == [["1", "2"]]
    assert rows_of(read(gzip.compress(b"a\tb\n1\t2\n"), "log.inter.gz")) == [["1", "2"]]


def test_separators(read: Any) -> None:
    assert rows_of(read(b"a;b\n1;2\n", "log.txt", separator=";")) == [["1", "2"]]
    assert rows_of(read(b"a\tb\n1\t2\n", "log.csv", separator="tab")) == [["1", "2"]]


def test_directory_of_files(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    folder = tmp_path / "it's [1]"
    for path in (scratch, folder):
        path.mkdir()
    (folder / "part-1.csv").write_text("a,b\n3,4\n")
    (folder / "part-0.csv").write_text("\ufeffa,b\r\n1,2\r\n")
    (folder / "_SUCCESS").write_text("")
    raw = read_raw(engine, folder, scratch)
    assert [path.name for path in raw.files] == ["part-0.csv", "part-1.csv"]
    assert sorted_rows(rows_of(raw)) == [["1", "2"], ["3", "4"]]
    (tmp_path / "x1.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"x\*.csv is missing; give a file or a directory of files"):
        read_raw(engine, tmp_path / "x*.csv", scratch)
    (folder / "part-2.csv").write_text("a,c\n5,6\n")
    message = "file part-2.csv has the columns a, c, but part-0.csv has a, b; give files of one"
    with pytest.raises(DataError, match=message):
        read_raw(engine, folder, scratch)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file log.csv is empty; download or write the file again"),
        (b"\n1\n", "file log.csv, line 1 is blank; the header belongs there"),
        (b",\n1,2\n", "file log.csv, line 1 is blank; the header belongs there"),
        (
            b"a,b\n1,2\n\n3\n4,5\n",
            r"file log.csv, line 4: 1 columns, expected 2 \(a, b\): '3'; quote values that hold",
        ),
        (b"a,b\n1,2\n3,4,5\n", r"line 3: 3 columns, expected 2 \(a, b\): '3,4,5'"),
        (b'a,b\n"1\n\n",2\n3\n', "line 5: 1 columns, expected 2"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3: unexpected end of data, in the row that begins there"),
        (b'a,b\n1,"2"3\n', "line 2: ',' expected after '\"', in the row that begins there; close"),
        (b"a,b\n1,2\n3,\xe9\n", r"line 3: the bytes b'\\xe9' are not utf-8; say the file's enc"),
        (b"a,\xe9\n1,2\n", r"line 1: the bytes b'\\xe9' are not utf-8; .* with --encoding"),
        (b"a\n" + b'"' * 7, "line 2: unexpected end of data"),
    ],
)
def test_unreadable_text(read: Any, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content)


def test_bytes_that_the_stated_encoding_lacks(read: Any) -> None:
    with pytest.raises(DataError, match=r"line 2: the bytes b'\\xff' are not gbk; say the file's"):
        read(b"a\n\xff\xff\n", encoding="gbk")
    with pytest.raises(DataError, match=r"file log.csv is not utf-16|are not utf-16"):
        read(b"a\n1\n", encoding="utf-16")


@pytest.mark.parametrize("keep", [5, 15, 40])
def test_gzip_cut_short(read: Any, keep: int) -> None:
    packed = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(99)))
    with pytest.raises(DataError, match=r"log.csv.gz is damaged or cut short \(.*\); download"):
        read(packed[:keep], "log.csv.gz")


def test_gzip_with_a_flipped_bit(read: Any) -> None:
    packed = bytearray(gzip.compress(b"a,b\n" + b"1,2\n" * 99))
    packed[-6] ^= 1
    with pytest.raises(DataError, match=r"file log.csv.gz is damaged or cut short"):
        read(bytes(packed), "log.csv.gz")


def test_missing_files(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none.csv is missing; give a file or a directory of files"
    ):
        read_raw(engine, tmp_path / "none.csv", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no files; give a file"):
        read_raw(engine, tmp_path / "empty", tmp_path)


def test_suffix_that_tells_nothing(read: Any) -> None:
    with pytest.raises(DataError, match=r"log.txt does not tell what .*; say it with --separator"):
        read(b"a\n", "log.txt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"separator": "::"}, "separator is '::'; it must be one ASCII character"),
        ({"separator": '"'}, "it must be one ASCII character other than a quote or a line end"),
        ({"separator": "é"}, "separator is 'é'"),
        ({"encoding": "latin-99"}, "encoding is 'latin-99', which Python does not know"),
    ],
)
def test_format_out_of_range(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Format(**settings)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


def test_parquet_becomes_strings(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    columns = {
        "user": pa.array([7, None, 9]),
        "price": pa.array([1.0, float("nan"), 2.5]),
        "name": pa.array(["nan", "", "x"]),
        "kind": pa.array(["p", "q", "p"]).dictionary_encode(),
    }
    write_table(tmp_path / "log.parquet", columns)
    raw = read_raw(engine, tmp_path / "log.parquet", tmp_path)
    assert rows_of(raw) == [
        ["7", "1.0", "nan", "p"],
        [None, None, None, "q"],
        ["9", "2.5", "x", "p"],
    ]
    assert list(places(raw, lambda row: row["kind"] == "p")) == [
        "file log.parquet, row 1",
        "file log.parquet, row 3",
    ]


def test_unreadable_parquet(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    write_table(path, {"a": pa.array(["x"])})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"file log.parquet can't be read as Parquet"):
        read_raw(engine, path, tmp_path)


UNUSABLE = [
    ("a", r"file log.\w+ has the column '[aA]' twice; rename one \(capital letters make no diff"),
    ("", r"file log.\w+: column 3 of the header is '', which can't be a name; rename it"),
]


@pytest.mark.parametrize(("name", "message"), UNUSABLE)
def test_only_names_that_are_used_are_judged(read: Any, name: str, message: str) -> None:
    raw = read(b"a,A,,b\n1,2,3,4\n")
    assert raw.columns == (" column 1", " column 2", " column 3", "b")
    assert rows_of(raw) == [["1", "2", "3", "4"]]
    require_columns(raw, ["b"])
    with pytest.raises(DataError, match=message):
        require_columns(raw, [name])


def test_only_types_that_are_used_are_judged(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    made = pa.table(
        [pa.array([{"z": 1}]), pa.array(["x"]), pa.array([b"\xff"]), pa.array(["y"])],
        names=["s", "a", "bytes", "A"],
    )
    pq.write_table(made, path)
    raw = read_raw(engine, path, tmp_path)
    assert rows_of(raw) == [["x", "0xff", "y"]]
    with pytest.raises(DataError, match=r"column 's' is struct<.*>, which has no text; give str"):
        require_columns(raw, ["s"])
    with pytest.raises(DataError, match=UNUSABLE[0][1]):
        require_columns(raw, ["a"])


def test_lists_are_one_text_with_a_separator(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    write_table(path, {"tags": pa.array([["a", "b"], [], None, ["c", None]])})
    raw = read_raw(engine, path, tmp_path)
    assert raw.opened.lists == {"tags"}
    assert rows_of(raw) == [["a\x1fb"], [None], [None], ["c\x1f"]]
    write_table(path, {"tags": pa.array([["a\x1fb"]])})
    with pytest.raises(DataError, match=r"an item of the list column 'tags' holds the control"):
        read_raw(engine, path, tmp_path)
    write_table(tmp_path / "a.parquet", {"tags": pa.array(["a"])})
    message = "log.parquet: column 'tags' is a list column in one of the files"
    with pytest.raises(DataError, match=message):
        read_raw(engine, [tmp_path / "a.parquet", path], tmp_path)


def test_a_text_of_any_length(read: Any) -> None:
    history = " ".join(map(str, range(100_000)))
    assert rows_of(read(f"a,b\n{history},2\n".encode())) == [[history, "2"]]


PATHS = [
    "click=1",
    "a[b]c",
    "x*y",
    "q?z",
    "it's",
    '"',
    "{a,b}",
    "a b",
    "年" * 60,
    "-x",
    "\\",
    "%41",
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_paths_are_literal(name: str, suffix: str, tmp_path: Path) -> None:
    """No pattern is looked for in a path, and no folder of it adds or changes a column."""
    folder = tmp_path / name
    folder.mkdir()
    table = pa.table({"click": ["0", "1"], "tab": ["x", "y"]})
    path = folder / f"{name}{suffix}"
    if suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    engine = duckdb_engine(folder, threads=1)
    raw = read_raw(engine, path, folder)
    stage = Stage(engine, folder)
    assert to_rows(stage(name, raw.table.order_by("click")).to_pyarrow()) == [
        ["0", "x"],
        ["1", "y"],
    ]
    assert [row for batch in stage.batches(name) for row in to_rows(batch)][1] == ["1", "y"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_read_in_the_order_asked_for(tmp_path: Path, kind: str) -> None:
    count = 300_000
    user = pa.array(np.arange(count))
    table = pa.table(
        {"extra": ["some, \n text" * 6] * count, "tags": ["NULL"] * count, "user": user}
    )
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=1000)
    files = open_files([path], Format(), tmp_path)
    batches = list(raw_batches(files, ["user", "tags"]))
    assert len(batches) > 1
    assert all(batch.schema.names == ["user", "tags"] for batch in batches)
    read = pa.Table.from_batches(batches)
    assert read["user"].cast(pa.int64()).to_numpy().tolist() == list(range(count))
    assert read["tags"][-1].as_py() == "NULL"
    with pytest.raises(DataError, match=r"rows.\w+ has no column 'tag'; it has extra, tags, user$"):
        next(raw_batches(files, ["user", "tag"]))


def test_values_are_checked_with_their_place(read: Any) -> None:
    raw = read(b'user,click\n"a\nb",1\nc,2\nd,\n')
    check_values(raw, {"user": (r"[a-d\n]+", "a letter")})
    with pytest.raises(DataError, match=r"^file log.csv, line 4: click is '2', not 0 or 1$"):
        check_values(raw, {"user": ("(?s).*", "anything"), "click": ("[01]|", "0 or 1")})
    with pytest.raises(DataError, match=r"^file log.csv, line 5: click is '', not 0 to 2$"):
        check_values(raw, {"click": ("[012]", "0 to 2")})
    with pytest.raises(DataError, match=r"file log.csv has no column 'time'; it has user, click"):
        require_columns(raw, ["user", "time"])


def test_keys_are_unique_with_their_places(read: Any) -> None:
    raw = read(b"user,age\n1,20\n2,30\n,1\n1,40\n,2\n")
    message = (
        "user '1' appears more than once: file log.csv, line 2, file log.csv, line 5; "
        "keep one row for each user"
    )
    with pytest.raises(DataError, match=message):
        check_unique(raw, "user")
    check_unique(raw, "age")


@pytest.mark.parametrize("encoding", sorted({*aliases.values(), *aliases, "idna", "punycode", ""}))
def test_an_encoding_is_one_by_which_text_comes_back_in_parts(encoding: str) -> None:
    """So that none is found wanting while a file is read."""
    try:
        Format(encoding=encoding)
    except ConfigError as error:
        refused = str(error)
    else:
        content = "a,b\n1,2\n".encode(encoding)
        decoder = codecs.getincrementaldecoder(encoding)()
        text = "".join(decoder.decode(content[n : n + 1]) for n in range(len(content)))
        assert text + decoder.decode(b"", final=True) == "a,b\n1,2\n"
        return
    assert f"encoding is {encoding!r}, which Python does not know as one of text files" in refused
    assert encoding not in ("utf_8", "latin_1", "gbk", "utf_16", "utf_16_le", "shift_jis")


def test_parts_follow_each_other_by_number(tmp_path: Path) -> None:
    names = ["part-0", "part-1", "part-2", "part-10", "part-11", "part-a", "part-a2", "part-a10"]
    for name in names:
        (tmp_path / f"{name}.csv").write_text("a\n1\n")
    assert [path.stem for path in find_files(tmp_path)] == names


@pytest.mark.parametrize(
    ("pack", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz"), (zipped, "zip")]
)
def test_other_packings_are_named(read: Any, pack: Any, name: str) -> None:
    message = f"file log.csv is packed by {name}, which is not read; unpack it, or pack it by gzip"
    with pytest.raises(DataError, match=message):
        read(pack(b"a,b\n1,2\n"))


def test_text_of_a_parquet_file_that_is_no_utf_8(engine: ibis.BaseBackend, tmp_path: Path) -> None:
    values = pa.array([b"a\xff", b"b", None])
    broken = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    pq.write_table(pa.table({"device": broken}), tmp_path / "log.parquet")
    assert rows_of(read_raw(engine, tmp_path / "log.parquet", tmp_path)) == [
        ["0x61ff"],
        ["b"],
        [None],
    ]


def test_a_folder_with_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"b.csv is a pipe or a broken link; give files that"):
        find_files(tmp_path)
    (tmp_path / "b.csv").unlink()
    write_table(tmp_path / "b.parquet", {"a": ["1"]})
    with pytest.raises(DataError, match=r"b.parquet is Parquet and a.csv is not; give fi"):
        open_files(find_files(tmp_path), Format(), tmp_path)
