"""A search stays in its space, prunes, goes on from its file and never scores a test row."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from rich.console import Console

from d3jax.cli import main, parse
from d3jax.config import Config, ModelConfig, TrainConfig
from d3jax.data.prepared import Prepared
from d3jax.errors import ConfigError, OutputError, Preempted, TrainingError
from d3jax.presets import read_preset
from d3jax.training.loop import never
from experiments.compare.tables import MLP, Method, Table, find_table
from experiments.search import search as searching
from experiments.search.preset_file import settings_of
from experiments.search.search import (
    Search,
    evaluated_often,
    finalists,
    search,
    search_table,
    train_on_validation,
)
from experiments.search.study_file import opened_storage
from tests.flags import said

QUIET = Console(quiet=True)
CONFIG = Config(
    model=ModelConfig(backbone="plain", head="own", embedding_dim=4, bottom_layers=(8,)),
    train=TrainConfig(batch_size=1024, epochs=2, patience=0),
)
Trained = list[tuple[Config, int]]


def train_by(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts `one(config, prepared, should_stop, report)` in the place of a seed's training."""

    def train(config: Config, seeds: Sequence[int], *rest: Any) -> list[float]:
        each = [replace(config, train=replace(config.train, seed=seed)) for seed in seeds]
        return [one(config, *rest) for config in each]

    monkeypatch.setattr(searching, "train_on_validation", train)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Training that costs nothing: a bowl in log learning rate with its bottom at 1e-3, reported
    twice as it would be while training. Returns the configurations and reports it was given."""
    given: Trained = []

    def bowl(config: Config, prepared: Prepared, should_stop: Any, report: Any = None) -> float:
        value = abs(np.log10(config.optimizer.learning_rate) + 3) + config.train.seed / 100
        given.append((config, 0))
        for count in (1, 2):
            if report is not None:
                report(count, value + 1 / count)
            given[-1] = (config, count)
        return float(value)

    train_by(bowl, monkeypatch)
    return given


def plan(tmp_path: Path, **changes: Any) -> Search:
    return replace(Search(CONFIG, "wide", 12, 3, tmp_path / "best.json"), **changes)


def test_the_best_is_written_with_its_spread_and_train_reads_it(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    preset = search(prepared, plan(tmp_path), QUIET)
    assert preset == json.loads((tmp_path / "best.json").read_text())
    best = read_preset(tmp_path / "best.json")
    assert preset["config"] == settings_of(best)
    tried = [config.optimizer.learning_rate for config, _ in quick[:12]]
    nearest = min(tried, key=lambda rate: abs(np.log10(rate) + 3))
    assert best.optimizer.learning_rate == nearest == preset["found"]["optimizer.learning_rate"]
    distance = abs(np.log10(nearest) + 3)
    assert preset["values"] == pytest.approx([distance, distance + 0.01, distance + 0.02])
    assert preset["mean"] == pytest.approx(distance + 0.01)
    assert preset["std"] == pytest.approx(0.01)
    assert preset["metric"] == "logloss of all validation rows"
    assert sum(preset["trials"].values()) == 12
    # The trial itself was seed 0; three settings get the other two, the first of which are those
    # that the search started from.
    assert preset["finalists"][0]["trial"] == 0
    assert [config.train.seed for config, _ in quick[12:]] == [1, 2] * 3
    assert len(preset["finalists"]) == 3
    verb = parse(["train", "data", "--config", str(tmp_path / "best.json"), "--epochs", "7"])
    assert verb.chosen() == replace(best, train=replace(best.train, epochs=7))


def test_hopeless_trials_are_pruned(prepared: Path, tmp_path: Path, quick: Trained) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, evaluate_every=2.0))
    preset = search(prepared, plan(tmp_path, trials=30, config=config), QUIET)
    assert preset["trials"]["pruned"] > 0
    cut = [config for config, count in quick[:30] if count < 2]
    assert len(cut) == preset["trials"]["pruned"]
    worst = max(abs(np.log10(c.optimizer.learning_rate) + 3) for c, n in quick[:30] if n == 2)
    assert all(abs(np.log10(c.optimizer.learning_rate) + 3) > 0.05 for c in cut)
    assert worst > 0


def test_a_search_goes_on_without_repeating_itself(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    search(prepared, plan(tmp_path, trials=4), QUIET)
    assert len(quick) == 4 + 3 * 2
    search(prepared, plan(tmp_path, trials=4), QUIET)
    assert len(quick) == 4 + 3 * 2
    search(prepared, plan(tmp_path, trials=9), QUIET)
    rates = [config.optimizer.learning_rate for config, _ in (*quick[:4], *quick[10:15])]
    assert len(set(rates)) == 9
    # A seed of a finalist of before is not trained again.
    runs = [(config.optimizer.learning_rate, config.train.seed) for config, _ in quick]
    assert len(set(runs)) == len(runs)


def test_the_best_mean_wins_not_the_luckiest_trial(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial with the best value is lucky: with other seeds its settings are the worst."""
    values: dict[float, int] = {}

    def luck(config: Config, prepared: Prepared, should_stop: Any, report: Any = None) -> float:
        number = values.setdefault(config.optimizer.learning_rate, len(values))
        lucky = number == 2
        if config.train.seed == 0:
            return 0.1 if lucky else 0.2 + number / 100
        return 0.9 if lucky else 0.3

    train_by(luck, monkeypatch)
    preset = search(prepared, plan(tmp_path, trials=5), QUIET)
    assert [final["trial"] for final in preset["finalists"]] == [2, 0, 1]
    assert preset["values"] == [0.2, 0.3, 0.3]
    assert preset["found"]["optimizer.learning_rate"] == next(iter(values))


