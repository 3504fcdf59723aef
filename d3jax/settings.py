"""The settings of a run as flags, which several verbs take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from d3jax.config import (
    AdapterConfig,
    BalanceConfig,
    Config,
    D3Config,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from d3jax.errors import ConfigError
from d3jax.options import (
    AdaptDHMOptions,
    AdaSparseOptions,
    ADIOptions,
    HAMUROptions,
    M2MOptions,
    M3oEOptions,
    MMoEOptions,
    PEPNetOptions,
    PLEOptions,
    SARNetOptions,
    STAROptions,
)
from d3jax.presets import PRESETS, read_preset, written_by_hand
from d3jax.reads import idle, refuse_idle
from d3jax.verb import Verb

PresetName = Literal["best", "synthetic", "movielens", "text", "official"]


@dataclass(frozen=True)
class Settings(Verb):
    """The settings of a run, which several verbs take as flags."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig]
    d3: tyro.conf.OmitArgPrefixes[D3Config]
    balance: tyro.conf.OmitArgPrefixes[BalanceConfig]
    adapter: tyro.conf.OmitArgPrefixes[AdapterConfig]
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig]
    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    mmoe: MMoEOptions
    m2m: M2MOptions
    adi: ADIOptions
    star: STAROptions
    sar_net: SARNetOptions
    ple: PLEOptions
    pepnet: PEPNetOptions
    adasparse: AdaSparseOptions
    hamur: HAMUROptions
    m3oe: M3oEOptions
    adaptdhm: AdaptDHMOptions
    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME")] = None
    """best, synthetic, movielens, text or official: the configuration that the flags below change.
    Without one, train has best for your data and synthetic for its own; the others have text."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A preset file, such as d3jax search writes, instead of a preset's name."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""

    def chosen(self) -> Config:
        """The configuration: the preset with the flags' changes."""
        return Config(**{section: vars(self)[section] for section in vars(Config())})

    def trained(self, config: Config) -> Sequence[Config]:
        """The configurations that the verb trains when this one is chosen."""
        return (config,)

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Any:
        """Return the preset that the arguments name, the paper's text when they name none."""
        return cls(**vars(preset_of(arguments, "text")))

    def check(self, default: Settings) -> None:
        """Raise `ConfigError` for a flag, or a setting in a file by hand, that nothing reads."""
        config, preset = self.chosen(), default.chosen()
        refuse_idle(config, idle(config, preset, self.trained))
        if self.config is not None and written_by_hand(self.config):
            found = idle(preset, Config(), self.trained)
            still = idle(config, Config(), self.trained).keys() & found.keys()
            left = {name: cure for name, cure in found.items() if name in still}
            refuse_idle(preset, left, f"{self.config}: ")


def preset_of(arguments: Sequence[str], default: PresetName) -> Config:
    """The configuration that `--preset` or `--config` names, before the flags that change it.

    Raises `ConfigError` for both at once, and for a file that is no preset.
    """
    names, files = _values("--preset", arguments), _values("--config", arguments)
    if names and files:
        raise ConfigError("--preset and --config both give all settings; use one of them")
    if files:
        return read_preset(Path(files[-1]))
    return PRESETS.get(names[-1] if names else default, PRESETS["text"])


def _values(flag: str, arguments: Sequence[str]) -> list[str]:
    """What follows a flag, as `--flag value` or `--flag=value`."""
    return [
        value.removeprefix(f"{flag}=")
        for before, value in zip(("", *arguments), arguments, strict=False)
        if before == flag or value.startswith(f"{flag}=")
    ]
