"""The preset file that a search writes: what it found, as differences from the defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d3jax.config import Config

_PARTS = {"model": ("backbone", "head"), "adapter": ("adapter",)}
"""The settings that choose parts, and with them the sections that a configuration has."""


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their default, by section, for `Config.from_json`."""
    values, defaults = config.to_json(), Config().to_json()
    chosen = {
        section: {name: values[section][name] for name in _PARTS[section]} for section in _PARTS
    }
    own = {section: defaults[section] for section in _PARTS}
    return _differing(values, defaults | Config.from_json(chosen).to_json() | own)


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _differing(value, default)
            default = {}
        if value != default:
            found[key] = value
    return found


def is_found(path: Path) -> bool:
    """Return whether a file is a preset that a search has written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"config", "trials", "found"} <= content.keys()
