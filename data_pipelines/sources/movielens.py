"""MovieLens-1M (Harper and Konstan, 2015): three domains by the age of the user.

Fields and click rule follow the D3 experiments (Jia et al., AAAI 2024): a rating above 3 is a
click, and age groups are the domains. The files are `::`-separated and in Latin-1.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from d3jax.errors import DataError
from data_pipelines import raw
from data_pipelines.source import DataSet, FieldSource, Source, Workplace

if TYPE_CHECKING:
    import ibis
    from ibis.expr.types import BooleanValue

AGE_GROUPS = {
    "1": "under 25",
    "18": "under 25",
    "25": "25-34",
    "35": "35 and over",
    "45": "35 and over",
    "50": "35 and over",
    "56": "35 and over",
}
"""The scenario of each age code of users.dat."""

SCENARIOS = tuple(dict.fromkeys(AGE_GROUPS.values()))

FIELDS = (
    *(FieldSource(name) for name in ("user", "movie", "gender", "age", "occupation", "zip")),
    FieldSource("genres", separator="|"),
    FieldSource("year"),
)

RATINGS = ("1", "2", "3", "4", "5")

_FILES = {
    "users.dat": ("UserID", "Gender", "Age", "Occupation", "Zip"),
    "movies.dat": ("MovieID", "Title", "Genres"),
    "ratings.dat": ("UserID", "MovieID", "Rating", "Timestamp"),
}

_AGAIN = "download the file again"

_NO_DELIMITER = "\x1e\x1f\x1e\x1f"
"""Four control characters that no line holds, so that a line is read as one column."""


@dataclass(frozen=True, kw_only=True)
class MovieLens(DataSet):
    """MovieLens-1M: three age groups; a rating above 3 is a click."""

    def read(self, place: Workplace) -> Source:
        """Return the ratings with their users and movies."""
        directory = place.enter(opened(self.files))
        return movielens_1m(place.connection, directory, place.scratch)


class _File(NamedTuple):
    """One `.dat` file: a string column per name, and `line` with the raw text for errors."""

    path: Path
    table: ibis.Table


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yields the directory with the `.dat` files: `path` itself, or what the `.zip` holds of them.

    Files of a zip are found by base name, in whatever folder, and extracted to a temporary
    directory. Raises `DataError` naming a file that is missing, and what there is instead.
    """
    if path.is_dir():
        _check_present(path, [entry.name for entry in path.iterdir()])
        yield path
        return
    if not path.is_file():
        raise DataError(f"{path} is missing; give the MovieLens-1M directory or its .zip")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is neither a directory nor a zip file; {_AGAIN}")
    with tempfile.TemporaryDirectory() as folder:
        _extract(path, Path(folder))
        yield Path(folder)


def movielens_1m(
    connection: ibis.BaseBackend, directory: Path, scratch: Path | None = None
) -> Source:
    """The ratings in `directory`, joined with their users and movies, as rows to prepare.

    An engine other than DuckDB needs a folder `scratch`, which its workers see.
    Raises `DataError` naming file, line and value for a line that is cut short, a rating outside
    1 to 5, an unknown age code, an id that appears twice, or a rating of an unknown user or movie.
    """
    users, movies, ratings = (_read(connection, directory / name, scratch) for name in _FILES)
    _check_users(users)
    _check_unique(movies, "MovieID")
    _check_ratings(ratings)
    _check_known(ratings, users, "UserID")
    _check_known(ratings, movies, "MovieID")
    return Source(
        rows=_join(users.table, movies.table, ratings.table),
        fields=FIELDS,
        scenarios=SCENARIOS,
        scenario_field="age",
        scenario_values=AGE_GROUPS,
        user_field="user",
        item_field="movie",
        key=("user", "movie", "timestamp"),
        label_rule="rating > 3",
        files=tuple(directory / name for name in _FILES),
        time="timestamp",
    )


def _check_present(path: Path, found: list[str]) -> None:
    for name in _FILES:
        if name not in found:
            listing = ", ".join(sorted(found)[:10]) or "nothing"
            raise DataError(
                f"{path} has no {name}, only {listing}; MovieLens-1M has {', '.join(_FILES)}"
            )


