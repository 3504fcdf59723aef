"""The `d3jax` command: one small dataclass a verb, whose fields are its flags.

JAX and the data engines are imported by the verb that runs, so that help is instant.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import tyro

from d3jax.config import (
    AdapterConfig,
    BackboneName,
    BalanceConfig,
    Config,
    D3Config,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from d3jax.errors import ConfigError
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
from d3jax.reads import idle, refuse_idle
from data_pipelines.format import Format
from experiments.allocator import keep_freed_memory
from experiments.compile_cache import use_compile_cache
from experiments.distributed import Processes, together
from experiments.endings import ending, without_debug
from experiments.presets import PRESETS, read_preset, written_by_hand
from experiments.signals import leave_at_once, leave_on_second_ctrl_c
from experiments.sources import Preparation
from experiments.suggestions import FREE, check_names
from experiments.tables import BACKBONE, Method, find_table, preset_path
from experiments.terminal import Console, ready_streams

_ABOUT = (
    "Multi-domain click-through-rate prediction in JAX, with D3 as a plug-in. After an unforeseen "
    "error, --debug (or D3JAX_DEBUG=1) shows its traceback."
)

PresetName = Literal["best", "synthetic", "movielens", "text", "official"]
TableName = Literal[1, 2, 3, "open"]


@dataclass(frozen=True)
class Prepare:
    """Turn raw files into a prepared directory."""

    source: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Preparation]]
    """Where the rows come from."""

    def run(self, console: Console) -> None:
        """Prepares the data."""
        self.source.run(console)


@dataclass(frozen=True)
class Settings:
    """The settings of a run, which several verbs take as flags."""

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
    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME")] = None
    """best, synthetic, movielens, text or official: the configuration that the flags below change.
    Without one, train has best for your data and synthetic for its own; the others have text."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A preset file, such as d3jax search writes, instead of a preset's name."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""

    def chosen(self) -> Config:
        """The configuration: the preset with the flags' changes."""
        return Config(**{section: vars(self)[section] for section in vars(Config())})

    def trained(self, config: Config) -> Sequence[Config]:
        """The configurations that the verb trains when this one is chosen."""
        return (config,)

    def check(self, preset: Config) -> None:
        """Raises `ConfigError` for a flag, or a setting in a file by hand, that nothing reads."""
        config = self.chosen()
        refuse_idle(config, idle(config, preset, self.trained))
        if self.config is not None and written_by_hand(self.config):
            found = idle(preset, Config(), self.trained)
            still = idle(config, Config(), self.trained).keys() & found.keys()
            left = {name: cure for name, cure in found.items() if name in still}
            refuse_idle(preset, left, f"{self.config}: ")


@dataclass(frozen=True)
class Train(Settings):
    """Train a model; without arguments, D3 on the embedded synthetic data."""

    prepared: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREPARED")] = None
    """A prepared directory."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The run directory to make; runs/<name of the data> when not given."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """A run to go on with, in its own configuration."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """With --resume: where the run's data are now, if they have moved."""
    overwrite: bool = False
    """Replace the run directory if it exists."""
    seeds: int = 1
    """Models to train side by side, with --seed and those after it; they can't be resumed."""
    debug: bool = False
    """Check every id and every operation, and stop at the first NaN; several times slower."""
    hosts: tyro.conf.OmitArgPrefixes[Processes] = field(default_factory=Processes)
    """The processes that train together."""

    def run(self, console: Console) -> None:
        """Trains, or goes on."""
        from experiments import train

        config = self.chosen()
        if self.seeds != 1:
            self._run_seeds(config, console)
            return
        given = self.prepared or self.preset or self.config or self.out
        if self.resume is not None and (given or config != PRESETS["synthetic"]):
            raise ConfigError(
                "--resume takes a run as it is, with --data where its data have moved and nothing "
                "else; give it so, or start a new run"
            )
        if self.data is not None and self.resume is None:
            raise ConfigError("--data is where a resumed run's data are; name PREPARED without it")
        with together(self.hosts, console):
            if self.resume is None:
                out, overwrite = self.out, self.overwrite
                train.start(self.prepared, config, out, overwrite, console, self.debug)
            else:
                train.resume(self.resume, console, self.debug, self.data)

    def _run_seeds(self, config: Config, console: Console) -> None:
        from experiments.run import fresh_directory
        from experiments.seeds import train_seeds

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
class Evaluate:
    """Show a run's metrics, overall and per scenario."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Which rows to score."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """Another prepared directory with the run's vocabularies; the run's own when not given."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self, console: Console) -> None:
        """Prints the table, or JSON on standard output."""
        from experiments.evaluate import run_evaluation
        from experiments.report import evaluation_table, tell_unknown, trust_table
        from experiments.run import open_run

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
class Predict:
    """Give the click probability of new rows in their raw values."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    rows: tyro.conf.Positional[Path]
    """Text or Parquet with a column per field, one file or a folder of them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A .csv or .parquet file to write; standard output when not given."""
    form: tyro.conf.OmitArgPrefixes[Format] = field(default_factory=Format)
    """How text files are written."""

    def run(self, console: Console) -> None:
        """Writes one probability a row."""
        from experiments.predict import predict
        from experiments.report import tell_unknown
        from experiments.run import open_run

        predicted = predict(open_run(self.directory), self.rows, self.out, self.form)
        told = f"{predicted.rows:,} rows scored" + (f"; written to {self.out}" if self.out else "")
        console.print(told, soft_wrap=True)
        tell_unknown(predicted.unknown, console)


@dataclass(frozen=True)
class Export:
    """Write a run's best weights as a program that needs JAX alone."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder to make."""

    def run(self, console: Console) -> None:
        """Writes the folder and says how large it is."""
        from experiments.export import export_run
        from experiments.run import open_run

        size = export_run(open_run(self.directory), self.out)
        console.print(f"exported to {self.out} ({size / 1e6:.1f} MB)", soft_wrap=True)


