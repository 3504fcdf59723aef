"""The verbs that train and serve: train, evaluate, predict, export and check."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from d3jax.config import Config
from d3jax.console.terminal import Console
from d3jax.data.format import Format
from d3jax.errors import ConfigError
from d3jax.hosts.processes import Processes, together
from d3jax.presets import PRESETS
from d3jax.settings import Settings, preset_of, typed_settings, values
from d3jax.verb import Verb, parse_quietly

_RESUMES_AS_IT_IS = (
    "--resume takes a run as it is, with --data where its data have moved and nothing else; give "
    "it so, or start a new run"
)


@dataclass(frozen=True)
class Train(Settings):
    """Train a model; without arguments, D3 on the embedded synthetic data."""

    prepared: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREPARED")] = None
    """A prepared directory."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The run directory to make; runs/<name of the data>."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """A run to go on with, in its own configuration."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """With --resume: where the run's data are now."""
    overwrite: bool = False
    """Replace the run directory if it exists."""
    seeds: int = 1
    """Models to train side by side, from --seed on."""
    debug: bool = False
    """Check every id, stop at the first NaN; much slower."""
    hosts: tyro.conf.OmitArgPrefixes[Processes] = field(default_factory=Processes)
    """The processes that train together."""

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the preset that is named; else `best` for data of one's own.

        Raises `ConfigError` for a setting beside --resume, also one that has its usual value.
        """
        if values("--resume", arguments) and typed_settings(PRESETS["synthetic"], arguments):
            raise ConfigError(_RESUMES_AS_IT_IS)
        synthetic = cls.with_flags(preset_of(arguments, "synthetic"), arguments)
        guess = parse_quietly(type(synthetic), synthetic, arguments)
        if guess is None or guess.prepared is None:
            return synthetic
        return cls.with_flags(preset_of(arguments, "best"), arguments)

    def run(self, console: Console) -> None:
        """Trains, or goes on."""
        from d3jax import running

        config = self.chosen()
        if self.seeds != 1:
            self._run_seeds(config, console)
            return
        given = self.prepared or self.preset or self.config or self.out
        if self.resume is not None and given:
            raise ConfigError(_RESUMES_AS_IT_IS)
        if self.data is not None and self.resume is None:
            raise ConfigError("--data is where a resumed run's data are; name PREPARED without it")
        with together(self.hosts, console):
            if self.resume is None:
                out, overwrite = self.out, self.overwrite
                running.start(self.prepared, config, out, overwrite, console, self.debug)
            else:
                self._resume(self.resume, console)

    def _resume(self, directory: Path, console: Console) -> None:
        from d3jax import running, seeds

        if not seeds.holds_seeds(directory):
            running.resume(directory, console, self.debug, self.data)
        elif self.debug or self.hosts.distributed:
            raise ConfigError(f"{directory} holds seeds, which take no --debug or --distributed")
        else:
            seeds.resume_seeds(directory, console, self.data)

    def _run_seeds(self, config: Config, console: Console) -> None:
        from d3jax.run import fresh_directory
        from d3jax.seeds import train_seeds

        alone = self.resume or self.debug or self.hosts.distributed
        if self.seeds < 1 or alone or self.prepared is None:
            raise ConfigError(
                f"seeds is {self.seeds}; it takes a number from 1 on and a prepared directory, "
                "without --resume, --debug or --distributed"
            )
        name = f"{self.prepared.resolve().name}-seeds"
        out = fresh_directory(Path("runs"), name) if self.out is None else self.out
        train_seeds(self.prepared, config, self.seeds, out, console, self.overwrite)


@dataclass(frozen=True)
class Evaluate(Verb):
    """Show a run's metrics, overall and per scenario."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Rows to score."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """Another prepared directory with the run's vocabularies; the run's own when not given."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self, console: Console) -> None:
        """Prints the table, or JSON on standard output."""
        from d3jax.console.report import evaluation_table, tell_unknown, trust_table
        from d3jax.evaluate import run_evaluation
        from d3jax.run import open_run

        run = open_run(self.directory)
        result, unknown = run_evaluation(run, self.split, self.data, console)
        tell_unknown(unknown, console)
        if self.json:
            content = {**result.metrics.to_json(), "unknown": unknown.to_json()}
            sys.stdout.write(json.dumps(content, indent=2) + "\n")
        else:
            title = f"{self.directory}: {self.split} rows, best weights"
            Console().print(
                evaluation_table(title, result.metrics, result.best), trust_table(result.metrics)
            )


@dataclass(frozen=True)
class Predict(Verb):
    """Give the click probability of new rows in their raw values."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|MODEL")]
    """A run directory, or the folder of an exported model."""
    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Text or Parquet with a column per field, one file or a folder of them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .csv or .parquet file to write; standard output when not given."""
    form: tyro.conf.OmitArgPrefixes[Format] = field(default_factory=Format)
    """The form of text files."""

    def run(self, console: Console) -> None:
        """Writes one probability a row."""
        from d3jax.console.report import tell_unknown
        from d3jax.predict import predict
        from d3jax.trained import load

        model = load(self.directory)
        predict(model, self.rows, self.out, self.form)
        where = f"; written to {self.out}" if self.out else ""
        console.print(f"{model.unknown.total:,} rows scored{where}", soft_wrap=True)
        tell_unknown(model.unknown, console)


@dataclass(frozen=True)
class Export(Verb):
    """Write a run's best weights as a program that needs JAX alone."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder to make."""

    def run(self, console: Console) -> None:
        """Writes the folder and says how large it is."""
        from d3jax.export import export_run
        from d3jax.run import open_run

        size = export_run(open_run(self.directory), self.out)
        console.print(f"exported to {self.out} ({size / 1e6:.1f} MB)", soft_wrap=True)


@dataclass(frozen=True)
class Check(Verb):
    """Check every byte and row of a prepared directory, or every array of a run's checkpoints."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED|RUN")]
    """A prepared directory, or a run directory."""

    def run(self, console: Console) -> None:
        """Says that all is well, or what is not."""
        from d3jax.check import check_prepared, check_run, is_run

        if is_run(self.directory):
            check_run(self.directory, Console())
        else:
            check_prepared(self.directory, console)
