"""The verbs that make data: prepare, with the flags of each data set, and describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from d3jax.console.terminal import Console
from d3jax.errors import ConfigError
from d3jax.verb import Verb
from data_pipelines.source import DataSet
from data_pipelines.sources import find_sources, load_source


@dataclass(frozen=True)
class Prepare(Verb):
    """Turn raw files into a prepared directory."""

    source: DataSet

    @classmethod
    def flagged(cls) -> type[Verb]:
        """Return the verb with the flags of the data sets that there are by now."""
        return _with_sources(*((each, _loaded(each)) for each in find_sources()))

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Refuse a data set that can't be loaded, before its flags are looked at."""
        if arguments and arguments[0] in find_sources():
            load_source(arguments[0])
        return tyro.MISSING

    def run(self, console: Console) -> None:
        """Prepare the data set and show what came out."""
        from data_pipelines.summary import show_summary
        from data_pipelines.workplace import prepare_data_set

        show_summary(prepare_data_set(self.source, console), console)


def _with_sources(*sources: tuple[str, type[DataSet]]) -> type[Verb]:
    """Return a `Verb` whose `source` is one of the data sets, by name."""
    choices = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in sources)
    notes = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
    return make_dataclass(
        "Prepare",
        [("source", Annotated[Union[choices], *notes])],  # noqa: UP007 - a union of a tuple
        bases=(Prepare,),
        namespace={"__doc__": Prepare.__doc__},
        frozen=True,
    )


def _loaded(name: str) -> type[DataSet]:
    """Return the data set of a name, or one without flags that tells why it can't be loaded."""
    try:
        return load_source(name)
    except ConfigError as error:
        return make_dataclass(
            "Unavailable", [], bases=(DataSet,), namespace={"__doc__": f"({error})"}, frozen=True
        )


@dataclass(frozen=True)
class Describe(Verb):
    """Show the rows, click rates and ids of a prepared directory."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED")]
    """A prepared directory."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .png to draw the scenarios' sizes and click rates in."""

    def run(self, console: Console) -> None:
        """Print two tables."""
        from data_pipelines.describe import describe

        describe(self.directory, self.picture, Console())
