"""Raw files, text or Parquet, as batches of text: what `prepare` stages and `predict` scores.

No engine is needed here, and no path is more than a path: nothing in one is a pattern, and no
folder's name adds a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from d3jax.data.encoder import is_list, joined_lists
from d3jax.data.encoding import text_of
from d3jax.data.format import Format
from d3jax.data.text import Text, checked_batches, open_text, read_header
from d3jax.errors import DataError

_ROWS = 1 << 17


class Files(NamedTuple):
    """Files of one header, opened: `columns` are their names, in order.

    `flaws` says why a name can't be asked for: one that is blank or there twice stands in
    `columns` under another, one whose type has no text not at all. `lists` are the columns that
    hold several values a row; `texts` the text files, none when the files are Parquet.
    """

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    flaws: Mapping[str, str]
    lists: frozenset[str]
    texts: tuple[Text, ...]

    @property
    def name(self) -> str:
        """The name of the files in messages."""
        first = self.paths[0].name
        return first if len(self.paths) == 1 else f"{first} to {self.paths[-1].name}"


class _Header(NamedTuple):
    """`places` are the positions in the file of the columns that have a text."""

    names: tuple[str, ...]
    flaws: dict[str, str]
    places: tuple[int, ...]
    lists: frozenset[str] = frozenset()


def find_files(source: Path) -> tuple[Path, ...]:
    """Return the file itself, or the visible files of a directory: part-2 comes before part-10.

    Raises `DataError` when there is none.
    """
    if source.is_dir():
        inside = [path for path in source.iterdir() if path.name[0] not in "._"]
        found = [path for path in inside if not path.is_dir()]
    else:
        found = [source] if source.exists() else []
    if not found:
        kind = "holds no files" if source.is_dir() else "is missing"
        raise DataError(f"{source} {kind}; give a file or a directory of files")
    if strange := [path for path in found if not path.is_file()]:
        raise DataError(
            f"{strange[0]} is a pipe or a broken link; give files that can be read twice"
        )
    return tuple(sorted(found, key=_by_number))


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """The name with its numbers as numbers; then the name itself, where these are equal."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [(int(part), "") if n % 2 else (-1, part) for n, part in enumerate(parts)], path.name


def open_files(paths: Sequence[Path], form: Format, scratch: Path) -> Files:
    """Read the headers of .parquet or delimited text files, which must agree.

    What has to be unpacked or recoded first goes into the folder `scratch`. Raises `DataError`
    naming the file for one that can't be read, and for headers that differ.
    """
    texts: tuple[Text, ...] = ()
    parquet = [path for path in paths if _is_parquet(path)]
    if parquet and len(parquet) < len(paths):
        other = next(path for path in paths if path not in parquet)
        raise DataError(
            f"{parquet[0].name} is Parquet and {other.name} is not; give files of one kind"
        )
    if parquet:
        headers = [_parquet_header(path) for path in paths]
    else:
        texts = tuple(open_text(path, form, scratch) for path in paths)
        headers = [_header(text.path, read_header(text)) for text in texts]
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if header.names != first.names:
            raise DataError(
                f"file {path.name} has the columns {', '.join(header.names)}, but "
                f"{paths[0].name} has {', '.join(first.names)}; give files of one header"
            )
        if mixed := sorted(header.lists ^ first.lists):
            raise DataError(
                f"file {path.name}: column {mixed[0]!r} is a list column in one of the files, but "
                f"not in {paths[0].name} and {path.name} alike; write it alike in all"
            )
    return Files(tuple(paths), first.names, first.flaws, first.lists, texts)


def require(files: Files, names: Sequence[str]) -> None:
    """Raise `DataError` naming the first column that the files lack, or can't give."""
    for name in names:
        if flaw := files.flaws.get(name.lower()):
            raise DataError(flaw)
        if name not in files.columns:
            raise DataError(
                f"file {files.name} has no column {name!r}; it has {', '.join(files.columns)}"
            )


def raw_batches(files: Files, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order: `columns`, or all, each of strings or of lists.

    Raises `DataError` naming file, and line where there are lines, for what can't be read.
    """
    wanted = list(files.columns if columns is None else columns)
    require(files, wanted if columns is not None else [])
    if files.texts:
        for text in files.texts:
            for batch in checked_batches(text, files.columns):
                yield batch.select(wanted)
    else:
        for path in files.paths:
            yield from _parquet_batches(path, wanted)


def text_batches(files: Files) -> Iterator[pa.RecordBatch]:
    """Yield all rows and columns as strings, the items of a list in one; "" and NaN are null."""
    for path, part in _by_file(files):
        for batch in part:
            arrays = [
                joined_lists(column, name, f"file {path.name}")
                if is_list(column.type)
                else text_of(column, name, f"file {path.name}")
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            yield pa.record_batch(arrays, names=batch.schema.names)


def _by_file(files: Files) -> Iterator[tuple[Path, Iterator[pa.RecordBatch]]]:
    for index, path in enumerate(files.paths):
        alone = files._replace(paths=(path,), texts=files.texts[index : index + 1])
        yield path, raw_batches(alone)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _header(path: Path, names: Sequence[str], kinds: Sequence[pa.DataType] = ()) -> _Header:
    """Give each column a name of its own, and say which names can't be asked for."""
    lowered = [name.lower() for name in names]
    columns, flaws, places, lists = [], {}, [], set()
    for place, name in enumerate(names):
        if not name or not name.isprintable():
            flaws[name.lower()] = (
                f"file {path.name}: column {place + 1} of the header is {name!r}, which can't be a "
                "name; rename it"
            )
        elif lowered.count(name.lower()) > 1:
            flaws[name.lower()] = (
                f"file {path.name} has the column {name!r} twice; rename one (capital letters make "
                "no difference)"
            )
        if kinds and (flaw := _type_flaw(path, name, kinds[place])):
            flaws.setdefault(name.lower(), flaw)
            continue
        places.append(place)
        # A blank keeps it apart from the names of a header, which has none at its ends.
        columns.append(f" column {place + 1}" if name.lower() in flaws else name)
        if kinds and is_list(kinds[place]):
            lists.add(columns[-1])
    return _Header(tuple(columns), flaws, tuple(places), frozenset(lists))


def _type_flaw(path: Path, name: str, kind: pa.DataType) -> str | None:
    """Return what is wrong with a type that has no text, None where it has one."""
    try:
        text_of(pa.array([], kind.value_type if is_list(kind) else kind), name, f"file {path.name}")
    except DataError as error:
        return str(error)
    return None


def _parquet_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"file {path.name} can't be read as Parquet ({error})") from error
    if not schema.names:
        raise DataError(f"file {path.name} has no columns")
    return _header(path, [name.strip() for name in schema.names], schema.types)


def _parquet_batches(path: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    header = _parquet_header(path)
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as content:
            names = content.schema_arrow.names
            places = [header.places[header.names.index(name)] for name in wanted]
            # Names that are there twice can't be read alone.
            unique = len(set(names)) == len(names)
            columns = [names[place] for place in places] if unique else None
            for batch in content.iter_batches(batch_size=_ROWS, columns=columns):
                found = {name: index for index, name in enumerate(batch.schema.names)}
                at = [found[names[place]] for place in places] if unique else places
                yield pa.RecordBatch.from_arrays([batch.column(i) for i in at], names=list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"file {path.name} can't be read as Parquet ({error})") from error
