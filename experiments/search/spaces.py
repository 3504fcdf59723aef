"""Search spaces over the configuration: what a trial may change, and within which bounds.

Every method has the same space of what it shares with others. What it has of its own, the choices
that its backbone, head and adapter declare in `Part.space` are tried. A space holds only what the
model reads, and always the settings that the search starts from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.heads import WHOLE_WIDTH, D3Options
from d3jax.names import did_you_mean
from d3jax.reads import chosen_name, flag_of, get, lacking
from d3jax.registry import LAYERS, REGISTRIES
from experiments.compare.tables import START_RATIOS

if TYPE_CHECKING:
    import optuna.trial


class Range(NamedTuple):
    """Numbers between two bounds: in steps of `step`, or by their logarithm where that is None."""

    low: float
    high: float
    step: float | None = None

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Return a trial's draw; in steps, as the number that is written so."""
        if self.step is None:
            return trial.suggest_float(name, self.low, self.high, log=True)
        return self._nearest(trial.suggest_float(name, self.low, self.high, step=self.step))

    def holds(self, value: float) -> bool:
        """Return whether a trial can draw a value."""
        on_grid = self.step is None or self._nearest(value) == value
        return on_grid and self.low <= value <= self.high

    def _nearest(self, value: float) -> float:
        step = self.step or 1.0
        return round(step * round(value / step), 2)

    def __str__(self) -> str:
        """Return the bounds in words."""
        steps = "" if self.step is None else f" in steps of {self.step}"
        return f"{self.low} to {self.high}{steps}"


Choices = tuple[Any, ...]
Space = Mapping[str, Range | Choices]
"""Settings by name, such as "mmoe.experts", and what they may be."""

EPOCHS = (2, 3, 4, 6, 10)
"""Lengths of a run. When loss adaptation starts is a share of the length, so one whose best epoch
comes long before its end never gets to see it."""

DECAYS = Range(1e-6, 1.0)

SHARED: Space = {
    "optimizer.learning_rate": Range(2e-4, 1e-2),
    "optimizer.weight_decay": DECAYS,
    "optimizer.embedding_decay": DECAYS,
    "optimizer.own_decay": DECAYS,
    "model.embedding_dropout": Range(0.0, 0.6, 0.05),
    "model.bottom_layers": LAYERS,
    "model.tower_layers": ((), (32,), (64,), (64, 32)),
    "train.epochs": EPOCHS,
}
"""The settings of no part, which all models that read them are searched over alike."""

TENTHS = Range(0.0, 1.0, 0.1)
BALANCE: Space = {
    "balance.start_ratio": START_RATIOS,
    "balance.complexity_shift": TENTHS,
    "balance.complexity_scale": TENTHS,
    "balance.specificity_shift": TENTHS,
    "balance.specificity_scale": TENTHS,
}
"""The grid of Jia et al. (AAAI 2024): lambdas and alphas 0, 0.1 to 1, five start ratios."""


def wide(config: Config) -> Space:
    """The settings that all share, and the own ones of the parts that the configuration names."""
    own = dict(_own(config))
    return {name: of for name, of in {**SHARED, **own}.items() if lacking(config, name) is None}


SPACES: Mapping[str, Callable[[Config], Space]] = {"paper": lambda config: BALANCE, "wide": wide}


def space_of(name: str, config: Config) -> Space:
    """Return the space of that name around a configuration, which it holds.

    Raises `ConfigError` for a setting whose bounds leave out what it is, and when there is nothing
    to vary in this model.
    """
    if name == "paper" and not config.has_balance:
        raise ConfigError(
            "space paper varies D3's balance, which this model lacks; use --head d3 --parts d3, "
            "or --space wide"
        )
    return {setting: _around(config, setting, of) for setting, of in SPACES[name](config).items()}


def draw(space: Space, trial: optuna.trial.BaseTrial, config: Config) -> Config:
    """Return the configuration with what a trial draws from the space.

    Raises `ConfigError` for a draw that contradicts itself.
    """
    changes: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting, of in space.items():
        section, key = setting.split(".")
        changes[section][key] = _drawn(trial, setting, of)
    return config.changed(
        **{name: replace(getattr(config, name), **part) for name, part in changes.items()}
    )


def start(space: Space, config: Config) -> dict[str, Any]:
    """Return the parameters of a trial that draws the configuration itself."""
    return {setting: _told(get(config, setting)) for setting in space}


def _own(config: Config) -> Iterator[tuple[str, Choices]]:
    """The settings that the chosen parts declare choices for; raises `ConfigError` for none."""
    for kind, registry in REGISTRIES.items():
        name = chosen_name(config, kind)
        part = registry.find(name)
        known = {
            each.name: section
            for section, options in part.sections(name).items()
            for each in fields(options)
        }
        for setting, choices in part.space.items():
            if setting not in known:
                raise ConfigError(
                    f"the space of {kind} {name} has {setting!r}{did_you_mean(setting, known)}, "
                    f"which is none of its settings; they are {', '.join(known)}"
                )
            yield f"{known[setting]}.{setting}", tuple(choices)


def _around(config: Config, setting: str, of: Range | Choices) -> Range | Choices:
    """A setting's bounds or choices, among which is the value that it has."""
    value = get(config, setting)
    if not isinstance(of, Range):
        if setting == "d3.width" and value == 0:
            of = tuple(width for width in of if width != open_width(config))
        return of if value in of else (*of, value)
    if not of.holds(value):
        raise ConfigError(
            f"--{flag_of(setting)} ({setting}) is {value}, but the search starts there and draws "
            f"it of {of}; give one of these"
        )
    return of


def open_width(config: Config) -> int:
    """Return what D3's width is where it is left open, so that no width is tried twice."""
    whole = config.model.backbone in ("plain", "adi")
    return WHOLE_WIDTH if whole else D3Options().outputs


def _drawn(trial: optuna.trial.BaseTrial, setting: str, of: Range | Choices) -> Any:
    if isinstance(of, Range):
        return of.suggest(trial, setting)
    values = {_told(value): value for value in of}
    return values[trial.suggest_categorical(setting, list(values))]


def _told(value: Any) -> Any:
    """A value as a study's file can hold it: widths as text."""
    return ("-".join(map(str, value)) or "none") if isinstance(value, tuple) else value
