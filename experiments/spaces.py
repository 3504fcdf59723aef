"""Search spaces over the configuration: what a trial may change, and within which bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from d3jax.config import Config
from d3jax.errors import ConfigError
from experiments.tables import START_RATIOS

if TYPE_CHECKING:
    import optuna.trial

Space = Callable[["optuna.trial.BaseTrial", Config], Config]
"""Draws a configuration near the given one."""

WIDTHS = ("64", "128-64", "256-128", "256-128-64")
"""Networks as text, which a study's file can hold."""


def paper(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    """The grid of Jia et al. (AAAI 2024): lambdas and alphas 0, 0.1 to 1, five start ratios.

    Raises `ConfigError` for a draw that weighs every row with 0.
    """

    def tenth(name: str) -> float:
        return round(trial.suggest_float(name, 0.0, 1.0, step=0.1), 1)

    balance = replace(
        config.balance,
        start_ratio=trial.suggest_categorical("start_ratio", START_RATIOS),
        complexity_shift=tenth("complexity_shift"),
        complexity_scale=tenth("complexity_scale"),
        specificity_shift=tenth("specificity_shift"),
        specificity_scale=tenth("specificity_scale"),
    )
    return replace(config, balance=balance)


def wide(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    """Learning rate, decays, embedding dropout and widths; with D3 its generator's sizes too."""
    optimizer = replace(
        config.optimizer,
        learning_rate=trial.suggest_float("learning_rate", 2e-4, 1e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1.0, log=True),
        embedding_decay=trial.suggest_float("embedding_decay", 1e-6, 1.0, log=True),
    )
    layers = trial.suggest_categorical("bottom_layers", WIDTHS)
    model = replace(
        config.model,
        embedding_dropout=round(trial.suggest_float("embedding_dropout", 0.0, 0.6, step=0.05), 2),
        bottom_layers=tuple(int(width) for width in layers.split("-")),
    )
    config = replace(config, model=model, optimizer=optimizer)
    return _wide_d3(trial, config) if config.model.head == "d3" else config


SPACES: dict[str, Space] = {"paper": paper, "wide": wide}


def check_space(space: str, config: Config) -> None:
    """Raises `ConfigError` when the space has nothing to vary in this model."""
    if space == "paper" and not has_balance(config):
        raise ConfigError(
            "space paper varies D3's balance, which this model lacks; use --head d3 --parts d3, "
            "or --space wide"
        )


def _wide_d3(trial: optuna.trial.BaseTrial, config: Config) -> Config:
    d3 = replace(
        config.d3,
        field_hidden=trial.suggest_categorical("field_hidden", (4, 8, 16, 32)),
        width=trial.suggest_categorical("width", (16, 32, 64)),
        generator_rank=trial.suggest_categorical("generator_rank", (0, 4, 16)),
    )
    balance = config.balance
    if has_balance(config):
        start = trial.suggest_categorical("start_ratio", START_RATIOS)
        balance = replace(balance, start_ratio=start)
    return replace(config, d3=d3, balance=balance)


def has_balance(config: Config) -> bool:
    """Whether the model's loss weighs rows as D3 does."""
    return config.model.head == "d3" and config.d3.parts == "d3"
