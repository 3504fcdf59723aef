"""Prepared rows that are split again at random, so that a comparison isn't of one draw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from d3jax.configure import is_split_at_random
from d3jax.data.checksums import write_checksums
from d3jax.data.columns import SPLITS, Rows, write_rows
from d3jax.data.encoder import unknown_rows
from d3jax.data.prepared import Prepared, building, open_prepared, write_schema
from d3jax.errors import ConfigError, DataError

_CHUNK = 1 << 20

NOTE = (
    "The rows were split {splits} times; split 0 is the prepared one, and every seed was run on "
    "each: 2-split-1 is seed 2 on split 1. The others draw rows at random in the same proportions. "
    "They keep the vocabularies of split 0 and what its rows decided (auto), so that values which "
    "its training rows hadn't stay unknown. Splits share rows, so that p is smaller than it should "
    "be (Nadeau and Bengio, 2003)."
)


def check_redrawable(prepared: Prepared, splits: int) -> None:
    """Raise `ConfigError` for several splits of rows that were not split one by one at random."""
    method = str(prepared.provenance.get("split", {}).get("method", "a rule that it doesn't say"))
    if splits > 1 and (not is_split_at_random(prepared) or method.endswith(" user")):
        raise ConfigError(
            f"splits is {splits}, but {prepared.directory} was split by {method}; rows drawn at "
            "random would be tested by a model that saw later ones, or the same user's; leave "
            "--splits out, or prepare the data with --split random"
        )


def redraw(prepared: Prepared, directory: Path, seed: int) -> Prepared:
    """Return the prepared rows split again in the same proportions, made where they aren't yet.

    Raises `DataError` for a directory that holds other rows.
    """
    if not directory.exists():
        _write(prepared, directory, seed)
    found = open_prepared(directory)
    if found.provenance.get("redrawn") != _mark(prepared, seed):
        raise DataError(
            f"{directory} is not {prepared.directory} split with seed {seed}; choose another --out"
        )
    return found


def _mark(prepared: Prepared, seed: int) -> dict[str, int | str]:
    """The seed and the rows, for `schema.json`."""
    return {"seed": seed, "of": prepared.fingerprint}


def _write(prepared: Prepared, directory: Path, seed: int) -> None:
    schema, counts = prepared.schema, prepared.provenance["rows"]
    of_split = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [counts[each] for each in SPLITS])
    np.random.default_rng(seed).shuffle(of_split)
    with building(directory) as path:
        shutil.copytree(prepared.directory / "vocabularies", path / "vocabularies")
        for index, split in enumerate(SPLITS):
            rows = _chosen(prepared, of_split == index)
            write_rows(path, split, counts[split], schema.num_slots, rows)
        train = _chosen(prepared, of_split == SPLITS.index("train"))
        unknown = np.sum([unknown_rows(schema, chunk.ids) for chunk in train], axis=0)
        names = [field.name for field in schema.fields]
        counted = dict(zip(names, unknown.tolist(), strict=True))
        made = {"unknown": counted, "redrawn": _mark(prepared, seed)}
        write_schema(path, schema, {**prepared.provenance, **made})
        write_checksums(path)


def _chosen(prepared: Prepared, mine: Bool[np.ndarray, " R"]) -> Iterator[Rows]:
    """The rows of all splits, one after another, that are chosen."""
    done = 0
    for split in SPLITS:
        rows = prepared.rows(split)
        for start in range(0, len(rows.label), _CHUNK):
            chunk = Rows(*(column[start : start + _CHUNK] for column in rows))
            kept = mine[done : done + len(chunk.label)]
            done += len(kept)
            yield Rows(*(column[kept] for column in chunk))
