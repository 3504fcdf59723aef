"""The help of a verb: a line a flag, with the default that this very call would use."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args, get_origin

import tyro

from d3jax.console.suggestions import choices_of, parts_of

GUTTER = 27
"""Columns before what a flag is for."""


class Line(NamedTuple):
    """A flag or an argument with its value, and what it is for."""

    left: str
    about: str


def has_own_help(kind: Any) -> bool:
    """Return whether `help_text` explains a verb; one that has verbs of its own is tyro's."""
    return not choices_of(kind)


def help_text(prog: str, kind: Any, default: Any, width: int = 80) -> str:
    """Return the help of a verb in lines of at most `width` columns.

    Its flags are the fields of `kind`, their defaults those of the instance `default`, if it is
    one.
    """
    arguments, flags, sections = list[Line](), list[Line](), dict[str, list[Line]]()
    usage = [prog]
    for name, hint, notes in parts_of(kind):
        value = _default(kind, default, name)
        if tyro.conf.Positional in notes:
            shown = _metavar(name, hint, notes)
            arguments.append(Line(shown, _documentation(kind, name)))
            usage.append(shown if value is MISSING else f"[{shown}]")
        elif is_dataclass(hint):
            bare = tyro.conf.OmitArgPrefixes in notes
            title = f"{name.replace('_', ' ')}: {_title(hint)}"
            sections[title] = list(_flags(hint, value, "" if bare else f"{_dashed(name)}."))
        else:
            flags.append(_flag(kind, name, hint, notes, value, ""))
    told = [f"usage: {' '.join(usage)} [flags]", ""]
    told += _wrapped(inspect.cleandoc(kind.__doc__ or ""), width)
    for title, lines in {"": arguments, "flags": flags, **sections}.items():
        if lines:
            told += ["", *(textwrap.wrap(title, width) if title else [])]
            told += [row for line in lines for row in _rows(line, width)]
    return "\n".join(told) + "\n"


def _flags(kind: Any, default: Any, prefix: str) -> Iterator[Line]:
    for name, hint, notes in parts_of(kind):
        yield _flag(kind, name, hint, notes, _default(kind, default, name), prefix)


def _flag(kind: Any, name: str, hint: Any, notes: tuple[Any, ...], value: Any, prefix: str) -> Line:
    about = _documentation(kind, name)
    if hint is bool:
        if value is True:
            return Line(f"--{prefix}no-{_dashed(name)}", f"Without: {about[:1].lower()}{about[1:]}")
        return Line(f"--{prefix}{_dashed(name)}", about)
    if get_origin(hint) is Literal:
        choices = [str(each) for each in get_args(hint)]
        if any(each not in about for each in choices):
            about = f"{about} ({', '.join(choices)})"
    if isinstance(value, tuple):
        one = "NAME" if str in get_args(hint) else "INT"
        shown = " ".join(map(str, value)) or f"[{one} ...]"
    else:
        shown = _metavar(name, hint, notes) if value in (None, MISSING, "") else str(value)
    return Line(f"--{prefix}{_dashed(name)} {shown}", about)


def _rows(line: Line, width: int) -> Iterator[str]:
    """A flag and what it is for, in columns."""
    about = textwrap.wrap(line.about, width - GUTTER)
    left = f"  {line.left}"
    if len(left) >= GUTTER:
        yield left
        left = ""
    for text in about or [""]:
        yield f"{left:<{GUTTER}}{text}".rstrip()
        left = ""


def _wrapped(text: str, width: int) -> list[str]:
    """A docstring's paragraphs in lines of the width."""
    paragraphs = [textwrap.fill(" ".join(each.split()), width) for each in text.split("\n\n")]
    return "\n\n".join(paragraphs).split("\n")


def _title(kind: Any) -> str:
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0].rstrip(".")
    word = first.partition(" ")[0]
    return first[:1].lower() + first[1:] if word == word.capitalize() else first


def _metavar(name: str, hint: Any, notes: tuple[Any, ...]) -> str:
    told = [each.metavar for each in notes if getattr(each, "metavar", None)]
    plain = {int: "INT", float: "NUMBER", str: "TEXT"}.get(hint, name.upper().replace("_", "-"))
    return told[0] if told else plain


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _default(kind: Any, default: Any, name: str) -> Any:
    """The value that a call has without the flag; `MISSING` where there is none."""
    if isinstance(default, kind):
        value = getattr(default, name)
        return MISSING if value is tyro.MISSING else value
    [field] = [each for each in fields(kind) if each.name == name]
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


@cache
def _documentation(kind: Any, name: str) -> str:
    """The text under a field in the source of its class, on one line."""
    for each in kind.__mro__:
        if name not in vars(each).get("__annotations__", {}):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(body):
            named = isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name
            if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                return " ".join(str(text.value.value).split())
    return ""
