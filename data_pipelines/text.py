"""Delimited text -> Parquet of strings, so that every engine reads the same rows.

Python's csv module checks every row, so that an error has its line, and Arrow then reads them in
bulk. (Where quotes don't match, Arrow and DuckDB drop or join rows without a word.)
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.errors import ConfigError, DataError

ATOMIC = (".inter", ".user", ".item")
"""Suffixes of RecBole's atomic files (Zhao et al., 2021): tab-separated, `name:type` headers."""

_SEPARATORS = {".csv": ",", ".tsv": "\t", **dict.fromkeys(ATOMIC, "\t")}

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Format:
    """How text files are written; quotes are those of RFC 4180, and an empty value is missing."""

    separator: str | None = None
    """Between the columns: one character, or 'tab'; told by the file's suffix when not given."""
    encoding: str = "utf-8"
    """A name that Python knows, such as latin-1, gbk or utf-16."""

    def __post_init__(self) -> None:
        separator = self.separator or "tab"
        if (separator != "tab" and not re.fullmatch(r"[\t -~]", separator)) or separator == '"':
            raise ConfigError(
                f"separator is {separator!r}; it must be one ASCII character other than a quote "
                "or a line end, or the word tab"
            )
        if not _reads_text(self.encoding):
            raise ConfigError(
                f"encoding is {self.encoding!r}, which Python does not know as one of text files; "
                "utf-8, latin-1, gbk and utf-16 are some that it does"
            )

    def separator_of(self, path: Path) -> str:
        """The separator of a file; raises `DataError` when neither flag nor suffix tells it."""
        if self.separator:
            return "\t" if self.separator == "tab" else self.separator
        suffix = _suffix(path)
        if suffix not in _SEPARATORS:
            raise DataError(
                f"the suffix of {path} does not tell what separates its columns; "
                "say it with --separator"
            )
        return _SEPARATORS[suffix]


def _reads_text(encoding: str) -> bool:
    """Whether text comes back from its bytes one by one, which leaves out codecs such as idna."""
    sample = "a,b\r\n1,2\n"
    try:
        decoder = codecs.getincrementaldecoder(encoding)("ignore")
        parts = [decoder.decode(bytes([byte])) for byte in sample.encode(encoding)]
        return "".join(parts) + decoder.decode(b"", final=True) == sample
    except Exception:
        # What is no codec of text raises whatever it likes, an AssertionError among others.
        return False


class Text(NamedTuple):
    """A text file: `path` as the user knows it, `plain` the same rows unpacked and in UTF-8."""

    path: Path
    plain: Path
    separator: str


def open_text(path: Path, form: Format, scratch: Path) -> Text:
    """Unpacks and recodes a file into `scratch` where it is not plain UTF-8 already.

    Raises `DataError` when it is empty, or its gzip data are damaged or cut short, or naming the
    line that its encoding can't hold.
    """
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
    """The names of the columns, without blanks around them and without the types of RecBole.

    Raises `DataError` for a name that is empty or appears twice; capital letters don't count.
    """
    number, cells = next(read_rows(text), (1, []))
    if number != 1 or not any(cells):
        raise DataError(f"file {text.path.name}, line 1 is blank; the header belongs there")
    names = [cell.strip() for cell in cells]
    if _suffix(text.path) in ATOMIC:
        names = [name.partition(":")[0] for name in names]
    seen: dict[str, int] = {}
    for column, name in enumerate(names, 1):
        where = f"file {text.path.name}, line 1: column {column} of the header"
        if not name or not name.isprintable():
            raise DataError(f"{where} is {name!r}, which can't be a name; rename it")
        if name.lower() in seen:
            raise DataError(
                f"{where} is {name!r}, and so is column {seen[name.lower()]}; rename one "
                "(capital letters make no difference)"
            )
        seen[name.lower()] = column
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


def write_parquet(texts: Sequence[Text], names: Sequence[str], out: Path) -> None:
    """The rows of files of one header as one Parquet file of strings, NULL where they are empty.

    Raises `DataError` naming file, line and columns for a row of another length, and what
    `read_rows` raises.
    """
    layout = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(out, layout) as writer:
        for text in texts:
            expected = _count_checked(text, names)
            found = 0
            for batch in _parse(text, names) if expected else ():
                found += batch.num_rows
                writer.write_batch(batch)
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


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


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


def _open_binary(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if _is_packed(path) else path.open("rb")
