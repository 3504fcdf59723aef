"""The prepared directory: encoded columns, vocabularies and the schema that explains them.

.d3jax                             the marker of what d3jax made
schema.json                        format version, fields, scenarios, how it was prepared
vocabularies/<name>.parquet        of a field: value (string), id (int32), count (int64) in train
<split>/ids.npy                    [R K] int32
<split>/scenario.npy, label.npy    [R] int32, [R] float32
checksums.json                     SHA-256 of the other files
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d3jax import owned
from d3jax.batch import Field, Schema
from d3jax.data.checksums import data_fingerprint
from d3jax.data.encoder import Encoder, FieldCode, ScenarioRule
from d3jax.errors import DataError
from d3jax.owned import check_free
from d3jax.typed import from_json, parse_json

FORMAT_VERSION = 2

SPLITS = ("train", "validation", "test")

_AGAIN = "prepare the data again"
_CHUNK = 1 << 20


class Rows(NamedTuple):
    """R encoded rows: memory maps when read, so only the rows that are touched are loaded."""

    ids: np.ndarray
    scenario: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: what its columns mean and where they came from."""

    directory: Path
    schema: Schema
    provenance: dict[str, Any]
    _checked: set[str] = field(default_factory=set, compare=False, repr=False)

    def rows(self, split: str) -> Rows:
        """Return the rows of `split` as memory maps.

        The first call reads them all: raises `DataError` when a file can't be mapped, or naming
        file, field, row and value of an id, scenario or label that the schema doesn't have.
        """
        rows = Rows(*(_map(_column(self.directory, split, name)) for name in Rows._fields))
        if split not in self._checked:
            _check_rows(self, split, rows)
            self._checked.add(split)
        return rows

    def vocabulary(self, field: str) -> pa.Table:
        """Columns `value`, `id`, `count` of `field`, by id from 1; unknown (id 0) has no row."""
        self.schema.index(field)
        return _read_vocabulary(vocabulary_path(self.directory, field))

    def codes(self) -> tuple[FieldCode, ...]:
        """Return what gives the values of each field their ids.

        Raises `DataError` when a vocabulary is missing or not the one of the schema.
        """
        codes = field_codes(self.directory, self.schema, self.provenance)
        for known, code in zip(self.schema.fields, codes, strict=True):
            if len(code.values) != known.size - 1 or code.fingerprint != known.fingerprint:
                raise DataError(
                    f"{vocabulary_path(self.directory, known.name)} is damaged: it is not the "
                    f"vocabulary that schema.json knows of field {known.name!r}; {_AGAIN}, or put "
                    "it back from a copy"
                )
        return codes

    @property
    def fingerprint(self) -> str:
        """A hash of all rows and vocabularies."""
        return data_fingerprint(self.directory)


def load_encoder(prepared: Prepared) -> Encoder:
    """Return what gives raw rows the ids that they had when the data were prepared.

    Raises `DataError` when a vocabulary is missing or not the one of the schema, or when
    `schema.json` has no rule for scenarios.
    """
    if "scenario" not in prepared.provenance:
        raise DataError(
            f"{prepared.directory / 'schema.json'} does not say 'scenario' of its raw values; "
            "prepare the data again"
        )
    rule = from_json(ScenarioRule, prepared.provenance["scenario"])
    return Encoder(prepared.schema, prepared.codes(), rule)


def vocabulary_path(directory: Path, field: str) -> Path:
    """Return where the vocabulary of `field` is: a name may hold what no file's name can."""
    readable = re.sub("[^A-Za-z0-9_-]+", "-", field).strip("-")[:40]
    digest = hashlib.sha256(field.encode()).hexdigest()[:8]
    return directory / "vocabularies" / f"{readable or 'field'}-{digest}.parquet"


def field_codes(
    directory: Path, schema: Schema, provenance: dict[str, Any]
) -> tuple[FieldCode, ...]:
    """Return the codes of the fields, by the vocabularies of `directory` and the rules beside."""
    separators, edges, hashed = (
        provenance.get(rule, {}) for rule in ("separators", "buckets", "hashed")
    )
    return tuple(
        FieldCode(
            name=each.name,
            kind=each.kind,
            values=_numbered_values(directory, each),
            separator=separators.get(each.name),
            edges=tuple(edges[each.name]) if each.name in edges else None,
            buckets=hashed.get(each.name),
        )
        for each in schema.fields
    )


