"""The settings of a run as flags: those that all models share, and those of the chosen parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from d3jax.config import AdapterConfig, Config, ModelConfig, OptimizerConfig, TrainConfig
from d3jax.errors import ConfigError
from d3jax.presets import PRESETS, read_preset, written_by_hand
from d3jax.reads import BARE, flag_of, idle, refuse_idle, setting_names
from d3jax.verb import Verb

PresetName = Literal["best", "synthetic", "movielens", "text", "official"]


@dataclass(frozen=True)
class Settings(Verb):
    """The settings of a run, which several verbs take as flags.

    A call has a subclass of its own, whose further fields are the sections of the parts that the
    call chooses (`with_flags`).
    """

    model: tyro.conf.OmitArgPrefixes[ModelConfig]
    adapter: tyro.conf.OmitArgPrefixes[AdapterConfig]
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig]
    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME")] = None
    """best (own data), synthetic, movielens, text (the paper) or
    official (its code): the settings that the flags below change."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A preset file instead, such as d3jax search writes."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""

    before: ClassVar[Config | None] = None
    """The configuration that the flags change."""
    sections: ClassVar[tuple[str, ...]] = ()
    """The parts' sections that are flags."""

    def chosen(self) -> Config:
        """Return the configuration: the preset with the flags' changes."""
        parts = {name: getattr(self, name) for name in self.sections}
        kept = {} if self.before is None else self.before.parts
        return Config(
            model=self.model,
            adapter=self.adapter,
            optimizer=self.optimizer,
            train=self.train,
            **{**kept, **parts},
        )

    def trained(self, config: Config) -> Sequence[Config]:
        """Return the configurations that the verb trains when this one is chosen."""
        return (config,)

    @classmethod
    def named(cls, config: Config, arguments: Sequence[str]) -> Sequence[Config]:
        """Return the configurations whose parts' sections are flags of a call."""
        return (named_parts(config, arguments),)

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the preset that the arguments name, the paper's text when they name none."""
        return cls.with_flags(preset_of(arguments, "text"), arguments)

    @classmethod
    def with_flags(cls, config: Config, arguments: Sequence[str]) -> Any:
        """Return a configuration as a verb that has the flags of the parts that a call chooses.

        Raises `ConfigError` for a name that no part has.
        """
        sections: dict[str, Any] = {}
        for each in cls.named(config, arguments):
            sections |= {name: getattr(config, name) for name in each.chosen}
        kind = make_dataclass(
            cls.__name__,
            [(name, _flags(name, each), field(default=each)) for name, each in sections.items()],
            bases=(cls,),
            namespace={"before": config, "sections": tuple(sections)},
            frozen=True,
        )
        kind.__doc__, kind.__module__ = cls.__doc__, cls.__module__
        return kind(**config.shared)

    def check(self, default: Settings) -> None:
        """Raise `ConfigError` for a flag, or a setting in a file by hand, that nothing reads."""
        config, preset = self.chosen(), default.chosen()
        refuse_idle(config, idle(config, preset, self.trained))
        if self.config is not None and written_by_hand(self.config):
            found = idle(preset, Config(), self.trained)
            still = idle(config, Config(), self.trained).keys() & found.keys()
            left = {name: cure for name, cure in found.items() if name in still}
            refuse_idle(preset, left, f"{self.config}: ")


def _flags(name: str, section: Any) -> Any:
    """The type of a section's field; the flags of some have no prefix."""
    kind = type(section)
    return Annotated[kind, tyro.conf.OmitArgPrefixes] if name in BARE else kind


def named_parts(config: Config, arguments: Sequence[str]) -> Config:
    """Return the configuration with the backbone, head and adapter that the arguments name.

    Raises `ConfigError` for a name that no part has.
    """
    backbones, heads, adapters = (
        values(flag, arguments) for flag in ("--backbone", "--head", "--adapter")
    )
    model = replace(
        config.model,
        backbone=_last(backbones, config.model.backbone),
        head=_last(heads, config.model.head),
    )
    adapter = config.adapter
    if adapters:
        # GradNorm goes with one aggregation only, which may be named after it.
        adapter = AdapterConfig(adapters[-1], "scenario_sum")
    return replace(config, model=model, adapter=adapter)


def _last(found: Sequence[str], default: str) -> str:
    return found[-1] if found else default


def preset_of(arguments: Sequence[str], default: PresetName) -> Config:
    """Return the configuration that `--preset` or `--config` names, before the flags change it.

    Raises `ConfigError` for both at once, and for a file that is no preset.
    """
    names, files = values("--preset", arguments), values("--config", arguments)
    if names and files:
        raise ConfigError("--preset and --config both give all settings; use one of them")
    if files:
        return read_preset(Path(files[-1]))
    name = names[-1] if names else default
    return PRESETS[name if name in PRESETS else "text"]


def values(flag: str, arguments: Iterable[str]) -> list[str]:
    """Return the texts that follow a flag, as `--flag value` or `--flag=value`."""
    texts = list(arguments)
    return [
        value.removeprefix(f"{flag}=")
        for before, value in zip(("", *texts), texts, strict=False)
        if before == flag or value.startswith(f"{flag}=")
    ]


def typed_settings(config: Config, arguments: Iterable[str]) -> list[str]:
    """Return the settings of a configuration that the arguments give by their flags."""
    typed = {text.partition("=")[0].replace("_", "-") for text in arguments}
    found = []
    for name in setting_names(config):
        section, dot, key = flag_of(name).rpartition(".")
        if {f"--{section}{dot}{key}", f"--{section}{dot}no-{key}"} & typed:
            found.append(name)
    return found
