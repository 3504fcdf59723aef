"""Dataclasses out of JSON and out of code, by their annotations: one rule for what may be where.

A setting of the wrong type is refused, never converted: the text "false" is no boolean, true no
number, and 1.5 no integer. The annotations known are bool, int, float (an integer will do), str,
Literal, tuple[X, ...], X | None, dict[str, X], Any, and dataclasses of these.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from d3jax.errors import ConfigError, D3jaxError
from d3jax.names import did_you_mean

LARGEST = 2**63 - 1
"""No whole number of a file is larger, on either side of 0."""

_WORDS = {bool: "true or false", str: "text", dict: "an object", NoneType: "null"}
_MANY = {bool: "true or false", int: "integers", float: "numbers", str: "texts"}


def parse_json(text: str) -> Any:
    """The value of a JSON text, by the letter.

    Raises `ValueError` for what Python lets pass: a key twice in an object, of which it would take
    the last, NaN and Infinity, and nesting beyond its stack.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_json(kind: Any, value: Any, name: str = "", error: type[D3jaxError] = ConfigError) -> Any:
    """Return the `kind` that a JSON value stands for; a field of a dataclass may be left out.

    Raises `error` naming the first field, by its path from `name` on, that is unknown, missing or
    of another type, with its value and what it must be. What a dataclass raises passes through. A
    class that has `read_json(value, name, error)` reads itself.
    """
    return _read(kind, value, name, error)


def to_json(value: Any) -> Any:
    """Return what `from_json` reads: a dataclass as an object, or as its own `to_json` has it."""
    if hasattr(value, "read_json"):
        return value.to_json()
    if is_dataclass(value):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    if isinstance(value, dict):
        return {key: to_json(each) for key, each in value.items()}
    return value


def check_types(settings: Any, prefix: str = "") -> None:
    """Raises `ConfigError` naming the first field of a dataclass that its annotation rules out."""
    kinds: Any = type(settings)
    for key, kind in _hints(kinds).items():
        value = getattr(settings, key)
        if not _fits(kind, value):
            raise ConfigError(_refusal(prefix + key, kind, value, "tuple"))


def _read(kind: Any, value: Any, name: str, error: type[D3jaxError]) -> Any:
    if isinstance(value, list | dict):
        kind = next((each for each in _alternatives(kind) if _is_made_of(each, value)), kind)
    if hasattr(kind, "read_json"):
        return kind.read_json(value, name, error)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, name, error)
    if get_origin(kind) is tuple and isinstance(value, list):
        item = get_args(kind)[0]
        if is_dataclass(item):
            return tuple(_read(item, each, f"{name}.{i}", error) for i, each in enumerate(value))
        if _fits(kind, tuple(value)):
            return tuple(value)
    elif _fits(kind, value):
        return value
    raise error(_refusal(name, kind, value))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """X and Y of X | Y."""
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


def _is_made_of(kind: Any, value: list[Any] | dict[str, Any]) -> bool:
    """Return whether a tuple is made of a list, or a dataclass of an object."""
    return is_dataclass(kind) if isinstance(value, dict) else get_origin(kind) is tuple


def _read_dataclass(kind: Any, value: Any, name: str, error: type[D3jaxError]) -> Any:
    if not isinstance(value, dict):
        raise error(_refusal(name or "the whole", kind, value))
    hints, prefix = _hints(kind), f"{name}." if name else ""
    for key in sorted(value.keys() - hints.keys()):
        raise error(
            f"{prefix}{key} is unknown to this d3jax{did_you_mean(key, hints)}; it knows "
            f"{', '.join(sorted(hints))}"
        )
    for field in fields(kind):
        if field.name not in value and _needed(field):
            raise error(
                f"{prefix}{field.name} is missing; it must be {_must_be(hints[field.name])}"
            )
    read = {key: _read(hints[key], each, prefix + key, error) for key, each in value.items()}
    return kind(**read)


def _needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotation of each field, in their order."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(kind: Any, value: Any) -> bool:
    """Return whether a value, lists being tuples, is what an annotation says."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(arguments[1], v) for v in value.values())
    if arguments:
        return any(_fits(each, value) for each in arguments)
    if kind is int or (kind is float and type(value) is int):
        return type(value) is int and -LARGEST <= value <= LARGEST
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, kind)


def _must_be(kind: Any, many: str = "list") -> str:
    """Return an annotation in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a {many} of {_MANY.get(arguments[0], 'objects')}"
    if origin is dict and arguments[1] in _MANY:
        return f"an object of {_MANY[arguments[1]]}"
    if origin is not dict and arguments:
        return " or ".join(_must_be(each, many) for each in arguments)
    if kind is int:
        return "an integer of at most 64 bits"
    if kind is float:
        return "a finite number"
    return _WORDS.get(kind, _WORDS[dict])


def _refusal(name: str, kind: Any, value: Any, many: str = "list") -> str:
    return f"{name} is {reprlib.repr(value)}; it must be {_must_be(kind, many)}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for key, value in pairs:
        if key in read:
            raise ValueError(f"the key {key!r} appears twice in one object")
        read[key] = value
    return read


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
