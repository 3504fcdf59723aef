"""A data set, the rows that it hands to `prepare`, and how `prepare` is to treat them.

This file imports no engine, so that the command line can explain itself at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from d3jax.checks import check_scenarios
from d3jax.errors import ConfigError

if TYPE_CHECKING:
    import ibis


Progress = Callable[[str, int, int], None]
"""Called before each step with its name, its index and the number of steps."""

LARGEST_ID = 2**31 - 2
"""The limit of a field; the table's rows are counted in int32."""


@dataclass(frozen=True)
class FieldSource:
    """One field of the rows; multi-valued when `separator` is set, in at most `max_slots` slots.

    The rows have `joined_lists` of a field that came `as_lists`; its separator is for other rows.
    With `encoded` its values are ids already, from 1 on and 0 for unknown: they stay as they are.
    With `quantiles` they are numbers, put into that many buckets of about as many training rows
    each; with `hash_buckets` strings whose md5 decides the id. Otherwise a vocabulary does.
    Raises `ConfigError` when two of these are asked for.
    """

    name: str
    separator: str | None = None
    max_slots: int | None = None
    encoded: bool = False
    quantiles: int | None = None
    hash_buckets: int | None = None
    as_lists: bool = False

    def __post_init__(self) -> None:
        kinds = [self.encoded, self.quantiles is not None, self.hash_buckets is not None]
        if sum(kinds) > 1 or (self.quantiles is not None and self.separator is not None):
            raise ConfigError(
                f"field {self.name!r} is prepared in two ways; choose one of buckets of numbers, "
                "hashing and given ids (only hashing goes with several values)"
            )
        for name, value in (("quantiles", self.quantiles), ("hash_buckets", self.hash_buckets)):
            if value is not None and not 2 <= value <= LARGEST_ID:
                raise ConfigError(
                    f"field {self.name!r}: {name} is {value}; it must be from 2 to {LARGEST_ID}"
                )


@dataclass(frozen=True)
class Source:
    """Raw rows as one table expression, and what its columns mean.

    `rows` has a string column per field, a label (0 or 1) in `label_column`, an index into
    `scenarios` in `scenario_column`, and the columns of `key`, strings or integers that identify
    an event: rows with equal keys fall on the same side of the split. `scenario_field` is the
    column that decides the scenario, `scenario_values` maps its raw values to names; `files` are
    what was read.

    With `scenario_edges` it holds numbers instead: the first scenario is what lies below the
    first edge, and an edge belongs to the scenario above it.

    Where the publisher decided the split, `split` names the column that says 'train',
    'validation' or 'test', by `split_rule`; rows where it is NULL are train, less
    `validation_fraction` of them. `time` is a column in whose order things happened, never NULL.
    `dropped` counts the rows that were left out, by reason; `unmatched` those that a joined table
    knows nothing about, by its name; `repeated` those whose event another row has too. `unused`
    are the columns that nothing was made of. Raises `DataError` for scenarios whose names can't be
    told apart.
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
    split_rule: str = "as published"
    time: str | None = None
    scenario_edges: tuple[float, ...] = ()
    label_column: str = "label"
    scenario_column: str = "scenario"
    unmatched: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_scenarios(self.scenarios)


@dataclass(frozen=True)
class PrepareConfig:
    """Rules to split the rows and to keep values."""

    min_count: int = 1
    """Values seen in fewer training rows become unknown."""
    test_fraction: float = 0.2
    """Share of the rows held out for testing."""
    validation_fraction: float = 0.1
    """Share of the other rows held out for early stopping."""
    seed: int = 0
    """Decides which rows are held out."""
    split: Literal["random", "time", "user"] = "random"
    """Hold out random rows, the latest rows, or all rows of random users."""

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


@dataclass(frozen=True)
class Workplace:
    """A workplace to read raw rows in: an engine, a folder for what is large, a progress bar.

    What `enter` opened is closed when the rows are prepared.
    """

    connection: ibis.BaseBackend
    scratch: Path
    advance: Progress
    stack: ExitStack

    def enter(self, context: AbstractContextManager[Path]) -> Path:
        """Enter a context until the rows are prepared."""
        return self.stack.enter_context(context)


@dataclass(frozen=True, kw_only=True)
class DataSet(ABC):
    """A data set that `d3jax prepare` knows by name: its fields are the flags, `read` its rows.

    The first line of a subclass' docstring is what help says. Its file imports engines in
    functions only, so that help is instant; `data_pipelines.raw` does so by itself.
    """

    files: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILES")]
    """The raw files: the directory, file or zip that holds them."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED")]
    """The prepared directory to make."""
    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(default_factory=PrepareConfig)
    overwrite: bool = False
    """Replace the prepared directory if it exists."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """The engine: DuckDB in this process, or Spark as its own configuration says."""

    @abstractmethod
    def read(self, place: Workplace) -> Source:
        """Return the raw rows, checked; raise `DataError` for what the files may not hold."""
