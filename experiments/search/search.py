"""Looks for settings on the validation rows, and never scores a test row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from sqlalchemy.exc import SQLAlchemyError

from d3jax.checks import within
from d3jax.config import Config, TrainConfig, completed, differences
from d3jax.configure import settled
from d3jax.console.signals import stop_signals
from d3jax.console.terminal import Console, styled
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.disk import writing
from d3jax.errors import ConfigError, Preempted, TrainingError
from d3jax.journal import Silence
from d3jax.owned import check_output, replacing
from d3jax.parts import build_trainer, check_config, is_faster_side_by_side, refusal
from d3jax.reads import flag_of
from d3jax.running import training_data
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.loop import Member, Progress, monitored, train
from d3jax.training.metrics import Evaluation
from experiments.compare.tables import Table
from experiments.search.preset_file import is_found, settings_of
from experiments.search.spaces import Space, draw, space_of, start
from experiments.search.study_file import IDENTITY, opened_study

START_TRIALS = 5
"""Trials at random, before any is drawn by what the others gave or cut short."""

EVALUATIONS = 4
"""Evaluations in an epoch of a trial, unless the configuration has another number than one."""

FINALISTS = 3
"""Trials whose settings are trained with every seed. One seed's spread is as large as most gains,
so the best of many trials owes much of its lead to luck. The settings that the search started from
are trained with every seed too: what it writes is no worse than they are."""

ENDED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED

Report = Callable[[int, float], None]
"""Told the number of an evaluation and its metric; may raise to end the trial."""


@dataclass(frozen=True)
class Search:
    """A search: what to look for and for how long; `out` is the preset file to write, beside
    which the study's file lies."""

    config: Config
    space: str
    trials: int
    seeds: int
    out: Path

    def __post_init__(self) -> None:
        within("trials", self.trials, 1, 100_000)
        within("seeds", self.seeds, 1, 1000)

    @property
    def storage(self) -> Path:
        """The SQLite file that remembers the trials."""
        return self.out.with_suffix(".db")

    @property
    def drawn(self) -> Space:
        """The settings that trials draw, and what they may be."""
        return space_of(self.space, self.config)

    @property
    def lower_is_better(self) -> bool:
        """Return whether the monitored metric is a loss."""
        return self.config.train.monitor == "logloss"


class Final(NamedTuple):
    """One of the best trials, and what its settings reach with each seed."""

    trial: optuna.trial.FrozenTrial
    values: list[float]


class Watcher(Silence):
    """Reports each evaluation of a training loop, and remembers the best."""

    def __init__(self, config: Config, report: Report) -> None:
        self._config, self._report = config, report
        self.count = 0

    def evaluated(self, step: int, evaluation: Evaluation, improved: bool) -> None:
        """Reports the monitored metric."""
        metric, _ = monitored(self._config.train, evaluation)
        self.count += 1
        self._report(self.count, metric)


def search(data: Path, plan: Search, console: Console) -> dict[str, Any]:
    """Runs trials until there are `plan.trials`, then the best few with every seed; writes the one
    with the best mean as a preset.

    The same call goes on with the study's file. Raises `ConfigError` when that file is damaged
    or of other settings or data, `OutputError` when something else lies in its place,
    `TrainingError` when no trial came to its end or none of the best can be trained with every
    seed, and `Preempted` when it was asked to stop.
    """
    if plan.out.is_dir():
        raise ConfigError(f"{plan.out} is a folder; name the preset file to write by --out")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prepared = open_prepared(data)
    check_rows(prepared)
    plan = replace(plan, config=evaluated_often(settled(plan.config, prepared)))
    space_of(plan.space, plan.config)
    # Settings that contradict each other are refused before a trial is made.
    check_config(prepared.schema, plan.config)
    check_output(plan.out, ours=is_found)
    if plan.out == plan.storage:
        raise ConfigError(f"out is {str(plan.out)!r}; name a .json file, for a .db goes beside it")
    with (
        _damage_named(plan.storage),
        opened_study(plan.storage, _identity(plan, prepared), plan.lower_is_better) as study,
    ):
        return _search(data, plan, prepared, study, console)