def test_settings_drawn_twice_are_one_finalist() -> None:
    study = optuna.create_study(direction="maximize")
    space = {"rate": optuna.distributions.FloatDistribution(0, 1)}
    for rate, value in ((0.1, 0.5), (0.1, 0.5), (0.2, 0.7), (0.3, 0.1), (0.4, 0.2)):
        made = optuna.trial.create_trial(params={"rate": rate}, distributions=space, value=value)
        study.add_trial(made)
    assert [trial.params["rate"] for trial in finalists(study)] == [0.2, 0.1, 0.4]


def test_the_settings_to_start_from_are_trained_with_every_seed(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are unlucky with the trials' seed, and the best with the others."""

    def unlucky(config: Config, prepared: Prepared, should_stop: Any, report: Any = None) -> float:
        start = config.optimizer.learning_rate == CONFIG.optimizer.learning_rate
        if config.train.seed == 0:
            return 0.9 if start else 0.4
        return 0.1 if start else 0.5

    train_by(unlucky, monkeypatch)
    preset = search(prepared, plan(tmp_path, trials=6), QUIET)
    assert [final["trial"] for final in preset["finalists"]][3:] == [0]
    assert preset["found"]["optimizer.learning_rate"] == CONFIG.optimizer.learning_rate
    assert preset["values"] == [0.9, 0.1, 0.1]


def test_a_trial_that_was_cut_short_counts_for_nothing(
    prepared: Path, tmp_path: Path, quick: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    bowl = searching.train_on_validation

    def stops(*arguments: Any) -> float:
        raise Preempted("stopped after step 3")

    monkeypatch.setattr(searching, "train_on_validation", stops)
    with pytest.raises(Preempted, match="give the same command to go on with the search"):
        search(prepared, plan(tmp_path), QUIET)
    with opened_storage(tmp_path / "best.db") as storage:
        killed = optuna.load_study(study_name="search", storage=storage).ask()
    monkeypatch.setattr(searching, "train_on_validation", bowl)
    search(prepared, plan(tmp_path, trials=3), QUIET)
    with opened_storage(tmp_path / "best.db") as storage:
        trials = optuna.load_study(study_name="search", storage=storage).get_trials()
    states = [trial.state.name for trial in trials]
    assert states[:2] == ["FAIL", "FAIL"]
    assert killed.number == 1
    assert len(states) == 5
    # The settings to start from were cut short, and are tried again.
    assert trials[2].params["optimizer.learning_rate"] == CONFIG.optimizer.learning_rate


def test_a_search_closes_its_file(
    prepared: Path, tmp_path: Path, quick: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, connections = sqlite3.connect, []

    def kept(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **keywords))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", kept)
    search(prepared, plan(tmp_path, trials=1), QUIET)
    assert connections
    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            connection.execute("SELECT 1")


def test_a_search_stopped_at_the_finalists_goes_on_there(
    prepared: Path, tmp_path: Path, quick: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    bowl = searching.train_on_validation

    def stops(config: Config, seeds: Sequence[int], *rest: Any) -> list[float]:
        if 2 in seeds:
            raise Preempted("stopped after step 3, which is saved; resume to go on")
        return bowl(config, seeds, *rest)

    monkeypatch.setattr(searching, "train_on_validation", stops)
    with pytest.raises(
        Preempted, match=r"^stopped; give the same command to go on with the search"
    ):
        search(prepared, plan(tmp_path, trials=4), QUIET)
    before = len(quick)
    monkeypatch.setattr(searching, "train_on_validation", bowl)
    preset = search(prepared, plan(tmp_path, trials=4), QUIET)
    seeds = [config.train.seed for config, _ in quick[before:]]
    assert seeds[0] == 2
    assert len(seeds) == 2 * len(preset["finalists"]) - 1


def test_a_finalist_that_diverges_with_a_seed_is_left_out(
    prepared: Path, tmp_path: Path, quick: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    bowl = searching.train_on_validation
    rates: list[float] = []

    def diverges(config: Config, seeds: Sequence[int], *rest: Any) -> list[float]:
        if 1 in seeds:
            rates.append(config.optimizer.learning_rate)
            if worst is None or rates[-1] == worst:
                raise TrainingError("the loss at step 3 is nan")
        return bowl(config, seeds, *rest)

    monkeypatch.setattr(searching, "train_on_validation", diverges)
    worst: float | None = None
    with pytest.raises(TrainingError, match="none of the best trials can be trained with every"):
        search(prepared, plan(tmp_path, trials=4), QUIET)
    worst = rates[0]
    log = StringIO()
    preset = search(prepared, plan(tmp_path, trials=4), Console(file=log, width=200))
    assert len(preset["finalists"]) == len(set(rates)) - 1
    assert preset["found"]["optimizer.learning_rate"] != worst
    assert re.search(r"trial \d is out: the loss at step 3 is nan", log.getvalue())


def test_a_file_of_another_search_is_refused(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    search(prepared, plan(tmp_path, trials=2), QUIET)
    other = replace(CONFIG, model=replace(CONFIG.model, embedding_dim=8))
    with pytest.raises(ConfigError, match=r"best.db is a search of other settings .*: 4 -> 8"):
        search(prepared, plan(tmp_path, trials=2, config=other), QUIET)


def test_a_file_of_other_choices_is_refused(prepared: Path, tmp_path: Path, quick: Trained) -> None:
    search(prepared, plan(tmp_path, trials=2), QUIET)
    with opened_storage(tmp_path / "best.db") as storage:
        study = optuna.load_study(study_name="search", storage=storage)
        identity = study.user_attrs["identity"]
        del identity["drawn"]
        study.set_user_attr("identity", identity)
    message = r"best.db is a search of other settings .*drawn.model.bottom_layers: None -> \[\[64\]"
    with pytest.raises(ConfigError, match=message):
        search(prepared, plan(tmp_path, trials=3), QUIET)


def test_a_file_of_before_a_setting_is_gone_on_with(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    search(prepared, plan(tmp_path, trials=2), QUIET)
    with opened_storage(tmp_path / "best.db") as storage:
        study = optuna.load_study(study_name="search", storage=storage)
        identity = study.user_attrs["identity"]
        del identity["config"]["train"]["deterministic"]
        study.set_user_attr("identity", identity)
    preset = search(prepared, plan(tmp_path, trials=3), QUIET)
    assert sum(preset["trials"].values()) == 3


def test_a_search_without_an_end_is_said(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*arguments: Any) -> float:
        raise TrainingError("the loss at step 3 is nan")

    monkeypatch.setattr(searching, "train_on_validation", diverges)
    with pytest.raises(TrainingError, match="none of 2 trials came to its end"):
        search(prepared, plan(tmp_path, trials=2), QUIET)


def test_training_reports_its_validation_and_scores_no_test_row(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    rows = Prepared.rows

    def noted(self: Prepared, split: str):  # type: ignore[no-untyped-def]
        asked.append(split)
        return rows(self, split)

    monkeypatch.setattr(Prepared, "rows", noted)
    reports: list[tuple[int, float]] = []
    opened = searching.open_prepared(prepared)
    asked.clear()
    [value] = train_on_validation(CONFIG, [0], opened, never, lambda *told: reports.append(told))
    assert [count for count, _ in reports] == [1, 2]
    assert value == min(metric for _, metric in reports)
    assert set(asked) == {"train", "validation"}


@pytest.mark.slow
def test_seeds_side_by_side_reach_what_each_reaches_alone(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: the seeds of a finalist that aren't known are trained together."""
    trained: list[list[int]] = []
    train = searching.train_on_validation

    def noted(config: Config, seeds: Sequence[int], *rest: Any) -> list[float]:
        trained.append(list(seeds))
        return train(config, seeds, *rest)

    monkeypatch.setattr(searching, "train_on_validation", noted)
    monkeypatch.setattr(searching, "is_faster_side_by_side", lambda *given: True)
    preset = search(prepared, plan(tmp_path, trials=1), QUIET)
    assert trained == [[0], [1, 2]]
    opened = searching.open_prepared(prepared)
    found = read_preset(tmp_path / "best.json")
    alone = [train(found, [seed], opened, never)[0] for seed in range(3)]
    assert preset["values"] == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == 3


def test_every_method_of_a_table_gets_its_file(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    methods = (MLP, Method("STAR + D1", "star", "d3", "d1"), Method("MMoE", "mmoe"))
    search_table(prepared, Table("t", "T", methods), plan(tmp_path, trials=2, seeds=1), QUIET)
    found = {path.name for path in (tmp_path / "best.json").iterdir()}
    assert found == {"mlp.json", "mlp.db", "mmoe.json", "mmoe.db"}
    assert read_preset(tmp_path / "best.json" / "mmoe.json").model.backbone == "mmoe"


@pytest.mark.slow
def test_every_method_gets_as_many_trials_and_the_same_seeds(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    search_table(prepared, find_table(2, None, "adi", None), plan(tmp_path, trials=7), QUIET)
    found = [json.loads(path.read_text()) for path in (tmp_path / "best.json").glob("*.json")]
    assert len(found) == 9
    assert {sum(preset["trials"].values()) for preset in found} == {7}
    assert {len(preset["values"]) for preset in found} == {3}
    seeds: dict[str, set[int]] = {}
    for config, _ in quick:
        method = f"{config.model.backbone} {config.model.head} {config.d3.parts} {config.adapter}"
        seeds.setdefault(method, set()).add(config.train.seed)
    assert list(seeds.values()) == [{0, 1, 2}] * 9
    # All are evaluated as often and at the same steps.
    every = {(config.train.evaluate_every, config.train.patience) for config, _ in quick}
    assert every == {(0.25, 0)}


def test_an_epoch_is_evaluated_four_times_unless_another_number_is_given() -> None:
    usual = Config()
    often = evaluated_often(usual)
    assert often == replace(usual, train=TrainConfig(evaluate_every=0.25, patience=8))
    given = replace(usual, train=TrainConfig(evaluate_every=0.5))
    assert evaluated_often(given) == given
    assert evaluated_often(often) == often


def test_no_trial_is_cut_short_in_its_first_epoch(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial after the first ones is hopeless from its first evaluation on."""
    counts: list[int] = []

    def worse(config: Config, prepared: Prepared, should_stop: Any, report: Any = None) -> float:
        number = len(counts)
        counts.append(0)
        for count in range(1, 9):
            counts[number] = count
            if report is not None:
                report(count, float(number))
        return float(number)

    train_by(worse, monkeypatch)
    search(prepared, plan(tmp_path, trials=8, seeds=1), QUIET)
    assert counts[:8] == [8, 8, 8, 8, 8, 4, 4, 4]


def test_the_first_trial_is_where_the_search_starts(
    prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    search(prepared, plan(tmp_path, trials=1, seeds=1), QUIET)
    tried = quick[0][0]
    assert tried.optimizer.learning_rate == pytest.approx(CONFIG.optimizer.learning_rate)
    assert tried.train.epochs == CONFIG.train.epochs


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "trials is 0; it must be between 1 and 100000"),
        (["--seeds", "0"], "seeds is 0; it must be between 1 and 1000"),
        (["--preset", "text", "--config", "x.json"], "--preset and --config both give all"),
        (["--config", "nowhere.json"], "can't read nowhere.json (No such file or directory)"),
        (["--space", "paper", "--head", "own"], "space paper varies D3's balance"),
    ],
)
def test_nonsense_is_refused(
    flags: list[str],
    message: str,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["search", str(prepared), "--out", str(tmp_path / "x.json"), *flags])
    assert message in said(capsys)
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("damage", ["garbage", "folder", "half"])
def test_a_damaged_file_of_trials_is_named(
    damage: str, prepared: Path, tmp_path: Path, quick: Trained
) -> None:
    given = plan(tmp_path, trials=2)
    if damage == "garbage":
        given.storage.write_text("garbage")
    elif damage == "folder":
        given.storage.mkdir()
    else:
        search(prepared, given, QUIET)
        given.out.unlink()
        content = given.storage.read_bytes()
        given.storage.write_bytes(content[:4096] + b"x" * (len(content) - 4096))
    message = r"is not a database of d3jax search, or a damaged one, so it is left alone; choose"
    with pytest.raises(OutputError, match=message):
        search(prepared, given, QUIET)


def test_a_folder_is_no_preset_file(prepared: Path, tmp_path: Path) -> None:
    folder = replace(plan(tmp_path, trials=1), out=tmp_path)
    with pytest.raises(ConfigError, match=r"is a folder; name the preset file to write by --out"):
        search(prepared, folder, QUIET)
