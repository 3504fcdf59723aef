"""Search spaces over the configuration: what a trial may change, and within which bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.reads import flag_of, get
from experiments.compare.tables import START_RATIOS

if TYPE_CHECKING:
    import optuna.trial

WIDTHS = ("64", "128-64", "256-128", "256-128-64")
"""Networks as text, which a study's file can hold."""

EPOCHS = (2, 3, 4, 6, 10)
"""Lengths of a run. When loss adaptation starts is a share of the length, so one whose best epoch
comes long before its end never gets to see it."""

DECAYS = 1e-6, 1.0
RATES = 2e-4, 1e-2
DROPOUTS = 0.0, 0.6
FIELD_HIDDEN = (4, 8, 16, 32)
D3_WIDTHS = (16, 32, 64)
RANKS = (0, 4, 16)
BALANCE = ("complexity_shift", "complexity_scale", "specificity_shift", "specificity_scale")


class Space(NamedTuple):
    """`draw(trial, config)` is a configuration near the given one; `start(config)` are the
    parameters of a trial that draws that one itself, as far as the space has them."""

    draw: Callable[[optuna.trial.BaseTrial, Config], Config]
    start: Callable[[Config], dict[str, Any]]


def paper(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    """The grid of Jia et al. (AAAI 2024): lambdas and alphas 0, 0.1 to 1, five start ratios.

    Raises `ConfigError` for a draw that weighs every row with 0.
    """
    values: dict[str, Any] = {
        "start_ratio": trial.suggest_categorical("start_ratio", START_RATIOS),
        **{name: round(trial.suggest_float(name, 0.0, 1.0, step=0.1), 1) for name in BALANCE},
    }
    return config.changed(balance=replace(config.balance, **values))


def wide(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    """Learning rate, decays, embedding dropout, widths and length; with D3 its generator's sizes
    too, and when its weighing of rows starts."""
    optimizer = replace(
        config.optimizer,
        learning_rate=trial.suggest_float("learning_rate", *RATES, log=True),
        weight_decay=trial.suggest_float("weight_decay", *DECAYS, log=True),
        embedding_decay=trial.suggest_float("embedding_decay", *DECAYS, log=True),
    )
    layers = trial.suggest_categorical("bottom_layers", WIDTHS)
    model = replace(
        config.model,
        embedding_dropout=round(trial.suggest_float("embedding_dropout", *DROPOUTS, step=0.05), 2),
        bottom_layers=tuple(int(width) for width in layers.split("-")),
    )
    train = replace(config.train, epochs=trial.suggest_categorical("epochs", EPOCHS))
    config = config.changed(model=model, optimizer=optimizer, train=train)
    return _wide_d3(trial, config) if config.model.head == "d3" else config


def paper_start(config: Config) -> dict[str, Any]:
    """The balance as it is."""
    values = {name: getattr(config.balance, name) for name in BALANCE}
    tenths = {name: round(value, 1) for name, value in values.items() if value <= 1}
    return tenths | _listed("start_ratio", config.balance.start_ratio, START_RATIOS)


def wide_start(config: Config) -> dict[str, Any]:
    """The settings that `wide` varies, as they are, or the nearest that it may draw."""
    layers = "-".join(map(str, config.model.bottom_layers))
    found: dict[str, Any] = {
        "learning_rate": _within(config.optimizer.learning_rate, *RATES),
        "weight_decay": _within(config.optimizer.weight_decay, *DECAYS),
        "embedding_decay": _within(config.optimizer.embedding_decay, *DECAYS),
        "embedding_dropout": min(_twentieth(config.model.embedding_dropout), DROPOUTS[1]),
        **_listed("bottom_layers", layers, WIDTHS),
        **_listed("epochs", config.train.epochs, EPOCHS),
    }
    if config.model.head == "d3":
        found |= _listed("field_hidden", config.d3.field_hidden, FIELD_HIDDEN)
        found |= _listed("width", config.d3.outputs, D3_WIDTHS)
        found |= _listed("rank", config.d3.rank, RANKS)
        if config.has_balance:
            found |= _listed("start_ratio", config.balance.start_ratio, START_RATIOS)
    return found


SPACES = {"paper": Space(paper, paper_start), "wide": Space(wide, wide_start)}


_DRAWN: dict[str, tuple[str, Any]] = {
    "learning_rate": ("optimizer.learning_rate", RATES),
    "weight_decay": ("optimizer.weight_decay", DECAYS),
    "embedding_decay": ("optimizer.embedding_decay", DECAYS),
    "embedding_dropout": ("model.embedding_dropout", DROPOUTS),
    "bottom_layers": ("model.bottom_layers", WIDTHS),
    "epochs": ("train.epochs", EPOCHS),
    "field_hidden": ("d3.field_hidden", FIELD_HIDDEN),
    "width": ("d3.width", D3_WIDTHS),
    "rank": ("d3.rank", RANKS),
}
"""The settings that `wide` draws, by what a trial calls them, and the bounds or choices."""


def check_drawn(space: str, config: Config, before: Config) -> None:
    """Raise `ConfigError` for a setting of one's own that the search draws, and can't draw so."""
    if space != "wide":
        return
    start = wide_start(config)
    for name, (setting, drawn) in _DRAWN.items():
        value = get(config, setting)
        plain = "-".join(map(str, value)) if isinstance(value, tuple) else value
        if value == get(before, setting) or start.get(name) == plain:
            continue
        joined = " to " if drawn in (RATES, DECAYS, DROPOUTS) else ", "
        choices = joined.join(map(str, drawn))
        raise ConfigError(
            f"--{flag_of(setting)} ({setting}) is {plain}, but the search draws it itself, of "
            f"{choices}; leave it out"
        )


def check_space(space: str, config: Config) -> None:
    """Raises `ConfigError` when the space has nothing to vary in this model."""
    if space == "paper" and not config.has_balance:
        raise ConfigError(
            "space paper varies D3's balance, which this model lacks; use --head d3 --parts d3, "
            "or --space wide"
        )


def _wide_d3(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    d3 = replace(
        config.d3,
        field_hidden=trial.suggest_categorical("field_hidden", FIELD_HIDDEN),
        width=trial.suggest_categorical("width", D3_WIDTHS),
        rank=trial.suggest_categorical("rank", RANKS),
    )
    balance = config.balance
    if config.has_balance:
        start = trial.suggest_categorical("start_ratio", START_RATIOS)
        balance = replace(balance, start_ratio=start)
    return config.changed(d3=d3, balance=balance)


def _twentieth(value: float) -> float:
    """The nearest multiple of .05, as the number that is written so."""
    return round(0.05 * round(value / 0.05), 2)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _listed(name: str, value: Any, choices: tuple[Any, ...]) -> dict[str, Any]:
    """The parameter where the space has that value; a trial draws it otherwise."""
    return {name: value} if value in choices else {}
