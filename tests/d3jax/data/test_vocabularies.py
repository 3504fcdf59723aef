"""A vocabulary has one file, whatever its field is called, and is known when it is read."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.batch import Field, Schema
from d3jax.data.prepared import open_prepared, read_schema, write_schema
from d3jax.data.vocabularies import write_vocabulary
from d3jax.errors import DataError
from tests.d3jax.data.directory import vocabulary


def test_chunks_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    whole = vocabulary(*(str(value * 7919 % 10**9) for value in range(200_000)))
    pieces = pa.concat_tables([whole.slice(start, 777) for start in range(0, 200_000, 777)])
    written = []
    for name, table in (("whole", whole), ("pieces", pieces)):
        write_vocabulary(tmp_path / name, "user", table)
        [file] = (tmp_path / name / "vocabularies").iterdir()
        written.append((file.name, file.read_bytes()))
    assert written[0] == written[1]


NAMES = st.text(min_size=1, max_size=150) | st.sampled_from(
    [
        "*",
        "age*",
        "a/b",
        "../x",
        "..",
        "[a]",
        "?",
        "click=1",
        "年" * 120,
        "\0",
        "CON",
        "a",
        "A",
        " a",
    ]
)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_a_field_may_have_any_name(names: list[str]) -> None:
    """Each has a file of its own, and none is read in another's place."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        for index, name in enumerate(names):
            write_vocabulary(path, name, vocabulary(f"value {index}"))
        schema = Schema(tuple(Field(name, 2) for name in names), ("one",))
        write_schema(path, schema, {})
        assert len(list((path / "vocabularies").iterdir())) == len(names)
        codes = read_schema(path).codes()
        assert [code.values.to_pylist() for code in codes] == [
            [f"value {index}"] for index in range(len(names))
        ]


def test_a_vocabulary_that_is_not_the_schemas_is_refused(directory: Path) -> None:
    write_vocabulary(directory, "tags", vocabulary("x", "z"))
    message = "is damaged: it is not the vocabulary that schema.json knows of field 'tags'; prepare"
    with pytest.raises(DataError, match=message):
        open_prepared(directory).codes()


def test_vocabulary_of_an_unknown_field(directory: Path) -> None:
    with pytest.raises(DataError, match=r"no field 'age' in the schema; it has \['user', 'tags'\]"):
        open_prepared(directory).vocabulary("age")
