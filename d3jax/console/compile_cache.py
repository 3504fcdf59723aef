"""Compiled programs are kept in the user's cache directory, so that the next start is quick."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Keep small programs too: a start consists of many."""


def cache_directory() -> Path | None:
    """`d3jax/programs` where the system keeps caches (the XDG base directory specification).

    None where there is no such place: a container may run as a user whom the system doesn't know.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification wants a relative path to be ignored.
        caches = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return caches / "d3jax" / "programs"


def use_compile_cache() -> None:
    """Tells JAX, which must not have been imported, where to keep programs.

    What the user has set for JAX stands. JAX itself goes on without a cache that it can't write,
    and never takes a program for another: its key covers program, options, devices and versions.
    """
    if (directory := cache_directory()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
