"""A prepared directory of ten rows in two fields, and ways to spoil it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from d3jax.batch import Field, Schema
from d3jax.data.columns import Rows, write_rows
from d3jax.data.prepared import write_schema
from d3jax.data.vocabularies import write_vocabulary

SCHEMA = Schema(
    fields=(Field("user", 4), Field("tags", 3, slots=2)),
    scenarios=("young", "old"),
    scenario_field="user",
    user_field="user",
)
COUNTS = {"train": 5, "validation": 2, "test": 3}


def some_rows(count: int) -> Rows:
    row = np.arange(count)
    return Rows(
        ids=np.stack([row % 4, row % 3, np.where(row % 2, 2, -1)], axis=1).astype(np.int32),
        scenario=(row % 2).astype(np.int32),
        label=(row % 2).astype(np.float32),
    )


def vocabulary(*values: str) -> pa.Table:
    ids = np.arange(1, len(values) + 1)
    return pa.table({"value": list(values), "id": ids, "count": ids[::-1] * 10})


def make(path: Path) -> Path:
    path.mkdir()
    for split, count in COUNTS.items():
        write_rows(path, split, count, 3, [some_rows(count)])
    write_vocabulary(path, "user", vocabulary("a", "b", "c"))
    write_vocabulary(path, "tags", vocabulary("x", "ÿ"))
    write_schema(path, SCHEMA, {"rows": COUNTS, "label_rule": "rating > 3"})
    return path


def edit_schema(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / "schema.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