@dataclass(frozen=True)
class Check:
    """Check every byte and row of a prepared directory, or every array of a run's checkpoints."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PREPARED|RUN")]
    """A prepared directory, or a run directory."""

    def run(self, console: Console) -> None:
        """Says that all is well, or what is not."""
        from experiments.check_run import check_run, is_run
        from experiments.describe import check

        if is_run(self.directory):
            check_run(self.directory, Console())
        else:
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


@dataclass(frozen=True)
class Compare(Settings):
    """Train a table or figure of the D3 paper over several seeds, and report it.

    The same command goes on where it was stopped: a finished cell is not trained again.
    """

    prepared: tyro.conf.Positional[Path] = Path()
    """A prepared directory."""
    table: Annotated[TableName | None, tyro.conf.arg(metavar="1|2|3|open")] = None
    """1: backbones without and with D3; 2: weight generators and loss adapters; 3: D3's parts;
    open: what the paper leaves open."""
    figure: Annotated[Literal[3, 4] | None, tyro.conf.arg(metavar="3|4")] = None
    """3: AUC against the start of loss adaptation; 4: attention by scenario and field."""
    on: BackboneName = BACKBONE
    """The backbone of tables 2 and 3 and of the figures."""
    seeds: int = 5
    """Runs of each method, with seeds 0, 1 and so on."""
    base: Annotated[str | None, tyro.conf.arg(metavar="METHOD")] = None
    """Test every method against this one, such as MLP; the paper's pairs when not given."""
    configs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A folder of preset files named by method, such as adi-d3.json, as d3jax search writes."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("comparison")
    """Where cells and reports go; tables that share a folder share cells."""
    keep: bool = False
    """Keep the checkpoints of finished cells, to inspect them."""

    def trained(self, config: Config) -> Sequence[Config]:
        """The methods of the table that have no preset of their own."""
        shared = [each for each, path in self._methods() if path is None]
        return [method.configure(config, 0) for method in shared]

    def check(self, preset: Config) -> None:
        """Raises `ConfigError` for a setting of a method's preset by hand, too."""
        super().check(preset)
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
        table = find_table(self.table, self.figure, self.on, self.base)
        return [(method, preset_path(self.configs, method)) for method in table.methods]

    def run(self, console: Console) -> None:
        """Trains what is missing and prints the table."""
        from experiments.compare import Plan, compare

        plan = Plan(
            table=find_table(self.table, self.figure, self.on, self.base),
            config=self.chosen(),
            seeds=self.seeds,
            out=self.out,
            configs=self.configs,
            keep=self.keep,
            command=_command_line(),
        )
        compare(self.prepared, plan, console)


@dataclass(frozen=True)
class Inspect:
    """Draw a run: learning curves, calibration, gates, loss weights and attention."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Which rows to look at."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PREPARED")] = None
    """Another prepared directory with the run's vocabularies; the run's own when not given."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the pictures go; figures/ of the run when not given."""

    def run(self, console: Console) -> None:
        """Writes each picture as PNG and SVG."""
        from experiments.inspection import inspect_run

        inspect_run(self.directory, self.data, self.split, self.out, console)


@dataclass(frozen=True)
class Search(Settings):
    """Look for better settings on the validation rows; the test rows are never scored.

    The same command goes on where it was stopped.
    """

    prepared: tyro.conf.Positional[Path] = Path()
    """A prepared directory."""
    space: Literal["paper", "wide"] = "wide"
    """paper: its grid of lambdas, alphas and start ratios; wide: learning rate, decays, dropout,
    widths, rank."""
    trials: int = 30
    """Settings to try, those of an earlier call included."""
    seeds: int = 3
    """Runs of the three best settings; the best mean wins."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("searched.json")
    """The preset file to write, for --config; the trials are in a .db file beside it."""
    table: Annotated[TableName | None, tyro.conf.arg(metavar="1|2|3|open")] = None
    """Search for each method of that table; --out is then a folder, for compare --configs."""
    on: BackboneName = BACKBONE
    """The backbone of tables 2 and 3."""

    def trained(self, config: Config) -> Sequence[Config]:
        """The methods of the table, if there is one."""
        if self.table is None:
            return (config,)
        methods = find_table(self.table, None, self.on, None).methods
        return [method.configure(config, config.train.seed) for method in methods]

    def check(self, preset: Config) -> None:
        """Raises `ConfigError` for a table's backbone without a table, too."""
        if self.table is None and self.on != BACKBONE:
            raise ConfigError(f"on is {self.on}, but there is no table; use --backbone instead")
        super().check(preset)

    def run(self, console: Console) -> None:
        """Tries settings, pruning the hopeless, and writes the best."""
        try:
            from experiments import search
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
    """How often to kill, over as many runs as it takes; --seed decides the moments too."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to make for all runs and their logs; runs/chaos when not given."""

    def run(self, console: Console) -> None:
        """Prints each kill, and whether anything came out differently."""
        from experiments.chaos import Plan, chaos
        from experiments.run import fresh_directory

        out = fresh_directory(Path("runs"), "chaos") if self.out is None else self.out
        chaos(Plan(self.prepared, self.chosen(), self.kills, out), console)


