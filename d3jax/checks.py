"""Range checks of settings; each message names the setting, its value and its range."""

from __future__ import annotations

from d3jax.errors import ConfigError


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
