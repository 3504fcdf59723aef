"""The preset file that a search writes: what it found, as differences from the defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d3jax.config import Config


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their default, by section, for `Config.from_json`."""
    return _differing(config.to_json(), Config().to_json())


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
