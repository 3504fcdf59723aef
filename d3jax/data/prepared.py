"""The prepared directory: encoded columns, vocabularies and the schema that explains them.

.d3jax                             the marker of what d3jax made
schema.json                        format version, fields, scenarios, how it was prepared
vocabularies/<name>.parquet        of a field: value (string), id (int32), count (int64) in train
<split>/ids.npy                    [R K] int32
<split>/scenario.npy, label.npy    [R] int32, [R] float32
checksums.json                     SHA-256 of the other files
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from d3jax import owned
from d3jax.batch import Schema
from d3jax.checks import as_path
from d3jax.data.checksums import data_fingerprint
from d3jax.data.columns import SPLITS, Rows, check_layout, check_values, map_rows
from d3jax.data.encoder import Encoder, FieldCode, ScenarioRule
from d3jax.data.files import AGAIN, existing
from d3jax.data.provenance import read_provenance, rules_fingerprint
from d3jax.data.vocabularies import (
    check_vocabulary_size,
    field_codes,
    read_vocabulary,
    vocabulary_path,
)
from d3jax.errors import DataError
from d3jax.typed import from_json, parse_json

FORMAT_VERSION = 3


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
        rows = map_rows(self.directory, split)
        if split not in self._checked:
            check_values(self.directory, split, self.schema, rows)
            self._checked.add(split)
        return rows

    def vocabulary(self, field: str) -> pa.Table:
        """Columns `value`, `id`, `count` of `field`, by id from 1; unknown (id 0) has no row."""
        self.schema.index(field)
        return read_vocabulary(self.directory, field)

    def codes(self) -> tuple[FieldCode, ...]:
        """Return what gives the values of each field their ids.

        Raises `DataError` when a vocabulary is missing or not the one of the schema.
        """
        codes = field_codes(self.directory, self.schema, self.provenance)
        for known, code in zip(self.schema.fields, codes, strict=True):
            if len(code.values) != known.size - 1 or code.fingerprint != known.fingerprint:
                raise DataError(
                    f"{vocabulary_path(self.directory, known.name)} is damaged: it is not the "
                    f"vocabulary that schema.json knows of field {known.name!r}; {AGAIN}, or put "
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


def read_schema(directory: Path) -> Prepared:
    """Reads `schema.json` alone, for a directory with vocabularies but no rows, such as a run.

    Raises `DataError` when the file is missing, unreadable or of another format version.
    """
    path = existing(directory / "schema.json")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            schema = Schema.from_json(content["schema"])
            provenance = read_provenance(content["provenance"])
            if schema.fingerprint != rules_fingerprint(provenance):
                rule = "the rule for the scenario or the label"
                raise DataError(f"{rule} has changed since it was written")
            return Prepared(directory, schema, provenance)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {AGAIN}") from error
    except DataError as error:
        raise DataError(f"{path} is damaged ({error}); {AGAIN}") from error
    raise DataError(
        f"{path} has format_version {version}; this d3jax reads {FORMAT_VERSION}; {AGAIN}"
    )


def open_prepared(directory: Path | str) -> Prepared:
    """Opens a prepared directory and checks that its files agree, without reading the rows.

    Raises `DataError` naming the file that is missing, cut short or of another shape than
    `schema.json` says. `check_rows` looks at the values.
    """
    directory = as_path("directory", directory, "a prepared directory")
    if (directory / "config.json").is_file():
        raise DataError(f"{directory} is a run; give the prepared directory that it was trained on")
    prepared = read_schema(directory)
    for known in prepared.schema.fields:
        check_vocabulary_size(directory, known)
    for split in SPLITS:
        count = prepared.provenance.get("rows", {}).get(split, 0)
        if count < 1:
            raise DataError(f"{directory}: split {split!r} has no rows; {AGAIN}")
        check_layout(directory, split, count, prepared.schema.num_slots)
    return prepared


def check_rows(prepared: Prepared) -> None:
    """Stream over every row and check ids, scenarios and labels.

    Raises `DataError` naming file, field, row and value; for example ids that exceed the
    vocabulary, which a device would clamp in silence.
    """
    for split in SPLITS:
        prepared.rows(split)


def check_replaceable(directory: Path, overwrite: bool) -> None:
    """Raises `OutputError` when `directory` exists and can't be replaced by a prepared one."""
    owned.check_free(directory, ("prepared", "synthetic"), overwrite)


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
        fingerprint=rules_fingerprint(provenance),
    )
    content = {
        "format_version": FORMAT_VERSION,
        "schema": schema.to_json(),
        "provenance": provenance,
    }
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / "schema.json").write_text(text + "\n", encoding="utf-8")