def _search(
    data: Path, plan: Search, prepared: Prepared, study: optuna.Study, console: Console
) -> dict[str, Any]:
    _go_on(study, plan, prepared)
    if (finished := _finished(plan)) is not None:
        console.print(f"{plan.out} has been found already")
        return finished
    try:
        with writing(plan.storage), stop_signals() as should_stop:
            _run_trials(study, plan, prepared, console, should_stop)
            finals = _run_finals(study, plan, prepared, console, should_stop)
    except (Preempted, KeyboardInterrupt) as stop:
        raise Preempted("stopped; give the same command to go on with the search") from stop
    preset = describe(plan, study, finals)
    with writing(plan.out), replacing(plan.out) as draft:
        draft.write_text(json.dumps(preset, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(
        f"validation {preset['metric']} {preset['mean']:.4f}, standard deviation "
        f"{preset['std'] or 0:.4f} over {plan.seeds} seed{'s' if plan.seeds > 1 else ''}; "
        f"train with it: d3jax train {data} --config {plan.out}",
        soft_wrap=True,
    )
    return preset


def evaluated_often(config: Config) -> Config:
    """Return the configuration with `EVALUATIONS` an epoch instead of one, and as many epochs of
    patience; with another number, as it is.

    On logs of clicks a model is often best before its first epoch ends.
    """
    train = config.train
    if train.evaluate_every != TrainConfig.evaluate_every:
        return config
    often = replace(train, evaluate_every=1 / EVALUATIONS, patience=EVALUATIONS * train.patience)
    return config.changed(train=often)


@contextmanager
def _damage_named(storage: Path) -> Iterator[None]:
    """Raises `ConfigError` where the study's file can't be read or written."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{storage}, the file of the search's trials, can't be used ({reason}); choose "
            "another --out, or delete it"
        ) from error


def search_table(data: Path, table: Table, plan: Search, console: Console) -> None:
    """Searches for every method of a table with the same number of trials; `plan.out` is the
    folder of presets, which `d3jax compare --configs` reads. Raises what `search` raises."""
    schema = open_prepared(data).schema
    for method in table.methods:
        config = method.configure(plan.config, plan.config.train.seed)
        reason = refusal(schema, config)
        if reason is None and plan.space == "paper" and not config.has_balance:
            reason = "it has no balance, which is all that space paper varies"
        if reason is None:
            console.print(styled(method.name, "bold"))
            path = plan.out / f"{method.slug}.json"
            search(data, replace(plan, config=config, out=path), console)
        else:
            console.print(f"{method.name} is left out: {reason}", soft_wrap=True)


def _identity(plan: Search, prepared: Prepared) -> dict[str, Any]:
    """Return the settings and the data that a study's file is about."""
    identity = {
        "space": plan.space,
        "drawn": plan.drawn,
        "config": plan.config.to_json(),
        "schema": prepared.schema.to_json(),
        "data": prepared.provenance,
    }
    return json.loads(json.dumps(identity))


def _go_on(study: optuna.Study, plan: Search, prepared: Prepared) -> None:
    """Makes a study ready for its next trial; trials that were cut short are failed, so that they
    count for nothing. Raises `ConfigError` when it is of other settings or data."""
    # No trial is cut short before the end of its first epoch.
    first = max(1, round(1 / plan.config.train.evaluate_every))
    study.pruner = optuna.pruners.MedianPruner(START_TRIALS, n_warmup_steps=first)
    identity = completed(_identity(plan, prepared))
    # Before a search knew the choices of each part, it was of other ones.
    theirs = {"drawn": {}, **study.user_attrs[IDENTITY]}
    if changed := differences(completed(theirs), identity):
        raise ConfigError(
            f"{plan.storage} is a search of other settings or data ({'; '.join(changed[:3])}); "
            "choose another --out, or delete it"
        )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not study.get_trials(deepcopy=False, states=(*ENDED, optuna.trial.TrialState.WAITING)):
        # The settings to start from are the first trial.
        study.enqueue_trial(start(plan.drawn, plan.config))
    # A search that goes on must not draw what it drew at its start.
    seed = plan.config.train.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=START_TRIALS)


def train_on_validation(
    config: Config,
    seeds: Sequence[int],
    prepared: Prepared,
    should_stop: Callable[[int], bool],
    report: Report = lambda count, metric: None,
) -> list[float]:
    """Trains seeds side by side; returns each one's best monitored value on the validation rows."""
    each = [replace(config, train=replace(config.train, seed=seed)) for seed in seeds]
    data = [training_data(prepared, config) for config in each]
    models = len(seeds) if len(seeds) > 1 else None
    trainer = build_trainer(prepared.schema, config, data[0].steps_per_epoch, models=models)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        members = [
            Member(
                rows,
                Progress(),
                stack.enter_context(Checkpoints(Path(scratch) / str(seed), {}, writer=True)),
                Watcher(config, report),
                f"seed {seed}",
            )
            for seed, rows in zip(seeds, data, strict=True)
        ]
        _, ended = train(trainer, config.train, members, trainer.init(seeds), should_stop)
    return [each.best_metric for each in ended if each.best_metric is not None]


def finalists(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The best trials that came to their end, settings that were drawn twice once, and the first
    of all, which has the settings that the search started from."""
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    ranked = sorted(trials, key=lambda trial: trial.value or 0.0, reverse=maximize)
    distinct = {json.dumps(trial.params, sort_keys=True): trial for trial in reversed(ranked)}
    best = list(reversed(distinct.values()))[:FINALISTS]
    first = [start for start in trials[:1] if start.params not in [trial.params for trial in best]]
    return best + first


def describe(plan: Search, study: optuna.Study, finals: list[Final]) -> dict[str, Any]:
    """The preset file: a configuration, and what it reached over seeds on validation rows."""
    sign = 1 if plan.lower_is_better else -1
    trial, values = min(finals, key=lambda final: sign * np.mean(final.values))
    best = draw(plan.drawn, optuna.trial.FixedTrial(trial.params), plan.config)
    scenario = plan.config.train.monitor_scenario
    counts = {
        state.name.lower(): len(study.get_trials(deepcopy=False, states=[state])) for state in ENDED
    }
    return {
        "config": settings_of(best),
        "metric": f"{plan.config.train.monitor} of {scenario or 'all'} validation rows",
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
        "space": plan.space,
        "trials": counts,
        "finalists": [
            {"trial": final.trial.number, "mean": float(np.mean(final.values))} for final in finals
        ],
        "found": trial.params,
    }


def _run_trials(
    study: optuna.Study,
    plan: Search,
    prepared: Prepared,
    console: Console,
    should_stop: Callable[[int], bool],
) -> None:
    """Trials up to the number that the plan wants, those in the file included."""
    while (done := len(study.get_trials(deepcopy=False, states=ENDED))) < plan.trials:
        trial = study.ask()
        text = _run_trial(study, trial, plan, prepared, should_stop)
        console.print(f"trial {done + 1} of {plan.trials}: {text}", soft_wrap=True)
    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        raise TrainingError(
            f"none of {plan.trials} trials came to its end; look at the lines above, and give "
            "more --trials or another --space"
        )


def _run_finals(
    study: optuna.Study,
    plan: Search,
    prepared: Prepared,
    console: Console,
    should_stop: Callable[[int], bool],
) -> list[Final]:
    """The finalists with what they reach; one that diverges with some seed is said and left out."""
    finals = []
    for trial in finalists(study):
        try:
            values = _run_final(study, trial, plan, prepared, console, should_stop)
            finals.append(Final(trial, values))
        except TrainingError as error:
            console.print(f"trial {trial.number + 1} is out: {error}", soft_wrap=True)
    if not finals:
        raise TrainingError(
            "none of the best trials can be trained with every seed; look at the lines above, and "
            "give more --trials or another --space"
        )
    return finals


def _run_final(
    study: optuna.Study,
    trial: optuna.trial.FrozenTrial,
    plan: Search,
    prepared: Prepared,
    console: Console,
    should_stop: Callable[[int], bool],
) -> list[float]:
    """Return what a trial's settings reach with each seed; the study's file keeps what is known."""
    config = draw(plan.drawn, optuna.trial.FixedTrial(trial.params), plan.config)
    known: dict[int, Any] = {plan.config.train.seed: trial.value}
    names = {seed: f"trial {trial.number}, seed {seed}" for seed in range(plan.seeds)}
    known |= {s: study.user_attrs[name] for s, name in names.items() if name in study.user_attrs}
    unknown = [seed for seed in names if seed not in known]
    together = is_faster_side_by_side(prepared.schema, config)
    for seeds in [unknown] if together and unknown else [[seed] for seed in unknown]:
        for seed, value in zip(
            seeds, train_on_validation(config, seeds, prepared, should_stop), strict=True
        ):
            study.set_user_attr(names[seed], value)
            known[seed] = value
    values = [known[seed] for seed in names]
    console.print(
        f"trial {trial.number + 1} with every seed: {np.mean(values):.4f} "
        f"({', '.join(f'{value:.4f}' for value in values)})",
        soft_wrap=True,
    )
    return values


def _finished(plan: Search) -> dict[str, Any] | None:
    """The preset of an earlier call with as many trials and seeds; None when there is none."""
    try:
        preset = json.loads(plan.out.read_text(encoding="utf-8"))
        enough = sum(preset["trials"].values()) >= plan.trials
        return preset if enough and len(preset["values"]) == plan.seeds else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    plan: Search,
    prepared: Prepared,
    should_stop: Callable[[int], bool],
) -> str:
    """One trial, told to the study; returns what came out. A draw that can't be trained, or
    whose loss isn't finite, counts as pruned; one that was stopped as failed."""

    def report(count: int, metric: float) -> None:
        trial.report(metric, count)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after {count} evaluations, at {metric:.4f}")

    state = optuna.trial.TrialState
    try:
        config = draw(plan.drawn, trial, plan.config)
        seeds = [config.train.seed]
        [value] = train_on_validation(config, seeds, prepared, should_stop, report)
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=state.PRUNED)
        return str(pruned)
    except (ConfigError, TrainingError) as error:
        study.tell(trial, state=state.PRUNED)
        return f"can't be trained: {error}"
    except (Preempted, KeyboardInterrupt):
        study.tell(trial, state=state.FAIL)
        raise
    study.tell(trial, value)
    return f"{value:.4f} with {_short(trial.params)}; best so far {study.best_value:.4f}"


def _short(params: dict[str, Any]) -> str:
    flags = {flag_of(name): value for name, value in params.items()}
    return ", ".join(
        f"{flag} {value:.3g}" if isinstance(value, float) else f"{flag} {value}"
        for flag, value in flags.items()
    )
