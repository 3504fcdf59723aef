"""Checks of settings and names; each message names the setting, its value and its range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from d3jax.errors import ConfigError, DataError

OVERALL = "overall"
"""The name of all rows together in metrics and tables; no scenario may have that name."""


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises `ConfigError` unless low <= value <= high (a NaN never is)."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be between {low:g} and {high:g}")


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
