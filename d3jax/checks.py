"""Checks of settings and names; each message names the setting, its value and its range."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d3jax.errors import ConfigError, DataError

OVERALL = "overall"
"""The name of all rows together in metrics and tables; no scenario may have that name."""


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises `ConfigError` unless low <= value <= high (a NaN never is)."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Raises `ConfigError` unless the value is one of those known."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def check_weighing(name: str, shift: float, scale: float) -> None:
    """Raises `ConfigError` unless `shift + scale · value` weighs rows: finite, and not all by 0."""
    within(f"{name}_shift", shift, 0, 100)
    within(f"{name}_scale", scale, 0, 100)
    if shift == scale == 0:
        raise ConfigError(
            f"{name}_shift and {name}_scale are both 0, which weighs every row with 0; "
            "set one of them above 0"
        )


def is_a(name: str, value: Any, kinds: type[Any] | tuple[type[Any], ...], cure: str) -> None:
    """Raises `ConfigError` unless an argument is of one of the kinds; `cure` says what to give."""
    if not isinstance(value, kinds):
        kind, shown = type(value).__name__, repr(value)
        if callable(value) and hasattr(value, "__name__"):
            shown = f"the function {value.__name__}"
        raise ConfigError(f"{name} is {shown if len(shown) <= 40 else f'a {kind}'}; give {cure}")


def as_path(name: str, value: Any, what: str) -> Path:
    """Return an argument as a path; raises `ConfigError` unless it is a string or a path."""
    is_a(name, value, (str, os.PathLike), f"{what}, a string or a Path")
    if isinstance(os.fspath(value), bytes) or not os.fspath(value):
        raise ConfigError(f"{name} is {value!r}; give {what}, a string or a Path")
    return Path(value)


def widths(name: str, values: tuple[int, ...], *, empty: bool = True) -> None:
    """Raises `ConfigError` unless every layer width is positive, and there is one if asked."""
    if not values and not empty:
        raise ConfigError(f"{name} is empty; it needs at least one layer")
    for width in values:
        if width < 1:
            raise ConfigError(f"{name} holds {width}; each width must be at least 1")


def check_scenarios(names: Sequence[str]) -> None:
    """Raises `DataError` for a name that groups of rows can't be told apart by."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"scenario {repeated[0]!r} appears twice; leave one out, or rename it")
    for name in names:
        if "".join(filter(str.isprintable, name)).strip().casefold() == OVERALL:
            raise DataError(
                f"a scenario is called {name!r}, which can't be told from all rows together; "
                "rename it in the raw data"
            )