def _numbered_values(directory: Path, known: Field) -> pa.StringArray:
    table = _read_vocabulary(vocabulary_path(directory, known.name))
    if not np.array_equal(table["id"], np.arange(1, known.size)):
        raise DataError(
            f"the vocabulary of field {known.name!r} in {directory} does not number its values "
            f"from 1 to {known.size - 1}; {_AGAIN}"
        )
    return table["value"].combine_chunks()


def _read_vocabulary(path: Path) -> pa.Table:
    try:
        # A path that Arrow is given as such may be a pattern, or say how rows are partitioned.
        with _existing(path).open("rb") as file:
            return pq.read_table(file, columns=["value", "id", "count"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error


def read_schema(directory: Path) -> Prepared:
    """Reads `schema.json` alone, for a directory with vocabularies but no rows, such as a run.

    Raises `DataError` when the file is missing, unreadable or of another format version.
    """
    path = _existing(directory / "schema.json")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            schema = Schema.from_json(content["schema"])
            provenance = _provenance(content["provenance"])
            _check_rules(schema, provenance)
            return Prepared(directory, schema, provenance)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    except DataError as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error
    raise DataError(
        f"{path} has format_version {version}; this d3jax reads {FORMAT_VERSION}; {_AGAIN}"
    )


_RULES = {
    "rows": dict[str, int],
    "unknown": dict[str, int],
    "separators": dict[str, str],
    "buckets": dict[str, Any],
    "hashed": dict[str, int],
    "scenario": ScenarioRule,
}
"""The parts of the provenance that decide ids and scenarios, or are counted on, by type."""


def _provenance(value: Any) -> dict[str, Any]:
    """Return how the data was prepared, with the types that are counted on."""
    provenance = from_json(dict[str, Any], value, "provenance", DataError)
    for name, kind in _RULES.items():
        if name in provenance:
            from_json(kind, provenance[name], f"provenance.{name}", DataError)
    for name, edges in provenance.get("buckets", {}).items():
        from_json(tuple[float, ...], edges, f"provenance.buckets.{name}", DataError)
    if negative := [n for n, rows in provenance.get("rows", {}).items() if rows < 0]:
        raise DataError(f"provenance.rows.{negative[0]} is below 0")
    return provenance


def _check_rules(schema: Schema, provenance: dict[str, Any]) -> None:
    """Raises `DataError` when the rules are not those that the schema was written with."""
    if schema.fingerprint != _rules_fingerprint(provenance):
        raise DataError("the rule for the scenario or the label has changed since it was written")


def _rules_fingerprint(provenance: dict[str, Any]) -> str:
    rules = [provenance.get("scenario"), provenance.get("label_rule")]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def open_prepared(directory: Path | str) -> Prepared:
    """Opens a prepared directory and checks that its files agree, without reading the rows.

    Raises `DataError` naming the file that is missing, cut short or of another shape than
    `schema.json` says. `check_rows` looks at the values.
    """
    directory = Path(directory)
    prepared = read_schema(directory)
    for known in prepared.schema.fields:
        path = _existing(vocabulary_path(directory, known.name))
        _check_vocabulary_size(path, known.size)
    for split in SPLITS:
        count = prepared.provenance.get("rows", {}).get(split, 0)
        if count < 1:
            raise DataError(f"{directory}: split {split!r} has no rows; {_AGAIN}")
        _check_split(prepared, split, count)
    return prepared


def check_rows(prepared: Prepared) -> None:
    """Stream over every row and check ids, scenarios and labels.

    Raises `DataError` naming file, field, row and value; for example ids that exceed the
    vocabulary, which a device would clamp in silence.
    """
    for split in SPLITS:
        prepared.rows(split)


def _check_rows(prepared: Prepared, split: str, rows: Rows) -> None:
    lengths = {len(column) for column in rows}
    for start in range(0, min(lengths), _CHUNK):
        _check_chunk(prepared, split, rows, start, start + _CHUNK)


def check_replaceable(directory: Path, overwrite: bool) -> None:
    """Raises `OutputError` when `directory` exists and can't be replaced by a prepared one."""
    check_free(directory, ("prepared", "synthetic"), overwrite)


def building(
    directory: Path,
    overwrite: bool = False,
    kind: str = "prepared",
    inputs: Sequence[Path] = (),
    need: str = "some",
) -> AbstractContextManager[Path]:
    """`owned.building` of a prepared directory; `prepare` may replace made-up data, but what is
    made up replaces only its like."""
    replaces = ("synthetic",) if kind == "prepared" else ()
    return owned.building(directory, kind, overwrite, replaces, inputs=inputs, need=need)


def write_rows(
    directory: Path, split: str, count: int, num_slots: int, chunks: Iterable[Rows]
) -> None:
    """Streams `chunks` into the columns of `split`, which hold exactly `count` rows.

    Raises `DataError` when there are no rows, or more or fewer than `count`.
    """
    if count < 1:
        raise DataError(f"split {split!r} has no rows to write")
    (directory / split).mkdir(parents=True, exist_ok=True)
    layout = _layout(count, num_slots)
    filled = 0
    with ExitStack() as stack:
        # Written, not mapped: a full disk is then an error, and no page stays in memory.
        files = [
            stack.enter_context(_column(directory, split, name).open("wb")) for name, *_ in layout
        ]
        for file, (_, dtype, shape) in zip(files, layout, strict=True):
            _write_header(file, dtype, shape)
        for chunk in chunks:
            filled += len(chunk.label)
            if filled > count:
                raise DataError(f"split {split!r} got more than the {count} rows that were counted")
            for file, values, (_, dtype, shape) in zip(files, chunk, layout, strict=True):
                block = np.empty((len(chunk.label), *shape[1:]), dtype)
                block[:] = values
                file.write(block.data)
    if filled != count:
        raise DataError(f"split {split!r} got {filled} rows; {count} were counted")


def _write_header(file: BinaryIO, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_vocabulary(directory: Path, field: str, table: pa.Table) -> None:
    """Writes columns `value`, `id`, `count` of `field`; equal tables give equal bytes."""
    path = vocabulary_path(directory, field)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = pa.schema({"value": pa.string(), "id": pa.int32(), "count": pa.int64()})
    # One chunk: the pages of a Parquet file follow the chunks of the table.
    plain = table.select(layout.names).cast(layout).combine_chunks()
    with path.open("wb") as file:
        pq.write_table(plain, file, compression="zstd")


def write_schema(directory: Path, schema: Schema, provenance: dict[str, Any]) -> None:
    """Writes `schema.json`, the same bytes for the same content.

    The schema gets the fingerprints of the vocabularies, which must be in `directory` already,
    and of the rules in `provenance`.
    """
    codes = field_codes(directory, schema, provenance)
    fields = zip(schema.fields, codes, strict=True)
    schema = replace(
        schema,
        fields=tuple(replace(each, fingerprint=code.fingerprint) for each, code in fields),
        fingerprint=_rules_fingerprint(provenance),
    )
    content = {
        "format_version": FORMAT_VERSION,
        "schema": schema.to_json(),
        "provenance": provenance,
    }
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / "schema.json").write_text(text + "\n", encoding="utf-8")


def _layout(count: int, num_slots: int) -> list[tuple[str, type[np.generic], tuple[int, ...]]]:
    return [
        ("ids", np.int32, (count, num_slots)),
        ("scenario", np.int32, (count,)),
        ("label", np.float32, (count,)),
    ]


def _column(directory: Path, split: str, name: str) -> Path:
    return directory / split / f"{name}.npy"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {_AGAIN}, or check that the path is right")
    return path


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(_existing(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); {_AGAIN}") from error


def _check_vocabulary_size(path: Path, size: int) -> None:
    try:
        values = _rows_of(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error
    if values + 1 != size:
        raise DataError(f"{path} has {values} values; schema.json says {size - 1}; {_AGAIN}")


def _rows_of(path: Path) -> int:
    with path.open("rb") as file:
        return pq.read_metadata(file).num_rows


def _check_split(prepared: Prepared, split: str, count: int) -> None:
    layout = _layout(count, prepared.schema.num_slots)
    for name, dtype, shape in layout:
        column = _map(_column(prepared.directory, split, name))
        if column.dtype != dtype or column.shape != shape:
            raise DataError(
                f"{_column(prepared.directory, split, name)} holds {column.dtype} of shape "
                f"{column.shape}; schema.json says {np.dtype(dtype)} of shape {shape}; {_AGAIN}"
            )


def _check_chunk(prepared: Prepared, split: str, rows: Rows, start: int, stop: int) -> None:
    where = f"{prepared.directory / split} (ids.npy, scenario.npy)"
    prepared.schema.check(rows.ids[start:stop], rows.scenario[start:stop], where, start)
    label = rows.label[start:stop]
    bad = ~np.isin(label, (0, 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"label {label[row]} in row {start + row} of "
            f"{_column(prepared.directory, split, 'label')} is neither 0 nor 1; {_AGAIN}"
        )
