"""The `d3jax` command: its verbs are entry points, so that others can add theirs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import tyro

from d3jax.console.allocator import keep_freed_memory
from d3jax.console.compile_cache import use_compile_cache
from d3jax.console.endings import ending, without_debug
from d3jax.console.help import has_own_help, help_text
from d3jax.console.signals import leave_at_once, leave_on_second_ctrl_c
from d3jax.console.suggestions import check_names
from d3jax.console.terminal import Console, ready_streams
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.overview import HELP, asks_for_overview, explain, find_verbs
from d3jax.verb import Verb, parse_quietly

KEEP_NOTHING = "--no-compile-cache"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb, by default the process' own; end with 0 or a code of `exits`."""
    if arguments is None:
        leave_at_once()
        ready_streams()
        leave_on_second_ctrl_c()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True)
    with ending(arguments, console):
        # Before a verb is looked for: the settings of parts are in files that import JAX.
        keep_freed_memory()
        if KEEP_NOTHING not in (text.replace("_", "-") for text in arguments):
            use_compile_cache()
        parse(without_debug(arguments)).run(console)


def parse(arguments: Sequence[str]) -> Verb:
    """Return the verb that the arguments ask for.

    Raises `ConfigError` for values out of range, a name that is mistyped and a setting that
    nothing reads; shows help, and what else is amiss, and raises `SystemExit`.
    """
    if asks_for_overview(arguments):
        explain(arguments)
    verbs = find_verbs()
    name, *rest = arguments
    if name not in verbs:
        raise ConfigError(
            f"d3jax has no {name!r}{did_you_mean(name, verbs)}; it has {', '.join(verbs)}"
        )
    kind = load_verb(name, verbs[name])
    default = kind.default(rest)
    kind = type(default) if isinstance(default, Verb) else kind
    verb = parse_quietly(kind, default, rest)
    if verb is None:
        check_names(arguments, {name: kind})
    if any(text in HELP for text in rest) and has_own_help(kind):
        width = min(max(shutil.get_terminal_size().columns, 60), 100)
        sys.stdout.write(help_text(f"d3jax {name}", kind, default, width))
        raise SystemExit(0)
    if verb is None or any(text in HELP for text in rest):
        verb = tyro.cli(kind, prog=f"d3jax {name}", args=rest, default=default)
    verb.check(default)
    return verb


def load_verb(name: str, point: EntryPoint) -> type[Verb]:
    """Return the class of a verb; raises `ConfigError` where another package is in its place."""
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:
        package = sys.modules.get(point.module.partition(".")[0])
        place = getattr(package, "__file__", None) or list(getattr(package, "__path__", []))
        raise ConfigError(
            f"d3jax {name} can't be loaded from {point.value} ({error}); the package "
            f"{point.module.partition('.')[0]} that Python finds is {place}: run d3jax from "
            "another folder, or install what is missing"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Verb)):
        raise ConfigError(f"{point.value}, which d3jax {name} is to be, is no d3jax.verb.Verb")
    return kind.flagged()