Verb = (
    Prepare
    | Train
    | Evaluate
    | Predict
    | Export
    | Check
    | Describe
    | Compare
    | Inspect
    | Search
    | Chaos
)
VERBS: dict[str, type] = {verb.__name__.lower(): verb for verb in get_args(Verb)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a verb, by default the process' own; ends with 0 or a code of `exits`."""
    if arguments is None:
        leave_at_once()
        ready_streams()
        leave_on_second_ctrl_c()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True)
    with ending(arguments, console):
        verb = parse(without_debug(arguments))
        keep_freed_memory()
        if not isinstance(verb, Settings) or verb.compile_cache:
            use_compile_cache()
        verb.run(console)


def parse(arguments: Sequence[str]) -> Verb:
    """The verb that the arguments ask for.

    Raises `ConfigError` for values out of range, a name that is mistyped and a setting that
    nothing reads; shows help, and what else is amiss, and raises `SystemExit`.
    """
    verb, trained = _foreseen(arguments)
    if verb is None:
        verb = _parse(arguments, trained)
    if isinstance(verb, Settings):
        default = trained if isinstance(verb, Train | Chaos) else "text"
        verb.check(_preset_of(arguments, default))
    return verb


def _foreseen(arguments: Sequence[str]) -> tuple[Verb | None, PresetName]:
    """The verb, None where it has still to be made, and the preset of a training run that names
    none: help must show the defaults of the call that it is asked for."""
    asked = [argument for argument in arguments if argument not in FREE]
    try:
        verb = _parse(asked, "synthetic", quiet=True)
    except SystemExit:
        check_names(arguments, VERBS)
        return None, "synthetic"
    if isinstance(verb, Train) and verb.prepared is not None:
        return None, "best"
    return verb if asked == list(arguments) else None, "synthetic"


def _parse(arguments: Sequence[str], trained: PresetName, quiet: bool = False) -> Verb:
    """`trained` is the preset of a training run that names none."""
    subcommand = tyro.conf.subcommand
    train = subcommand("train", default=Train(**vars(_preset_of(arguments, trained))))
    settings = vars(_preset_of(arguments, "text"))
    compare = subcommand("compare", default=Compare(**settings, prepared=tyro.MISSING))
    search = subcommand("search", default=Search(**settings, prepared=tyro.MISSING))
    chaos = subcommand("chaos", default=Chaos(**vars(_saved_often(_preset_of(arguments, trained)))))
    verbs = (
        Annotated[Prepare, subcommand("prepare")]
        | Annotated[Train, train]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Check, subcommand("check")]
        | Annotated[Describe, subcommand("describe")]
        | Annotated[Compare, compare]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Search, search]
        | Annotated[Chaos, chaos]
    )
    return tyro.cli(
        cast(Any, verbs),
        prog="d3jax",
        description=_ABOUT,
        args=arguments,
        console_outputs=not quiet,
    )


def _preset_of(arguments: Sequence[str], default: PresetName) -> Config:
    """The configuration that `--preset` or `--config` names, before the flags that change it.

    Raises `ConfigError` for both at once, and for a file that is no preset.
    """
    names, files = _values_of("--preset", arguments), _values_of("--config", arguments)
    if names and files:
        raise ConfigError("--preset and --config both give all settings; use one of them")
    if files:
        return read_preset(Path(files[-1]))
    return PRESETS.get(names[-1] if names else default, PRESETS["text"])


def _saved_often(config: Config) -> Config:
    """With checkpoints and evaluations so close together that kills fall on them."""
    train = replace(config.train, checkpoint_every=10, evaluate_every=0.5, log_every=10, patience=0)
    return replace(config, train=replace(train, deterministic=True))


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """What follows a flag, as `--flag value` or `--flag=value`."""
    return [
        value.removeprefix(f"{flag}=")
        for before, value in zip(("", *arguments), arguments, strict=False)
        if before == flag or value.startswith(f"{flag}=")
    ]


def _command_line() -> str:
    """The command that was given, for a report."""
    return shlex.join(["d3jax", *sys.argv[1:]])


if __name__ == "__main__":
    main()
