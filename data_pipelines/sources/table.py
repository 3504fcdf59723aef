"""Any table of impressions, with tables of users and items to join, as rows to prepare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from d3jax.data.format import Format
from d3jax.errors import ConfigError, DataError
from data_pipelines import raw
from data_pipelines.source import DataSet, FieldSource, Source, Workplace

if TYPE_CHECKING:
    import ibis
    from ibis.expr.types import IntegerValue, Value

_TRUTH = "[Tt]rue|TRUE|[Ff]alse|FALSE"

MAX_SCENARIOS = 100
MAX_VALUES = 100
"""The values of a row in a field of several: the most frequent are kept."""

# Blanks keep these apart from the names of a header, which has none at its ends.
_LABEL, _SCENARIO, _TIME = " label", " scenario", " time"


@dataclass(frozen=True)
class TableConfig:
    """The meaning of a table's columns. All that are named are fields, but for label and time."""

    label: str
    """A column of 0 and 1, or a rule such as 'rating>3' (>, >=, <, <=, = or !=)."""
    scenario: str
    """The column that says the scenario, or 'age=25,35': below 25, from 25 to below 35, above."""
    fields: tuple[str, ...] = ()
    """Categorical columns."""
    user: str | None = None
    """The column that identifies the user."""
    item: str | None = None
    """The column that identifies the item."""
    time: str | None = None
    """When a row happened: a number, or a date and time as in 2024-02-26 12:30:00."""
    multi: tuple[str, ...] = ()
    """Columns of several values with what separates them, such as 'genres=|'."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers with the number of buckets, such as 'price=20'."""
    hash: tuple[str, ...] = ()
    """Columns to hash into so many ids, such as 'user=100000'."""
    join: tuple[str, ...] = ()
    """Tables that add columns, each with the column they share, such as 'users.csv=user_id'."""
    separator: str | None = None
    """Between the columns: one character, or 'tab'; told by the file's suffix when not given."""
    encoding: str = "utf-8"
    """The encoding of text files: a name that Python knows, such as latin-1."""


@dataclass(frozen=True, kw_only=True)
class Table(DataSet):
    """A table of your own: text or Parquet, one file or many, with others to join."""

    table: tyro.conf.OmitArgPrefixes[TableConfig]

    def read(self, place: Workplace) -> Source:
        """Return the rows with the columns that are joined."""
        return read_table(place.connection, self.files, place.scratch, self.table)


