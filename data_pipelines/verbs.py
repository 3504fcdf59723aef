"""The verbs that make data: prepare, with a small dataclass a data source, and describe.

What reads the files is imported by the source that runs, so that help is instant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from d3jax.console.terminal import Console
from d3jax.errors import ConfigError
from d3jax.verb import Verb
from data_pipelines.source import PrepareConfig, Source, TableConfig

if TYPE_CHECKING:
    from data_pipelines.preparing import Workplace


@dataclass(frozen=True, kw_only=True)
class _Prepare(ABC):
    """What all sources have in common."""

    files: tyro.conf.Positional[Path]
    """The raw files: the directory, file or zip that holds them."""
    out: tyro.conf.Positional[Path]
    """The prepared directory to make."""
    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(default_factory=PrepareConfig)
    overwrite: bool = False
    """Replace the prepared directory if it exists."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes: DuckDB in this process, or Spark as its own configuration says."""

    @abstractmethod
    def read(self, place: Workplace) -> Source:
        """The raw rows, checked."""

    def run(self, console: Console) -> None:
        """Prepares the data and shows what came out."""
        from data_pipelines.preparing import prepare_source

        for path in (self.files, self.out):
            if any(ord(character) < 32 for character in str(path.absolute())):
                raise ConfigError(
                    f"the path {str(path)!r} holds a line break or another control character, "
                    "which the engines can't take; rename it"
                )
        prepare_source(self.read, self.out, self.config, self.overwrite, self.engine, console)


@dataclass(frozen=True, kw_only=True)
class MovieLens(_Prepare):
    """MovieLens-1M: three age groups; a rating above 3 is a click."""

    def read(self, place: Workplace) -> Source:
        """The ratings with their users and movies."""
        from data_pipelines.sources.movielens import movielens_1m, opened

        directory = place.enter(opened(self.files))
        return movielens_1m(place.connection, directory, place.scratch)


@dataclass(frozen=True, kw_only=True)
class Table(_Prepare):
    """A table of your own: text or Parquet, one file or many, with others to join."""

    table: tyro.conf.OmitArgPrefixes[TableConfig]

    def read(self, place: Workplace) -> Source:
        """The rows with the columns that are joined."""
        from data_pipelines.sources.table import read_table

        return read_table(place.connection, self.files, place.scratch, self.table)


@dataclass(frozen=True, kw_only=True)
class ADC(_Prepare):
    """Ali_Display_Ad_Click: the two positions of ads."""

    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(
        default_factory=lambda: PrepareConfig(min_count=10)
    )
    last_day: bool = False
    """Hold out the last of the eight days instead of a share of the rows."""

    def read(self, place: Workplace) -> Source:
        """The impressions with their ads and users."""
        from data_pipelines.sources.adc import adc

        return adc(place.connection, self.files, place.scratch, self.last_day)


@dataclass(frozen=True, kw_only=True)
class KuaiRand(_Prepare):
    """KuaiRand-Pure, 1K or 27K: the tabs of a video app."""

    fields: tuple[str, ...] = ()
    """Columns of the user and video files to use instead of the usual ones."""
    tabs: tuple[str, ...] = ("0", "1", "2", "4", "6")
    """The scenarios; rows of other tabs are left out."""
    both_periods: bool = False
    """Use the log of the first two weeks too."""
    random_exposure: bool = False
    """Mix the randomly shown videos in, told apart by the field is_rand."""

    def read(self, place: Workplace) -> Source:
        """The impressions with their users and videos."""
        from data_pipelines.sources.kuairand import kuairand

        return kuairand(
            place.connection,
            self.files,
            place.scratch,
            fields=self.fields,
            tabs=self.tabs,
            both_periods=self.both_periods,
            random_exposure=self.random_exposure,
        )


@dataclass(frozen=True, kw_only=True)
class AliCCP(_Prepare):
    """Ali-CCP: the three positions of field 301, in the published halves."""

    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(
        default_factory=lambda: PrepareConfig(min_count=10)
    )
    multi_valued: bool = False
    """Keep several values of a multi-valued field instead of the last one."""
    max_slots: int = 8
    """How many of them."""
    encoded: bool = False
    """The files are those of Scenario-Wise-Rec, whose ids are kept."""

    def read(self, place: Workplace) -> Source:
        """The impressions with their common features."""
        from data_pipelines.sources.ali_ccp import ali_ccp
        from data_pipelines.sources.ali_ccp_encoded import ali_ccp_encoded

        if self.encoded:
            return ali_ccp_encoded(place.connection, self.files, place.scratch)
        return ali_ccp(
            place.connection,
            self.files,
            place.scratch,
            last_value=not self.multi_valued,
            max_slots=self.max_slots,
            progress=place.advance,
        )


Preparation = (
    Annotated[MovieLens, tyro.conf.subcommand("movielens-1m")]
    | Annotated[AliCCP, tyro.conf.subcommand("ali-ccp")]
    | Annotated[ADC, tyro.conf.subcommand("adc")]
    | Annotated[KuaiRand, tyro.conf.subcommand("kuairand")]
    | Annotated[Table, tyro.conf.subcommand("table")]
)
"""The sources, by the names that the command line has for them."""


@dataclass(frozen=True)
class Prepare(Verb):
    """Turn raw files into a prepared directory."""

    source: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Preparation]]
    """Where the rows come from."""

    def run(self, console: Console) -> None:
        """Prepares the data."""
        self.source.run(console)


@dataclass(frozen=True)
class Describe(Verb):
    """Show the rows, click rates and ids of a prepared directory."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED")]
    """A prepared directory."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .png to draw the scenarios' sizes and click rates in."""

    def run(self, console: Console) -> None:
        """Prints two tables."""
        from data_pipelines.describe import describe

        describe(self.directory, self.picture, Console())
