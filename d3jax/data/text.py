"""Delimited text -> batches of strings, so that every engine reads the same rows.

Python's csv module checks every row, so that an error has its line, and Arrow then reads them in
bulk. (Where quotes don't match, Arrow and DuckDB drop or join rows without a word.)
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv

from d3jax.data.format import ATOMIC, Format, suffix_of
from d3jax.errors import DataError

# A row's history may be longer than the 131,072 characters that the module allows by itself.
csv.field_size_limit(2**31 - 1)

_GZIP = b"\x1f\x8b"
_PACKINGS = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
}
_CHUNK = 1 << 20
_BLOCK = 1 << 24


class Text(NamedTuple):
    """A text file: `path` as the user knows it, `plain` the same rows unpacked and in UTF-8."""

    path: Path
    plain: Path
    separator: str


def open_text(path: Path, form: Format, scratch: Path) -> Text:
    """Unpacks and recodes a file into `scratch` where it is not plain UTF-8 already.

    Raises `DataError` when it is empty, packed by something else than gzip, damaged or cut short,
    or naming the line that its encoding can't hold.
    """
    if packing := _other_packing(path):
        raise DataError(
            f"file {path.name} is packed by {packing}, which is not read; unpack it, or pack it "
            "by gzip"
        )
    separator = form.separator_of(path)
    if not _is_packed(path) and codecs.lookup(form.encoding).name == "utf-8":
        text = Text(path, path, separator)
    else:
        text = Text(path, scratch / f"{len(list(scratch.iterdir()))}.txt", separator)
        with text.plain.open("wb") as plain:
            plain.writelines(part.encode() for part in _decoded(path, form.encoding))
    if not text.plain.stat().st_size:
        raise DataError(f"file {path.name} is empty; {_AGAIN}")
    return text


_AGAIN = "download or write the file again"


def read_header(text: Text) -> tuple[str, ...]:
    """Return the names of the columns, without blanks around them and without RecBole's types.

    Raises `DataError` for a header that is blank.
    """
    number, cells = next(read_rows(text), (1, []))
    if number != 1 or not any(cells):
        raise DataError(f"file {text.path.name}, line 1 is blank; the header belongs there")
    names = [cell.strip() for cell in cells]
    if suffix_of(text.path) in ATOMIC:
        names = [name.partition(":")[0] for name in names]
    return tuple(names)


def read_rows(text: Text) -> Iterator[tuple[int, list[str]]]:
    """Each row, the header too, with the line it begins in, from 1; blank lines hold no row.

    Raises `DataError` naming the line where the quotes don't match or a byte is not UTF-8.
    """
    try:
        with text.plain.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=text.separator, strict=True)
            number = 1
            for cells in reader:
                if cells:
                    yield number, cells
                number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"file {text.path.name}, line {number}: {error}, in the row that begins there; "
            "close the quote, or double the quotes inside a value"
        ) from error
    except UnicodeDecodeError:
        for _ in _decoded(text.plain, "utf-8", text.path):
            pass


def checked_batches(text: Text, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file as columns of strings, NULL where they are empty.

    Raises `DataError` naming file, line and columns for a row of another length than `names`, and
    what `read_rows` raises, before the first row.
    """
    expected = _count_checked(text, names)
    found = 0
    for batch in _parse(text, names) if expected else ():
        found += batch.num_rows
        yield batch
    if found != expected:
        raise DataError(
            f"file {text.path.name} holds {expected} rows, of which Arrow reads {found}; "
            "write it again as plain CSV"
        )


def _count_checked(text: Text, names: Sequence[str]) -> int:
    """The number of rows, all of them as long as the header."""
    count = -1
    for number, cells in read_rows(text):
        if len(cells) != len(names):
            raise DataError(
                f"file {text.path.name}, line {number}: {len(cells)} columns, expected "
                f"{len(names)} ({', '.join(names)}): {text.separator.join(cells)[:200]!r}; "
                "quote values that hold the separator, or write the row again"
            )
        count += 1
    return count


def _parse(text: Text, names: Sequence[str]) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        text.plain,
        read_options=pa.csv.ReadOptions(
            column_names=list(names), skip_rows_after_names=1, block_size=_BLOCK
        ),
        parse_options=pa.csv.ParseOptions(delimiter=text.separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _decoded(path: Path, encoding: str, known_as: Path | None = None) -> Iterator[str]:
    """The text of a file, unpacked and decoded part by part; damage is told with its line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    name, line = (known_as or path).name, 1
    try:
        with _open_binary(path) as file:
            while True:
                part = file.read(_CHUNK)
                text = decoder.decode(part, final=not part)
                yield text
                line += text.count("\n")
                if not part:
                    return
    except UnicodeDecodeError as error:
        line += error.object[: error.start].decode(encoding, "ignore").count("\n")
        wrong = error.object[error.start : error.end]
        raise DataError(
            f"file {name}, line {line}: the bytes {wrong!r} are not {encoding}; say the file's "
            "encoding with --encoding, or write it again as UTF-8"
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"file {name} is not {encoding} ({error}); say its encoding with --encoding"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"file {name} is damaged or cut short ({error}); {_AGAIN}") from error


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _other_packing(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(6)
    return next((name for mark, name in _PACKINGS.items() if start.startswith(mark)), None)


def _open_binary(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if _is_packed(path) else path.open("rb")