class _Joined(NamedTuple):
    """The rows of `tables[0]` with the columns of the others; `owners` is where each is from.

    `keys` are the columns that they were joined by.
    """

    tables: tuple[raw.Raw, ...]
    table: ibis.Table
    owners: Mapping[str, raw.Raw]
    unmatched: Mapping[str, int]
    keys: tuple[str, ...]

    @property
    def main(self) -> raw.Raw:
        """The table that the others add columns to."""
        return self.tables[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read, each once."""
        return tuple(dict.fromkeys(file for each in self.tables for file in each.files))


class _Scenarios(NamedTuple):
    names: tuple[str, ...]
    values: Mapping[str, str]
    index: IntegerValue


def read_table(
    connection: ibis.BaseBackend, source: Path, scratch: Path, config: TableConfig
) -> Source:
    """The rows of `source` with their joined columns, as `config` understands them.

    The staged rows stay in the folder `scratch` until they are prepared. Raises `ConfigError` for
    flags that contradict each other, and `DataError` naming file, line, column and value for
    labels, times, scenarios and keys that are not what `config` says.
    """
    rule = raw.parse_rule(config.label)
    scenario, edges = raw.parse_scenario(config.scenario)
    fields = _fields(config, scenario, rule)
    named = [name for name in (config.user, config.item, config.time) if name]
    used = [rule.column, scenario, *named, *(field.name for field in fields)]
    joined = _join(connection, source, scratch, config, used)
    _require(joined, used)
    if not _number(joined.table.limit(1).count()):
        raise DataError(f"file {joined.main.name} has no rows, only columns; write it again")
    fields = tuple(_as_it_came(field, joined) for field in fields)
    _check_label(joined.owners[rule.column], rule)
    _check_numbers(joined, fields)
    _check_present(joined, rule.column)
    _check_present(joined, scenario)
    scenarios = _scenarios(joined, scenario, edges)
    columns: dict[str, Value] = {
        _LABEL: rule.holds(joined.table[rule.column]).cast("int64"),
        _SCENARIO: scenarios.index,
    }
    if config.time:
        columns[_TIME] = _time(joined, config.time)
    rows = joined.table.mutate(**columns)
    is_event = config.time or (config.user and config.item)
    key = tuple(named) if is_event else joined.main.columns
    return Source(
        rows=rows,
        fields=fields,
        scenarios=scenarios.names,
        scenario_field=scenario,
        scenario_values=scenarios.values,
        scenario_edges=edges,
        user_field=config.user,
        item_field=config.item,
        key=key,
        label_rule=config.label,
        files=joined.files,
        time=_TIME if config.time else None,
        label_column=_LABEL,
        scenario_column=_SCENARIO,
        unmatched={name: count for name, count in joined.unmatched.items() if count},
        repeated=_number(rows.count()) - _events(rows, key),
        unused=tuple(name for name in joined.owners if name not in {*used, *joined.keys}),
    )


def _events(rows: ibis.Table, key: Sequence[str]) -> int:
    """The number of different events, by the spelling that the split knows them by."""
    spelt = {name: raw.plain(rows[name].fill_null("")) for name in key}
    return _number(rows.select(**spelt).distinct().count())


def _fields(config: TableConfig, scenario: str, rule: raw.Rule) -> tuple[FieldSource, ...]:
    """Users and items first, then fields in the order of the flags, the scenario's column last."""
    separators = _separators(config.multi)
    quantiles = raw.parse_counts("numeric", config.numeric)
    hashed = raw.parse_counts("hash", config.hash)
    named = [name for name in (config.user, config.item) if name]
    names = dict.fromkeys([*named, *config.fields, *separators, *quantiles, *hashed, scenario])
    for name, what in ((rule.column, "label"), (config.time, "time")):
        if name in names and name != scenario:
            raise ConfigError(
                f"field {name!r} is the column of the {what}; it can't be a field too, leave it out"
            )
    if rule.column == scenario:
        raise ConfigError(f"column {scenario!r} can't be both the label and the scenario")
    return tuple(
        FieldSource(
            name,
            separator=separators.get(name),
            max_slots=MAX_VALUES if name in separators else None,
            quantiles=quantiles.get(name),
            hash_buckets=hashed.get(name),
        )
        for name in names
    )


def _separators(texts: Sequence[str]) -> dict[str, str]:
    """Return the separator of each column of several values; a bare name is of a list column."""
    bare = [text for text in texts if "=" not in text]
    written = raw.parse_settings("multi", [text for text in texts if "=" in text])
    return {**dict.fromkeys(bare, raw.LIST), **written}


def _as_it_came(field: FieldSource, joined: _Joined) -> FieldSource:
    """The field, marked where its column holds lists."""
    owner = joined.owners[field.name]
    if field.name in owner.opened.lists:
        if field.separator is None:
            raise DataError(
                f"file {owner.name}: column {field.name!r} is a list column, which has several "
                f"values a row; name it by --multi {field.name}"
            )
        return replace(field, as_lists=True)
    if field.separator == raw.LIST:
        raise ConfigError(
            f"--multi {field.name} does not say what separates the values, and the column is no "
            f"list column; write --multi '{field.name}=|' for values with | between them"
        )
    return field


def _join(
    connection: ibis.BaseBackend,
    source: Path,
    scratch: Path,
    config: TableConfig,
    used: Sequence[str],
) -> _Joined:
    form = Format(config.separator, config.encoding)
    main = raw.read_raw(connection, source, scratch, form)
    joined = _Joined((main,), main.table, dict.fromkeys(main.columns, main), {}, ())
    for text in config.join:
        path, _, key = text.rpartition("=")
        if not path or not key:
            raise ConfigError(
                f"--join {text!r} must be a file, an equals sign and the column that both tables "
                "have, such as users.csv=user_id"
            )
        joined = _add(joined, raw.read_raw(connection, Path(path), scratch, form), key, used)
    return joined


def _add(joined: _Joined, other: raw.Raw, key: str, used: Sequence[str]) -> _Joined:
    """The rows of `joined` with the columns that `other` has for their `key`.

    A column that both have is refused where it is `used`, and else that of `other` left out.
    """
    _require(joined, [key])
    raw.require_columns(other, [key])
    added = [name for name in other.columns if name != key]
    taken = {name.lower() for name in joined.owners}
    clash = [name for name in added if name.lower() in taken]
    if wanted := [name for name in clash if name.lower() in map(str.lower, used)]:
        raise DataError(
            f"column {wanted[0]!r} is in {other.name} and already in the tables before it; "
            "rename one of them"
        )
    added = [name for name in added if name not in clash]
    table, unmatched = raw.attach(joined.table, other, key, added)
    if unmatched == _number(joined.table.count()) > 0:
        raise DataError(
            f"no {key} of {joined.owners[key].name} is in {other.name}, so the join adds nothing; "
            "check how both files write it"
        )
    return _Joined(
        (*joined.tables, other),
        table,
        {**joined.owners, **dict.fromkeys(added, other)},
        {**joined.unmatched, other.name: unmatched},
        (*joined.keys, key),
    )


def _require(joined: _Joined, names: Sequence[str]) -> None:
    for name in names:
        if name in joined.owners:
            continue
        for each in joined.tables:
            if flaw := each.opened.flaws.get(name.lower()):
                raise DataError(flaw)
        files = ", ".join(each.name for each in joined.tables)
        raise DataError(
            f"there is no column {name!r} in {files}; they have {', '.join(joined.owners)}"
        )


def _check_label(owner: raw.Raw, rule: raw.Rule) -> None:
    if rule == raw.Rule(rule.column):
        form = rf"[01](?:\.0*)?|{_TRUTH}"
        raw.check_values(owner, {rule.column: (form, "0 or 1; give a rule such as x>3")})
    elif rule.is_numeric:
        raw.check_values(owner, {rule.column: (f"{raw.NUMBER}|{_TRUTH}", "a number")})


def _check_numbers(joined: _Joined, fields: Sequence[FieldSource]) -> None:
    """Refuse what is no number in a field of numbers; where there is none, nothing must stand."""
    for field in fields:
        if field.quantiles is not None:
            form = (rf"[ \t]*{raw.NUMBER}[ \t]*|", "a number; leave it empty where there is none")
            raw.check_values(joined.owners[field.name], {field.name: form})


def _check_present(joined: _Joined, column: str) -> None:
    missing = joined.table.filter(joined.table[column].isnull())
    if place := _first_place(joined.main, missing):
        owner = joined.owners[column]
        why = "" if owner is joined.main else f", which is from {owner.name}"
        raise DataError(f"{place}: there is no {column} for this row{why}; every row needs one")


def _first_place(main: raw.Raw, table: ibis.Table) -> str | None:
    rows = table.select(*main.columns).order_by(main.columns).limit(1).to_pyarrow().to_pylist()
    return next(raw.places(main, lambda row: dict(row) == rows[0])) if rows else None


def _scenarios(joined: _Joined, column: str, edges: tuple[float, ...]) -> _Scenarios:
    import ibis

    text = joined.table[column]
    if edges:
        raw.check_values(joined.owners[column], {column: (f"{raw.NUMBER}|", "a number")})
        number = text.cast("float64")
        index = ibis.cases(
            *((number < edge, index) for index, edge in enumerate(edges)), else_=len(edges)
        )
        return _Scenarios(tuple(raw.bucket_names(edges, column)), {}, index.cast("int64"))
    limit = 10 * MAX_SCENARIOS  # one value may be written in several ways
    found = joined.table.select(value=text).distinct().order_by("value").limit(limit + 1)
    texts = found.to_pyarrow()["value"].combine_chunks()
    spelt = raw.spell(texts, raw.kind_of(texts))
    names = tuple(sorted(set(spelt.to_pylist()) - {None}, key=_by_number))
    if len(names) > MAX_SCENARIOS or len(texts) > limit:
        raise DataError(
            f"column {column!r} has more than {MAX_SCENARIOS} values, too many for scenarios; "
            f"divide its numbers, such as --scenario {column}=10,20, or choose another column"
        )
    if spelt.null_count:
        wrong = texts.filter(spelt.is_null())[0].as_py()
        place = next(raw.places(joined.owners[column], lambda row: row[column] == wrong))
        raise DataError(f"{place}: {column} is {wrong!r}, but every row needs a scenario")
    pairs = zip(texts.to_pylist(), spelt.to_pylist(), strict=True)
    index = ibis.cases(*((text == value, names.index(name)) for value, name in pairs))
    return _Scenarios(names, {name: name for name in names}, index.cast("int64"))


def _by_number(text: str) -> tuple[float, str]:
    return (float(text) if text.isdecimal() else float("inf"), text)


def _time(joined: _Joined, column: str) -> Value:
    """The column as what it holds: whole numbers, decimal numbers, or moments."""
    _check_present(joined, column)
    text = joined.table[column]
    moment = raw.microseconds(text)
    whole, number = (text.re_search(f"^(?:{form})$") for form in (raw.WHOLE, raw.NUMBER))
    tally = joined.table.agg(
        other=text.min(where=~number & moment.isnull()),
        number=joined.table.count(where=number),
        date=text.min(where=~number),
        decimal=joined.table.count(where=number & ~whole),
    )
    found = tally.to_pyarrow().to_pylist()[0]
    wrong = found["other"] or (found["date"] if found["number"] else None)
    if wrong is not None:
        place = next(raw.places(joined.owners[column], lambda row: row[column] == wrong))
        raise DataError(
            f"{place}: {column} is {wrong!r}; write all times as numbers, or all as dates such as "
            "2024-02-26, 2024-02-26 12:30:00 or 2024-02-26T12:30:00+01:00"
        )
    if found["date"] is not None:
        return moment
    return text.cast("float64" if found["decimal"] else "int64")


def _number(expression: Value) -> int:
    return int(expression.to_pyarrow().as_py())
