"""The settings and neighbours that a part with a name is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

from d3jax.base import Head
from d3jax.batch import Schema
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.parameters import Tree

Options = TypeVar("Options")


class HeadChoice(NamedTuple):
    """The settings that a head is built from: `own` is what the backbone has in its place, `width`
    that of a generated layer where the options leave it open, `tail` what reads it instead of
    dense layers."""

    schema: Schema
    options: Any
    own: Head
    width: int
    tail: Head | None


class BackboneChoice(NamedTuple):
    """The settings and sizes that a backbone is built from.

    `d3` holds the settings of D3's head, None where another head is chosen: a backbone that takes
    D3's generator or gate inside builds them from it.
    """

    schema: Schema
    options: Any
    bottom_layers: tuple[int, ...]
    tower_layers: tuple[int, ...]
    head_name: str
    make_head: Callable[[Head, int, Head | None], Head]
    d3: Any = None

    def head(self, own: Head, width: int = 32, tail: Head | None = None) -> Head:
        """Return the head that was chosen, in the place of the backbone's `own`."""
        return self.make_head(own, width, tail)

    @property
    def gate_layers(self) -> tuple[int, ...] | None:
        """The hidden widths of D3's gate, in a backbone that takes nothing else of it."""
        return None if self.d3 is None else self.d3.gate_layers


class AdapterChoice(NamedTuple):
    """The settings of a loss adapter; `network` declares the network's parameters."""

    schema: Schema
    options: Any
    aggregation: str
    network: Tree
    learning_rate: float
    steps_per_epoch: int
    total_steps: int


def chosen(kind: type[Options], options: Options | None, settings: Mapping[str, Any]) -> Options:
    """Return `options`, or the defaults of their kind, with single settings in their place.

    Raises `ConfigError` for a setting that the kind doesn't have, and what the kind itself refuses.
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"there is no setting {name!r}{did_you_mean(name, known)}; those of "
                f"{kind.__name__} are {', '.join(known)}"
            )
    return replace(kind() if options is None else options, **settings)  # type: ignore[type-var]
