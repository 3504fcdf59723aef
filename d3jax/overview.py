"""The text of `d3jax --help`: the verbs, found by entry points, described without importing.

Python's own library suffices, so that it is instant.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import d3jax

GROUP = "d3jax.verbs"
"""The entry points that are verbs: each names a `Verb`."""

HELP = ("--help", "-h")
WIDTH = 80
"""Columns of the overview."""

_ORDER = (
    "prepare",
    "train",
    "evaluate",
    "predict",
    "export",
    "check",
    "describe",
    "compare",
    "inspect",
    "search",
    "chaos",
)

_ABOUT = """Multi-domain click-through-rate prediction in JAX, with D3 as a plug-in.

usage: d3jax VERB ...    (d3jax VERB --help explains a verb)
"""

_DEBUG = """
After an unforeseen error, --debug (or D3JAX_DEBUG=1) shows its traceback.
"""


def asks_for_overview(arguments: Sequence[str]) -> bool:
    """Tell whether the arguments name no verb, but ask for help, the version or nothing."""
    return not arguments or arguments[0] in (*HELP, "--version")


def explain(arguments: Sequence[str]) -> NoReturn:
    """Show what there is, or the version, and end; with code 2 where nothing was asked."""
    if "--version" in arguments:
        print("d3jax", d3jax.__version__, flush=True)
        raise SystemExit(0)
    lines = [_line(name, _purpose(point)) for name, point in find_verbs().items()]
    stream = sys.stdout if arguments else sys.stderr
    print(_ABOUT, *lines, _DEBUG, sep="\n", end="", file=stream, flush=True)
    raise SystemExit(0 if arguments else 2)


def _line(name: str, purpose: str) -> str:
    return textwrap.fill(f"  {name:<9} {purpose}", WIDTH, subsequent_indent=" " * 12)


def find_verbs() -> dict[str, EntryPoint]:
    """Return all verbs, ours first."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    ours = [name for name in _ORDER if name in found]
    return {name: found[name] for name in [*ours, *sorted(found.keys() - set(ours))]}


def _purpose(point: EntryPoint) -> str:
    """Return the first line of a verb's docstring, read from its file."""
    try:
        spec = find_spec(point.module)
    except ImportError as error:
        return f"(can't be loaded: {error})"
    if spec is None or spec.origin is None:
        return f"(can't be loaded: no module named {point.module!r})"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    told = [ast.get_docstring(node) or "" for node in classes if node.name == point.attr]
    return told[0].partition("\n")[0] if told else f"(see {point.value})"
