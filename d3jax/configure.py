"""A configuration from a preset and settings by their names, for who calls d3jax from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.presets import PRESETS, read_preset
from d3jax.reads import idle, refuse_idle, setting_names

DEFAULT = "best"
"""The preset for data of one's own."""


def configure(
    preset: str = DEFAULT, config: Config | Path | str | None = None, **settings: Any
) -> Config:
    """Return a preset, or the given configuration or preset file, with other settings.

    A setting is called by its name, such as `epochs=3`; one whose name several parts have stands
    in its section: `adi={"layers": (64,)}`. Raises `ConfigError` for a preset or a name that there
    isn't, a name that several parts have, a value out of range, and a setting that nothing reads.
    """
    before = _start(preset, config)
    changes: dict[str, dict[str, Any]] = {}
    for section, key, value in _named(settings):
        part = changes.setdefault(section, {})
        if key in part:
            raise ConfigError(f"{section}.{key} is given twice; give it once")
        part[key] = tuple(value) if isinstance(value, list) else value
    parts: Any = {name: replace(getattr(before, name), **part) for name, part in changes.items()}
    chosen = replace(before, **parts)
    refuse_idle(chosen, idle(chosen, before))
    return chosen


def _start(preset: str, config: Config | Path | str | None) -> Config:
    if config is None:
        if preset not in PRESETS:
            raise ConfigError(
                f"there is no preset {preset!r}{did_you_mean(preset, PRESETS)}; there are "
                f"{', '.join(PRESETS)}, and config takes a Config or a preset file"
            )
        return PRESETS[preset]
    if preset != DEFAULT:
        raise ConfigError("preset and config both give all settings; give one of them")
    return config if isinstance(config, Config) else read_preset(Path(config))


def _named(settings: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return section, key and value of each setting."""
    known = setting_names()
    found = []
    for name, value in settings.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        wanted = [(f"{name}.{key}", each) for key, each in inside] or [(name, value)]
        found += [(*_find(text, known).split("."), each) for text, each in wanted]
    return found  # type: ignore[return-value]


def _find(name: str, known: list[str]) -> str:
    """Return the one setting of this name, such as "train.epochs" for "epochs"."""
    found = [each for each in known if name in (each, each.partition(".")[2])]
    if not found:
        section, dot, key = name.rpartition(".")
        near = [each.partition(".")[2] for each in known if each.startswith(section + dot)]
        raise ConfigError(
            f"there is no setting {name!r}{did_you_mean(key, near)}; d3jax train --help lists what "
            "there is"
        )
    if len(found) > 1:
        section = found[0].partition(".")[0]
        raise ConfigError(
            f"{name!r} is a setting of {', '.join(each.partition('.')[0] for each in found)}; say "
            f"of which, such as {section}={{{name!r}: ...}}"
        )
    return found[0]