def _extract(path: Path, folder: Path) -> None:
    """Copies the `.dat` members under their base names, so a member's own path is never used."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            members = {Path(name).name: name for name in names}
            _check_present(path, list(members))
            for base in _FILES:
                if [Path(name).name for name in names].count(base) > 1:
                    raise DataError(f"{path} has {base} in several folders; keep one of them")
                with archive.open(members[base]) as member, (folder / base).open("wb") as file:
                    shutil.copyfileobj(member, file)
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # Of the disk, such as a full one; EINVAL is a place before the file's start.
        # A bad sum, a password, an unknown method or version: zipfile has no error for them all.
        what = "can't be unpacked" if isinstance(error, RuntimeError) else "is damaged"
        raise DataError(
            f"{path} {what} ({error}); {_AGAIN}, or unpack it and give the directory"
        ) from error


def _read(connection: ibis.BaseBackend, path: Path, scratch: Path | None) -> _File:
    """Splits the lines of a file into its columns; blank lines hold no row."""
    if not path.is_file():
        _check_present(path.parent, [entry.name for entry in path.parent.glob("*")])
    names = _FILES[path.name]
    read = _read_lines(raw.text_parser(connection, scratch), path)
    lines = raw.hand_over(read, connection, scratch, f"{path.name}.parquet")
    parts = lines.line.split("::")
    wrong = lines.filter(parts.length() != len(names)).select("line")
    if line := _first(wrong):
        found = len(line.split("::"))
        raise DataError(
            f"{_place(path, line)}: {found} columns, expected {len(names)} "
            f"({'::'.join(names)}): {line!r}; {_AGAIN}"
        )
    columns = [parts[index].name(name) for index, name in enumerate(names)]
    return _File(path, lines.select("line", *columns))


def _read_lines(connection: ibis.BaseBackend, path: Path) -> ibis.Table:
    import duckdb

    table = raw.read_csv(
        connection,
        path,
        columns={"line": "VARCHAR"},
        header=False,
        delim=_NO_DELIMITER,
        quote="",
        escape="",
        encoding="latin-1",
        auto_detect=False,
        strict_mode=False,  # a file may mix the line ends of two systems
    )
    lines = table.filter(table.line.fill_null("").strip() != "")
    try:
        longest = lines.line.length().max().to_pyarrow().as_py()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"file {path.name} can't be read as Latin-1 lines ({reason}); {_AGAIN}"
        ) from error
    if longest is None:
        raise DataError(f"file {path.name} is empty; {_AGAIN}")
    return lines


def _check_users(users: _File) -> None:
    _check_unique(users, "UserID")
    strange = ~users.table.Age.isin(tuple(AGE_GROUPS))
    _check_values(users, "Age", strange, f"not an age code ({', '.join(AGE_GROUPS)})")


def _check_ratings(ratings: _File) -> None:
    table = ratings.table
    _check_values(ratings, "Rating", ~table.Rating.isin(RATINGS), "not a whole number from 1 to 5")
    strange = ~table.Timestamp.re_search("^[0-9]+$")
    _check_values(ratings, "Timestamp", strange, "not a number of seconds")


def _check_values(file: _File, column: str, wrong: BooleanValue, reason: str) -> None:
    if line := _first(file.table.filter(wrong)):
        raise DataError(
            f"{_place(file.path, line)}: {column} {_value(file, column, line)!r} is {reason}: "
            f"{line!r}; {_AGAIN}"
        )


def _check_unique(file: _File, column: str) -> None:
    repeated = file.table.group_by(column).having(file.table.count() > 1).agg()
    if line := _first(file.table.semi_join(repeated, column)):
        value = _value(file, column, line)
        with file.path.open(encoding="latin-1") as lines:
            numbers = [
                str(number)
                for number, text in enumerate(lines, 1)
                if text.strip() and _value(file, column, text) == value
            ]
        raise DataError(
            f"file {file.path.name}: {column} {value!r} appears more than once, in lines "
            f"{', '.join(numbers)}; {_AGAIN}"
        )


def _check_known(ratings: _File, others: _File, column: str) -> None:
    if line := _first(ratings.table.anti_join(others.table, column)):
        value = _value(ratings, column, line)
        raise DataError(
            f"{_place(ratings.path, line)}: {column} {value!r} is not in {others.path.name}; "
            "take the three files from one download"
        )


def _first(wrong: ibis.Table) -> str | None:
    """The smallest of the offending lines, the same one in every run; None when there is none."""
    return wrong.line.min().to_pyarrow().as_py()


def _value(file: _File, column: str, line: str) -> str:
    return line.split("::")[_FILES[file.path.name].index(column)]


def _place(path: Path, line: str) -> str:
    return f"file {path.name}, line {_line_number(path, line)}"


def _line_number(path: Path, line: str) -> int:
    """Return the number of `line` in the file, from 1."""
    with path.open(encoding="latin-1") as file:
        return next(number for number, text in enumerate(file, 1) if text.rstrip("\n") == line)


def _join(users: ibis.Table, movies: ibis.Table, ratings: ibis.Table) -> ibis.Table:
    """One row a rating, with the columns of `FIELDS`, `label`, `scenario` and `timestamp`."""
    import ibis

    joined = ratings.left_join(users, "UserID").left_join(movies, "MovieID")
    scenario = ibis.cases(
        *((joined.Age == age, SCENARIOS.index(name)) for age, name in AGE_GROUPS.items())
    )
    return joined.select(
        user=joined.UserID,
        movie=joined.MovieID,
        gender=joined.Gender,
        age=joined.Age,
        occupation=joined.Occupation,
        zip=joined.Zip,
        genres=joined.Genres,
        year=joined.Title.re_extract(r"\(([0-9]{4})\)\s*$", 1),
        timestamp=joined.Timestamp.cast("int64"),
        label=(joined.Rating.cast("int64") > 3).cast("int64"),
        scenario=scenario.cast("int64"),
    )
