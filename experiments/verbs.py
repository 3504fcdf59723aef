"""The verbs that do science: compare, inspect, search and chaos."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from d3jax.config import Config
from d3jax.console.terminal import Console
from d3jax.errors import ConfigError
from d3jax.presets import read_preset, written_by_hand
from d3jax.reads import idle, refuse_idle
from d3jax.registry import BACKBONES
from d3jax.settings import Settings, preset_of, values
from d3jax.verb import Verb
from experiments.compare.tables import BACKBONE, Method, Table, find_table, of_methods, preset_path

TableName = Literal[1, 2, 3, "open", "terms", "default"]
OWN_TABLES = ["terms"], ["default"]
"""Tables that are not the paper's: their methods are compared as `d3jax train` trains them."""


@dataclass(frozen=True)
class Compare(Settings):
    """Train methods, or a table or figure of the D3 paper, over several seeds, and report them.

    The same command goes on where it was stopped: a finished cell is not trained again.
    """

    prepared: tyro.conf.Positional[Path] = tyro.MISSING
    """A prepared directory."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Any backbones by name, your own too, instead of a table; mlp is a plain network, and star+d3
    is star with the head d3. The others are tested against the first."""
    table: Annotated[TableName | None, tyro.conf.arg(metavar="TABLE")] = None
    """1: backbones without and with D3; 2: weight generators and loss adapters; 3: D3's parts;
    open: what the paper leaves open; terms: a domain's own terms; default: `d3jax train`'s.
    Terms, default and --methods have the preset best, if none is named; the others text."""
    figure: Annotated[Literal[3, 4] | None, tyro.conf.arg(metavar="3|4")] = None
    """3: AUC against the start of loss adaptation; 4: attention by scenario and field."""
    on: str = BACKBONE
    """The backbone of tables 2 and 3 and of the figures, such as one of your own."""
    seeds: int = 5
    """Runs of each method, with seeds 0, 1 and so on."""
    splits: int = 1
    """Splits of the rows, 0 the prepared one and the others random, each run with every seed;
    cells/mlp/2-split-1 is seed 2 on split 1. For data that were split at random."""
    base: Annotated[str | None, tyro.conf.arg(metavar="METHOD")] = None
    """Test every method against this one, such as MLP; the paper's pairs, or the first of
    --methods, when not given."""
    configs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A folder of preset files named by method, such as adi-d3.json, as d3jax search writes."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("comparison")
    """The folder of cells and reports; tables that share a folder share cells."""
    keep: bool = False
    """Keep the checkpoints of finished cells, to inspect them."""

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the preset that is named; else `best`, but for the paper's tables its text."""
        own = (
            bool(values("--methods", arguments)) or values("--table", arguments)[-1:] in OWN_TABLES
        )
        return cls.with_flags(preset_of(arguments, "best" if own else "text"), arguments)

    @classmethod
    def named(cls, config: Config, arguments: Sequence[str]) -> Sequence[Config]:
        """Return the methods of the table that the arguments name."""
        return _methods_named(config, arguments) or super().named(config, arguments)

    def trained(self, config: Config) -> Sequence[Config]:
        """Return the methods of the table that have no preset of their own."""
        shared = [each for each, path in self._methods() if path is None]
        return [method.configure(config, 0) for method in shared]

    def check(self, default: Settings) -> None:
        """Raises `ConfigError` for a setting of a method's preset by hand, too."""
        super().check(default)
        for path in {path for _, path in self._methods() if path is not None}:
            if written_by_hand(path):
                given = read_preset(path)
                refuse_idle(given, idle(given, Config(), partial(self._take, path)), f"{path}: ")

    def _take(self, path: Path, config: Config) -> Sequence[Config]:
        """The methods whose preset the file is, with this one instead."""
        takers = [method for method, its in self._methods() if its == path]
        return [method.configure(config, 0) for method in takers]

    def _methods(self) -> list[tuple[Method, Path | None]]:
        """Each method with the file of its preset."""
        return [(each, preset_path(self.configs, each)) for each in self._table().methods]

    def _table(self) -> Table:
        return find_table(self.table, self.figure, self.on, self.base, self.methods)

    def run(self, console: Console) -> None:
        """Trains what is missing and prints the table."""
        from experiments.compare.compare import Plan, compare

        plan = Plan(
            table=self._table(),
            config=self.chosen(),
            seeds=self.seeds,
            out=self.out,
            configs=self.configs,
            keep=self.keep,
            command=_command_line(),
            splits=self.splits,
        )
        compare(self.prepared, plan, console)


@dataclass(frozen=True)
class Inspect(Verb):
    """Draw a run: learning curves, calibration, gates, loss weights and attention."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """The split whose rows to look at."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """Another prepared directory with the run's vocabularies; the run's own when not given."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of the pictures; figures/ of the run when not given."""

    def run(self, console: Console) -> None:
        """Writes each picture as PNG and SVG."""
        from experiments.pictures.inspection import inspect_run

        inspect_run(self.directory, self.data, self.split, self.out, console)


