"""Raw files as the engine reads them: everything that a data source reads and checks with.

A name is imported when it is first used, so that the flags of a source are known without an engine.
"""

# ruff: noqa: F401

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3jax.data.encoder import LIST
    from d3jax.data.encoding import NUMBER, kind_of, spell
    from data_pipelines.buckets import bucket_names
    from data_pipelines.raw.engine import hand_over, read_csv, text_parser
    from data_pipelines.raw.files import Raw, check_values, places, read_raw, require_columns
    from data_pipelines.raw.joins import attach, file_of
    from data_pipelines.raw.rules import (
        Rule,
        parse_counts,
        parse_rule,
        parse_scenario,
        parse_settings,
    )
    from data_pipelines.raw.times import WHOLE, microseconds
    from data_pipelines.splits import plain

_HOMES = {
    "d3jax.data.encoder": ("LIST",),
    "d3jax.data.encoding": ("NUMBER", "kind_of", "spell"),
    "data_pipelines.buckets": ("bucket_names",),
    "data_pipelines.raw.engine": ("hand_over", "read_csv", "text_parser"),
    "data_pipelines.raw.files": ("Raw", "check_values", "places", "read_raw", "require_columns"),
    "data_pipelines.raw.joins": ("attach", "file_of"),
    "data_pipelines.raw.rules": (
        *("Rule", "parse_counts", "parse_rule", "parse_scenario", "parse_settings"),
    ),
    "data_pipelines.raw.times": ("WHOLE", "microseconds"),
    "data_pipelines.splits": ("plain",),
}

_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name from the module that it is in."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
