"""Where a benchmark writes, looked at before it measures for hours."""

from __future__ import annotations

from pathlib import Path

from d3jax.errors import ConfigError


def check_outputs(*paths: Path | None) -> None:
    """Raises `ConfigError` for a path that no file can be written to."""
    for path in filter(None, paths):
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; name a file in it")
        if not path.parent.is_dir():
            raise ConfigError(f"{path} can't be written: there is no directory {path.parent}")