@dataclass(frozen=True)
class Search(Settings):
    """Look for better settings on the validation rows; the test rows are never scored.

    The same command goes on where it was stopped.
    """

    prepared: tyro.conf.Positional[Path] = tyro.MISSING
    """A prepared directory."""
    space: Literal["paper", "wide"] = "wide"
    """paper: its grid of lambdas, alphas and start ratios; wide: learning rate, decays, dropout,
    length, layers, and what a model has of its own."""
    trials: int = 30
    """Settings to try, those of an earlier call included."""
    seeds: int = 3
    """Runs of the three best settings; the best mean wins."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("searched.json")
    """The preset file to write, for --config; the trials are in a .db file beside it."""
    table: Annotated[TableName | None, tyro.conf.arg(metavar="TABLE")] = None
    """Search for each method of that table; --out is then a folder, for compare --configs."""
    on: str = BACKBONE
    """The backbone of tables 2 and 3."""

    @classmethod
    def named(cls, config: Config, arguments: Sequence[str]) -> Sequence[Config]:
        """Return the methods of the table, if there is one."""
        return _methods_named(config, arguments) or super().named(config, arguments)

    def trained(self, config: Config) -> Sequence[Config]:
        """Return the methods of the table, if there is one."""
        if self.table is None:
            return (config,)
        methods = find_table(self.table, None, self.on, None).methods
        return [method.configure(config, config.train.seed) for method in methods]

    def check(self, default: Settings) -> None:
        """Raises `ConfigError` for a table's backbone without a table, too."""
        if self.table is None and self.on != BACKBONE:
            raise ConfigError(f"on is {self.on}, but there is no table; use --backbone instead")
        super().check(default)

    def run(self, console: Console) -> None:
        """Tries settings, pruning the hopeless, and writes the best."""
        try:
            from experiments.search import search
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"d3jax search needs {error.name}; install it: pip install 'd3jax[search]'"
            ) from error

        plan = search.Search(self.chosen(), self.space, self.trials, self.seeds, self.out)
        if self.table is None:
            search.search(self.prepared, plan, console)
        else:
            table = find_table(self.table, None, self.on, None)
            search.search_table(self.prepared, table, plan, console)


@dataclass(frozen=True)
class Chaos(Settings):
    """Kill a training run at random moments, and compare it with an undisturbed one."""

    prepared: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREPARED")] = None
    """A prepared directory; a small synthetic data set when not given."""
    kills: int = 30
    """The number of kills, over as many runs as it takes; --seed decides the moments too."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to make for all runs and their logs; runs/chaos when not given."""

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the preset that is named, saved often; the synthetic one's when none is."""
        return cls.with_flags(_saved_often(preset_of(arguments, "synthetic")), arguments)

    def run(self, console: Console) -> None:
        """Prints each kill, and whether anything came out differently."""
        from d3jax.run import fresh_directory
        from experiments.chaos import Plan, chaos

        out = fresh_directory(Path("runs"), "chaos") if self.out is None else self.out
        chaos(Plan(self.prepared, self.chosen(), self.kills, out), console)


def _methods_named(config: Config, arguments: Sequence[str]) -> list[Config]:
    """The methods that the arguments name, or those of the table or figure; none without one."""
    on = [name for name in values("--on", arguments) if name in BACKBONES.names()] or [BACKBONE]
    tables = [text for text in values("--table", arguments) if text in ("1", "2", "3", "open")]
    figures = [text for text in values("--figure", arguments) if text in ("3", "4")]
    if not tables and not figures:
        names = _names("--methods", arguments)
        return [each.configure(config, 0) for each in of_methods(names).methods] if names else []
    table: int | str | None = None
    if tables:
        table = "open" if tables[-1] == "open" else int(tables[-1])
    figure = int(figures[-1]) if figures and not tables else None
    methods = find_table(table, figure, BACKBONE if table == 1 else on[-1], None).methods
    return [method.configure(config, 0) for method in methods]


def _names(flag: str, arguments: Sequence[str]) -> list[str]:
    """All texts that follow a flag, up to the next one."""
    after = dropwhile(lambda text: text != flag, arguments)
    return list(takewhile(lambda text: not text.startswith("-"), islice(after, 1, None)))


def _saved_often(config: Config) -> Config:
    """With checkpoints and evaluations so close together that kills fall on them."""
    train = replace(config.train, checkpoint_every=10, evaluate_every=0.5, log_every=10, patience=0)
    return replace(config, train=replace(train, deterministic=True))


def _command_line() -> str:
    """The command that was given, for a report."""
    return shlex.join(["d3jax", *sys.argv[1:]])
