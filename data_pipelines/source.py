"""What a data source hands to `prepare`, and how `prepare` is to treat it.

This file imports no engine, so that the command line can explain itself at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from d3jax.errors import ConfigError

if TYPE_CHECKING:
    import ibis


@dataclass(frozen=True)
class FieldSource:
    """One field of the rows; multi-valued when `separator` is set, in at most `max_slots` slots.

    With `encoded` its values are ids already, from 1 on and 0 for unknown: they stay as they are.
    """

    name: str
    separator: str | None = None
    max_slots: int | None = None
    encoded: bool = False


@dataclass(frozen=True)
class Source:
    """Raw rows as one table expression, and what its columns mean.

    `rows` has a string column per field, `label` (0 or 1), `scenario` (an index into
    `scenarios`) and the columns of `key`, strings or integers that identify an event: rows with
    equal keys fall on the same side of the split. `scenario_field` is the column that decides
    the scenario, `scenario_values` maps its raw values to names; `files` are what was read.

    Where the publisher decided the split, `split` names the column that says 'train',
    'validation' or 'test'; rows where it is NULL are train, less `validation_fraction` of them.
    `dropped` counts the rows that were left out, by reason.
    """

    rows: ibis.Table
    fields: tuple[FieldSource, ...]
    scenarios: tuple[str, ...]
    scenario_field: str
    scenario_values: Mapping[str, str]
    key: tuple[str, ...]
    label_rule: str
    user_field: str | None = None
    item_field: str | None = None
    files: tuple[Path, ...] = ()
    split: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PrepareConfig:
    """How to split the rows and which values to keep."""

    min_count: int = 1
    """Values seen in fewer training rows become unknown."""
    test_fraction: float = 0.2
    """Share of the rows held out for testing."""
    validation_fraction: float = 0.1
    """Share of the other rows held out for early stopping."""
    seed: int = 0
    """Decides which rows are held out."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ConfigError(f"min_count is {self.min_count}; it must be at least 1")
        fractions = {
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
        }
        for name, value in fractions.items():
            if not 0 < value < 1:
                raise ConfigError(f"{name} is {value}; it must be above 0 and below 1")
