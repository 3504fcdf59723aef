"""A configuration from a preset and settings by their names, for who calls d3jax from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from d3jax.checks import as_path, is_a
from d3jax.config import AdapterConfig, Config, Wide
from d3jax.data.prepared import Prepared
from d3jax.division import divisions
from d3jax.domains import AUTO
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.presets import PRESETS, read_preset
from d3jax.reads import idle, lacking, refuse_idle, setting_names
from d3jax.registry import section_class
from d3jax.training.metrics import undefined

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
    for section, key, value in _named(settings, _known(before, settings)):
        part = changes.setdefault(section, {})
        if key in part:
            raise ConfigError(f"{section}.{key} is given twice; give it once")
        part[key] = tuple(value) if isinstance(value, list) else value
    chosen = before.changed(
        **{name: replace(getattr(before, name), **part) for name, part in changes.items()}
    )
    refuse_idle(chosen, idle(chosen, before))
    return chosen


_FOUND: dict[tuple[Path, str], tuple[str, ...]] = {}
"""The domains that prepared rows speak for; a comparison asks them for every method."""


def settled(config: Config, prepared: Prepared) -> Config:
    """Return the configuration with what the data decide: the terms of a domain alone, and the
    domains, where they are left to `auto`.

    Values that the crosses learn age: they gain on rows drawn at random, and lose on later ones
    (`experiments/results/README.md`). So they are for data whose test rows were drawn at random;
    data that were split by time, or by their publisher, get none. The domains are the values of
    the fields that training rows speak for (`d3jax.division`), mostly the scenarios. A model that
    then divides no rows has no domains.
    """
    model = config.model
    if model.wide == "auto":
        wide: Wide = "crosses" if is_split_at_random(prepared) else "none"
        model = replace(model, wide=wide)
    if lacking(config.changed(model=model), "model.domain") is not None:
        model = replace(model, domain=())
    elif model.domain == AUTO:
        model = replace(model, domain=_found_domain(prepared))
    return config.changed(model=model)


def _found_domain(prepared: Prepared) -> tuple[str, ...]:
    key = prepared.directory, prepared.fingerprint
    if key not in _FOUND:
        found, *_ = divisions(prepared.schema, prepared.rows("train"))
        _FOUND[key] = found.fields
    return _FOUND[key]


def settled_for_run(config: Config, prepared: Prepared) -> Config:
    """Return the settled configuration of a run of its own.

    Raises `ConfigError` for fields that were named as domains of a model which, once settled,
    divides no rows, and `TrainingError` where the validation rows can't choose the weights.
    """
    found = settled(config, prepared)
    named = config.model.domain
    if named not in ((), AUTO) and not found.model.domain:
        raise ConfigError(
            f"--domain {' '.join(named)} divides nothing: rows that were not split at random get "
            f"no terms by --wide auto, and {found.model.backbone} divides none itself; use --wide "
            "crosses or residual, or leave it out"
        )
    scenarios, scenario = prepared.schema.scenarios, found.train.monitor_scenario
    if found.train.monitor == "auc" and (not scenario or scenario in scenarios):
        rows = prepared.rows("validation")
        kept = rows.label[rows.scenario == scenarios.index(scenario)] if scenario else rows.label
        if len(kept) and kept.min() == kept.max():
            raise undefined("auc", scenario)
    return found


def is_split_at_random(prepared: Prepared) -> bool:
    """Return whether the test rows of prepared data were drawn at random."""
    made_up = "source" in prepared.provenance and prepared.provenance["source"] == "synthetic"
    method = str(prepared.provenance.get("split", {}).get("method", ""))
    return made_up or method.startswith("md5 of ")


def _start(preset: str, config: Config | Path | str | None) -> Config:
    is_a("preset", preset, str, "a preset's name")
    if config is None:
        if preset not in PRESETS:
            raise ConfigError(
                f"there is no preset {preset!r}{did_you_mean(preset, PRESETS)}; there are "
                f"{', '.join(PRESETS)}, and config takes a Config or a preset file"
            )
        return PRESETS[preset]
    if preset != DEFAULT:
        raise ConfigError("preset and config both give all settings; give one of them")
    if isinstance(config, Config):
        return config
    return read_preset(as_path("config", config, "a Config or a preset file"))


def _known(before: Config, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of what models share and of the parts that are chosen, or named first."""
    names = {kind: settings[kind] for kind in ("backbone", "head") if kind in settings}
    adapter = before.adapter
    if "adapter" in settings and not isinstance(settings["adapter"], Mapping):
        adapter = AdapterConfig(settings["adapter"], "scenario_sum")
    named = before.changed(model=replace(before.model, **names), adapter=adapter)
    return list(dict.fromkeys([*setting_names(named), *_settings_of(settings)]))


def _settings_of(sections: Iterable[str]) -> list[str]:
    kinds = {name: section_class(name) for name in sections}
    return [
        f"{name}.{each.name}"
        for name, kind in kinds.items()
        if kind is not None
        for each in fields(kind)
    ]


def _named(settings: Mapping[str, Any], known: list[str]) -> list[tuple[str, str, Any]]:
    """Return section, key and value of each setting."""
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
