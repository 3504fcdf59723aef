"""A verb of the command: a frozen dataclass whose fields are its flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d3jax.console.terminal import Console
from d3jax.overview import HELP


@dataclass(frozen=True)
class Verb:
    """A verb, which an entry point of the group `d3jax.verbs` names; help says its first line.

    JAX and the data engines are imported by `run`, so that help is instant.
    """

    @classmethod
    def flagged(cls) -> type[Verb]:
        """Return the verb whose fields are the flags; a subclass, where others add to them."""
        return cls

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the verb whose settings the flags change, or tyro's sign that there is none."""
        import tyro

        return tyro.MISSING_NONPROP

    def check(self, default: Any) -> None:
        """Raise `ConfigError` for flags that make no sense beside one another or the default's."""

    def run(self, console: Console) -> None:
        """Do what the verb says, and speak on the console, which is standard error."""
        raise NotImplementedError


def parse_quietly(kind: type[Any], default: Any, arguments: Sequence[str]) -> Any:
    """Return the verb that the arguments ask for, help aside; None where something is amiss."""
    import tyro

    asked = [text for text in arguments if text not in HELP]
    try:
        return tyro.cli(kind, args=asked, default=default, console_outputs=False)
    except SystemExit:
        return None
