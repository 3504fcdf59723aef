"""Values that training had not seen: a model scores them as it never learnt to."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d3jax.batch import Schema
from d3jax.data.encoder import unknown_rows
from d3jax.data.prepared import Prepared

FAR = 0.2
"""The excess over training's share of unknown values that is worth a warning."""

ENOUGH = 100
"""Rows of which the share of unknown values is worth a warning."""

_CHUNK = 1 << 20


class Unknown(NamedTuple):
    """The rows [N], of `total`, without a known value in a field; `trained`: the share in train."""

    schema: Schema
    rows: Int[np.ndarray, " N"]
    total: int
    trained: Float[np.ndarray, " N"]

    @property
    def share(self) -> Float[np.ndarray, " N"]:
        """The share of rows without a known value, by field."""
        return self.rows / max(self.total, 1)

    def to_json(self) -> dict[str, float]:
        """The shares by the fields' names."""
        names = (field.name for field in self.schema.fields)
        return dict(zip(names, self.share.tolist(), strict=True))

    def report(self) -> str:
        """The shares in one line, the largest first."""
        found = {name: share for name, share in self.to_json().items() if share > 0}
        if not found:
            return "unknown or missing values: none"
        told = (
            f"{name} {found[name]:.1%}" for name in sorted(found, key=lambda name: -found[name])
        )
        return f"unknown or missing values: {', '.join(told)}"

    def warnings(self) -> dict[str, str]:
        """A line for each field, by its name, in which far more is unknown than in training."""
        names = [field.name for field in self.schema.fields]
        shares = zip(names, self.share, self.trained, strict=True)
        return {
            name: (
                f"field {name!r}: {share:.1%} of the rows have no value that training saw, where "
                f"{trained:.1%} of the training rows have none; their scores are guesses. Are the "
                "values written as in the training data?"
            )
            for name, share, trained in shares
            if share > trained + FAR
        }


class Watch:
    """Counts what of the rows that it is shown training had not seen, and warns of much of it."""

    def __init__(self, described: Prepared) -> None:
        none = np.zeros(described.schema.num_fields, np.int64)
        self.seen = Unknown(described.schema, none, 0, training_share(described))
        """All rows so far."""
        self._judged = self.seen
        self._told: set[str] = set()

    def look(self, ids: Int[np.ndarray, "B K"]) -> None:
        """Count some rows."""
        seen = self.seen
        rows = seen.rows + unknown_rows(seen.schema, ids)
        self.seen = seen._replace(rows=rows, total=seen.total + len(ids))

    def warn(self) -> None:
        """Warn the caller's caller of the rows since the last time, once of each field.

        Fewer than `ENOUGH` rows wait for more.
        """
        seen, judged = self.seen, self._judged
        recent = seen._replace(rows=seen.rows - judged.rows, total=seen.total - judged.total)
        if recent.total < ENOUGH:
            return
        self._judged = seen
        for name, warning in recent.warnings().items():
            if name not in self._told:
                self._told.add(name)
                warnings.warn(warning, stacklevel=3)


def training_share(described: Prepared) -> Float[np.ndarray, " N"]:
    """The share of the training rows without a known value [N], as the preparation counted it."""
    counted = described.provenance.get("unknown", {})
    rows = described.provenance.get("rows", {}).get("train", 0)
    return np.array([counted.get(field.name, 0) for field in described.schema.fields]) / max(
        rows, 1
    )


def unknown_in(prepared: Prepared, split: str, described: Prepared) -> Unknown:
    """Return the unknown values of a split, beside the training rows of what is `described`."""
    ids = prepared.rows(split).ids
    starts = range(0, len(ids), _CHUNK)
    rows = sum(unknown_rows(prepared.schema, ids[start : start + _CHUNK]) for start in starts)
    return Unknown(prepared.schema, np.asarray(rows), len(ids), training_share(described))
