"""Compiled programs are kept in the user's cache directory, so that the next start is quick."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Keep small programs too: a start consists of many."""


def cache_directory() -> Path:
    """`d3jax/programs` where the system keeps caches (the XDG base directory specification)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "d3jax" / "programs"


def use_compile_cache() -> None:
    """Tells JAX, which must not have been imported, where to keep programs.

    What the user has set for JAX stands. JAX itself goes on without a cache that it can't write,
    and never takes a program for another: its key covers program, options, devices and versions.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory()))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
