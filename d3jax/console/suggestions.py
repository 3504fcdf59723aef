"""Suggestions for a verb, a source or a flag that there isn't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.overview import HELP
from d3jax.reads import flag_of
from d3jax.registry import REGISTRIES


def check_names(arguments: Sequence[str], verbs: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for the first verb, source or flag that isn't known, with the nearest.

    `verbs` are the dataclasses that the command line is made from; a verb that stands before a
    union of others, as `prepare` does before its sources, is followed by the name of one.
    """
    command, known, rest = "d3jax", dict(verbs), list(arguments)
    while known and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in known:
            raise ConfigError(
                f"{command} has no {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
        command, kind = f"{command} {name}", known[name]
        known = choices_of(kind)
        if not known:
            _check_flags(command, rest, kind)


def _check_flags(command: str, arguments: Sequence[str], kind: Any) -> None:
    known = flags_of(kind)
    trains = hasattr(kind, "with_flags")
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known and flag not in HELP:
            others = flags_of_parts() if trains else {}
            if flag in others:
                raise ConfigError(
                    f"{flag} ({others[flag].setting}) is given, but nothing here reads it; use "
                    f"{others[flag].cure}, or leave it out"
                )
            near = did_you_mean(flag, [*known, *others])
            raise ConfigError(
                f"{command} has no {argument.partition('=')[0]}{near}; "
                f"{command} --help lists what it has"
            )


class PartFlag(NamedTuple):
    """The setting behind a part's flag, and what chooses the part."""

    setting: str
    cure: str


def flags_of_parts() -> dict[str, PartFlag]:
    """Return the flags of all parts' settings, also of those that a call doesn't choose."""
    found = {}
    for kind, registry in REGISTRIES.items():
        for name in registry.names():
            for section, options in registry.find(name).sections(name).items():
                for each in fields(options):
                    setting = f"{section}.{each.name}"
                    flag = PartFlag(setting, f"--{kind} {name}")
                    found[f"--{flag_of(setting)}"] = flag
                    prefix, _, key = f"--{flag_of(setting)}".rpartition(".")
                    negated = f"{prefix}.no-{key}" if prefix else f"--no-{key[2:]}"
                    if each.type in (bool, "bool"):
                        found[negated] = flag
    return found


def choices_of(kind: Any) -> dict[str, Any]:
    """The dataclasses that stand behind a verb, by their names; none where it has flags itself."""
    for _, hint, _ in _parts(kind):
        if get_origin(hint) in (UnionType, Union):
            named = [
                (get_args(each)[1:], get_args(each)[0])
                for each in get_args(hint)
                if get_origin(each) is Annotated
            ]
            found = {
                note.name: each for notes, each in named for note in notes if hasattr(note, "name")
            }
            if found:
                return found
    return {}


def flags_of(kind: Any, prefix: str = "") -> list[str]:
    """The flags that the fields of a dataclass are on the command line."""
    found = []
    for name, hint, notes in _parts(kind):
        if tyro.conf.Positional in notes:
            continue
        key = name.replace("_", "-")
        if is_dataclass(hint):
            bare = tyro.conf.OmitArgPrefixes in notes
            found += flags_of(hint, prefix if bare else f"{prefix}{key}.")
            continue
        found.append(f"--{prefix}{key}")
        if hint is bool:
            found.append(f"--{prefix}no-{key}")
    return found


def _parts(kind: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Return each field's name, its type, and the notes to tyro about it."""
    hints = get_type_hints(kind, include_extras=True)
    parts = []
    for field in fields(kind):
        hint, notes = hints[field.name], tuple[Any, ...]()
        while get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            notes += tuple(more)
        parts.append((field.name, hint, notes))
    return parts
