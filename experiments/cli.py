"""The `d3jax` command: one small dataclass a verb, whose fields are its flags.

JAX and the data engines are imported by the verb that runs, so that help is instant.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from rich.console import Console

from d3jax.config import (
    AdapterConfig,
    BalanceConfig,
    Config,
    D3Config,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from d3jax.errors import ConfigError, D3jaxError, Preempted
from d3jax.options import (
    AdaptDHMOptions,
    AdaSparseOptions,
    ADIOptions,
    HAMUROptions,
    M2MOptions,
    M3oEOptions,
    MMoEOptions,
    PEPNetOptions,
    PLEOptions,
    SARNetOptions,
    STAROptions,
)
from experiments.presets import PRESETS
from experiments.sources import Preparation

PREEMPTED = 75
"""Exit code of a run that was asked to stop and saved first (sysexits' EX_TEMPFAIL)."""
FAILED = 2
INTERRUPTED = 130

_ABOUT = "Multi-domain click-through-rate prediction in JAX, with D3 as a plug-in."

PresetName = Literal["synthetic", "movielens", "text", "official"]


@dataclass(frozen=True)
class Prepare:
    """Turn raw files into a prepared directory."""

    source: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Preparation]]
    """Where the rows come from."""

    def run(self, console: Console) -> None:
        """Prepares the data."""
        self.source.run(console)


@dataclass(frozen=True)
class Train:
    """Train a model; without arguments, D3 on the embedded synthetic data."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig]
    d3: tyro.conf.OmitArgPrefixes[D3Config]
    balance: tyro.conf.OmitArgPrefixes[BalanceConfig]
    adapter: tyro.conf.OmitArgPrefixes[AdapterConfig]
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig]
    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    mmoe: MMoEOptions
    m2m: M2MOptions
    adi: ADIOptions
    star: STAROptions
    sar_net: SARNetOptions
    ple: PLEOptions
    pepnet: PEPNetOptions
    adasparse: AdaSparseOptions
    hamur: HAMUROptions
    m3oe: M3oEOptions
    adaptdhm: AdaptDHMOptions
    prepared: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREPARED")] = None
    """A prepared directory."""
    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME")] = None
    """synthetic, movielens, text or official: the configuration that the flags below change."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The run directory to make; runs/<name of the data> when not given."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """A run to go on with, in its own configuration."""
    overwrite: bool = False
    """Replace the run directory if it exists."""

    def run(self, console: Console) -> None:
        """Trains, or goes on."""
        from experiments import train

        config = Config(**{section: vars(self)[section] for section in vars(Config())})
        if self.resume is None:
            train.start(self.prepared, config, self.out, self.overwrite, console)
        elif self.prepared or self.preset or self.out or config != _preset_of(()):
            raise ConfigError("--resume takes a run as it is; give it alone, or start a new run")
        else:
            train.resume(self.resume, console)


@dataclass(frozen=True)
class Evaluate:
    """Show a run's metrics, overall and per scenario."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Which rows to score."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """Another prepared directory of the same schema; the run's own when not given."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self, console: Console) -> None:
        """Prints the table, or JSON on standard output."""
        from experiments.evaluate import run_evaluation
        from experiments.report import evaluation_table
        from experiments.run import open_run

        result = run_evaluation(open_run(self.directory), self.split, self.data)
        if self.json:
            sys.stdout.write(json.dumps(result.metrics.to_json(), indent=2) + "\n")
        else:
            title = f"{self.directory}: {self.split} rows, best weights"
            Console().print(evaluation_table(title, result.metrics, result.best))


@dataclass(frozen=True)
class Predict:
    """Give the click probability of new rows in their raw values."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    rows: tyro.conf.Positional[Path]
    """A .csv or .parquet file with a column per field."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .csv or .parquet file to write; standard output when not given."""

    def run(self, console: Console) -> None:
        """Writes one probability a row."""
        from experiments.predict import predict
        from experiments.run import open_run

        total = predict(open_run(self.directory), self.rows, self.out)
        console.print(f"{total:,} rows scored" + (f"; written to {self.out}" if self.out else ""))


@dataclass(frozen=True)
class Check:
    """Check every byte and every row of a prepared directory."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED")]
    """A prepared directory."""

    def run(self, console: Console) -> None:
        """Says that all is well, or what is not."""
        from experiments.describe import check

        check(self.directory, console)


@dataclass(frozen=True)
class Describe:
    """Show the rows, click rates and ids of a prepared directory."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED")]
    """A prepared directory."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .png to draw the scenarios' sizes and click rates in."""

    def run(self, console: Console) -> None:
        """Prints two tables."""
        from experiments.describe import describe

        describe(self.directory, self.picture, Console())


Verb = Prepare | Train | Evaluate | Predict | Check | Describe


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; exits with 0, 2 for an error, 75 for a run that saved and stopped."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True)
    try:
        parse(arguments).run(console)
    except Preempted as stop:
        console.print(f"[yellow]{_plain(stop)}[/]", soft_wrap=True)
        sys.exit(PREEMPTED)
    except D3jaxError as error:
        console.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has seen enough; don't complain when Python flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: Sequence[str]) -> Verb:
    """The verb that the arguments ask for. Raises `ConfigError` for values out of range."""
    subcommand = tyro.conf.subcommand
    train = subcommand("train", default=Train(**vars(_preset_of(arguments))))
    verbs = (
        Annotated[Prepare, subcommand("prepare")]
        | Annotated[Train, train]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Check, subcommand("check")]
        | Annotated[Describe, subcommand("describe")]
    )
    return tyro.cli(cast(Any, verbs), prog="d3jax", description=_ABOUT, args=arguments)


def _preset_of(arguments: Sequence[str]) -> Config:
    """The configuration that `--preset` names, before the flags that change it are read."""
    named = [
        value.removeprefix("--preset=")
        for before, value in zip(("", *arguments), arguments, strict=False)
        if before == "--preset" or value.startswith("--preset=")
    ]
    return PRESETS.get(named[-1] if named else "synthetic", PRESETS["text"])


def _plain(error: Exception) -> str:
    """The message with rich's markup characters taken literally."""
    return str(error).replace("[", r"\[")
