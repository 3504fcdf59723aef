"""Every setting of a run, as frozen dataclasses; the command line is made from them.

Here is what all models share. A part's own settings are in the part's file, and a `Config` holds
those of the parts that it names. This file imports no JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from d3jax.checks import widths, within
from d3jax.errors import ConfigError, D3jaxError
from d3jax.names import did_you_mean
from d3jax.registry import ADAPTERS, BACKBONES, HEADS, section_class, section_names
from d3jax.typed import check_types, from_json

EmbeddingInit = Literal["normal", "xavier_table"]
Aggregation = Literal["row", "scenario_sum"]
TableLayout = Literal["auto", "replicated", "sharded"]
ScheduleName = Literal["constant", "cosine", "wsd"]
TableUpdateName = Literal["auto", "dense", "lazy_adamw", "adagrad"]
OnNonFinite = Literal["stop", "skip"]
Wide = Literal["none", "residual", "crosses", "auto"]
Monitor = Literal["logloss", "auc", "macro_auc", "worst_auc"]


@dataclass(frozen=True)
class ModelConfig:
    """Embedding, backbone and head."""

    backbone: str = "shared_bottom"
    """plain (none), shared_bottom, mmoe, m2m, adi, star, sar_net; beyond the paper ple, pepnet,
    adasparse, hamur, m3oe, adaptdhm; or a package's own."""
    head: str = "d3"
    """own (as without D3), d3, m2m_wg, pepnet_wg, or a package's own."""
    embedding_dim: int = 16
    """Width D of a field's embedding."""
    embedding_init: EmbeddingInit = "xavier_table"
    """normal: N(0, scale); xavier_table: over the table."""
    embedding_scale: float = 0.01
    """Standard deviation of normal embeddings."""
    embedding_dropout: float = 0.0
    """Share of the embeddings' numbers zeroed in training."""
    table_layout: TableLayout = "auto"
    """replicated, sharded; auto: from 100,000 rows sharded."""
    bottom_layers: tuple[int, ...] = (128, 64)
    """Widths of the shared bottom, and of plain's network."""
    tower_layers: tuple[int, ...] = (32,)
    """Hidden widths of each scenario's tower."""
    wide: Wide = "none"
    """A domain's own terms: none, residual, crosses, auto."""
    domain: tuple[str, ...] = ()
    """Fields whose values are the domains, or auto; bare: scenarios."""

    def __post_init__(self) -> None:
        check_types(self)
        BACKBONES.check(self.backbone)
        HEADS.check(self.head)
        within("embedding_dim", self.embedding_dim, 1, 4096)
        within("embedding_scale", self.embedding_scale, 1e-8, 10)
        within("embedding_dropout", self.embedding_dropout, 0, 0.99)
        widths("bottom_layers", self.bottom_layers)
        widths("tower_layers", self.tower_layers)
        if not self.bottom_layers:
            raise ConfigError("bottom_layers is empty; the shared bottom needs at least one layer")


@dataclass(frozen=True)
class AdapterConfig:
    """The weighing of scenarios, without D3's own balance."""

    adapter: str = "none"
    """none, dwa, dtp, gradnorm, uncertainty, share, others."""
    aggregation: Aggregation = "row"
    """row: mean over rows; scenario_sum: sum of means."""

    def __post_init__(self) -> None:
        check_types(self)
        ADAPTERS.check(self.adapter)
        if self.adapter == "gradnorm" and self.aggregation == "row":
            raise ConfigError(
                "gradnorm weighs each scenario's mean loss, which aggregation row doesn't have; "
                "use --aggregation scenario_sum"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) and its rate over the run."""

    learning_rate: float = 1e-3
    """The highest rate that the schedule reaches."""
    schedule: ScheduleName = "constant"
    """constant, cosine, or wsd: stable, then to 0."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises from 0."""
    cooldown: float = 0.2
    """Share of the steps in which wsd falls to 0."""
    clip_norm: float = 0.0
    """Greatest norm of a step's gradient; 0: any."""
    average: float = 0.0
    """Decay of averaged weights to score with; 0: none."""
    weight_decay: float = 1e-5
    """Decoupled weight decay of the network."""
    embedding_decay: float = 1e-5
    """Decoupled weight decay of the embedding table."""
    own_decay: float = 0.1
    """The same of the residual and of adaptive's own."""
    embedding_update: TableUpdateName = "auto"
    """dense; the batch's rows: lazy_adamw, adagrad; or auto."""

    def __post_init__(self) -> None:
        check_types(self)
        within("learning_rate", self.learning_rate, 1e-12, 10)
        within("weight_decay", self.weight_decay, 0, 1000)
        within("own_decay", self.own_decay, 0, 1000)
        within("embedding_decay", self.embedding_decay, 0, 1000)
        within("warmup", self.warmup, 0, 1)
        within("cooldown", self.cooldown, 0, 1)
        within("clip_norm", self.clip_norm, 0, 1e30)
        within("average", self.average, 0, 0.9999999)
        if self.schedule == "wsd" and self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup {self.warmup} and cooldown {self.cooldown} are shares of the same steps, "
                "more than all of them together; make one smaller"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the step."""

    seed: int = 0
    """Decides first weights and the order of rows."""
    batch_size: int = 2048
    """Rows of a step over all devices."""
    epochs: int = 10
    """Most passes over the training rows."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on validation rows."""
    patience: int = 2
    """Evaluations without progress to stop after; 0: never."""
    monitor: Monitor = "logloss"
    """logloss, auc, macro_auc or worst_auc, on validation."""
    monitor_scenario: str = ""
    """The scenario that is monitored; empty: all rows."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, beside evaluations'."""
    log_every: int = 50
    """Steps between progress lines."""
    window_rows: int = 0
    """Rows to shuffle among at a time; 0: all of them."""
    slices: int = 1
    """Parts of a batch computed in turn, to save memory."""
    on_nonfinite: OnNonFinite = "stop"
    """stop the run, or skip the batch."""
    workers: int = 0
    """Processes that read batches; 0: this one."""
    deterministic: bool = True
    """The same bits whenever a run on a GPU is repeated."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.monitor_scenario and self.monitor not in ("logloss", "auc"):
            raise ConfigError(
                f"monitor {self.monitor} is of all scenarios, not of {self.monitor_scenario!r}; "
                "use --monitor logloss or --monitor auc with --monitor-scenario"
            )
        within("seed", self.seed, 0, 2**31 - 1)
        within("batch_size", self.batch_size, 1, 2**24)
        within("epochs", self.epochs, 1, 100000)
        within("evaluate_every", self.evaluate_every, 1e-3, 100000)
        within("patience", self.patience, 0, 100000)
        within("checkpoint_every", self.checkpoint_every, 1, 2**31)
        within("log_every", self.log_every, 1, 2**31)
        within("window_rows", self.window_rows, 0, 2**32)
        within("slices", self.slices, 1, 2**20)
        within("workers", self.workers, 0, 256)


@dataclass(frozen=True, init=False)
class Config:
    """All of it: what models share, and a section for each part that has settings of its own.

    `Config(train=TrainConfig(epochs=3), mmoe=MMoEOptions(experts=8))` gives a part's section by
    its name, and so does `dataclasses.replace`; `config.mmoe` reads it, with the part's defaults
    where none was given.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parts: dict[str, Any] = field(default_factory=dict)
    """The parts' sections that differ from their defaults, by name."""

    def __init__(self, **sections: Any) -> None:
        """Raise `ConfigError` for a section that no part has, or of another part."""
        given = {**sections.pop("parts", {}), **sections}
        for name, kind in _SHARED.items():
            object.__setattr__(self, name, given.pop(name) if name in given else kind())
        for name, options in given.items():
            _check_section(name, options)
        changed = {
            name: given[name] for name in sorted(given) if given[name] != type(given[name])()
        }
        object.__setattr__(self, "parts", changed)
        check_types(self)

    def __hash__(self) -> int:
        return hash((self.model, self.adapter, self.optimizer, self.train, *self.parts.items()))

    def __getattr__(self, name: str) -> Any:
        """Return the section of a part; `AttributeError` where no part is called so."""
        if not name.startswith("_") and "parts" in vars(self):
            if name in self.parts:
                return self.parts[name]
            if (kind := section_class(name)) is not None:
                return kind()
        raise AttributeError(f"a configuration has no section {name!r}")

    def changed(self, **sections: Any) -> Config:
        """Return the configuration with other sections in their place; raises what it raises."""
        return Config(**{**vars(self), **sections})

    @property
    def shared(self) -> dict[str, Any]:
        """The sections that all models share, by their names."""
        return {name: getattr(self, name) for name in _SHARED}

    @property
    def chosen(self) -> dict[str, Any]:
        """The sections of the parts that the configuration names, by their names."""
        names = self.model.backbone, self.model.head, self.adapter.adapter
        return {section: getattr(self, section) for section in _sections_of(*names)}

    @property
    def has_balance(self) -> bool:
        """Return whether the loss weighs rows as D3 does (Eq. 15-19)."""
        return self.model.head == "d3" and self.d3.parts == "d3"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, tuples as lists: what all models share and the chosen parts'
        sections in full, and of other parts those that differ from their defaults."""
        sections = {**self.shared, **self.chosen, **self.parts}
        return {name: _plain(section) for name, section in sections.items()}

    @classmethod
    def from_json(cls, value: Any) -> Config:
        """Return the inverse of `to_json`; a setting that is left out has its default.

        Raises `ConfigError` naming a setting that is unknown, of the wrong type or out of range.
        """
        return cls.read_json(value, "", ConfigError)

    @classmethod
    def read_json(cls, value: Any, name: str, error: type[D3jaxError]) -> Config:
        """Return `from_json` of a value called `name`, with refusals of the type `error`."""
        prefix = f"{name}." if name else ""
        sections = from_json(dict[str, Any], value, name or "the whole", error)
        kinds = {section: _section_class(section) for section in sections}
        for section in sorted(section for section, kind in kinds.items() if kind is None):
            known = [*_SHARED, *section_names()]
            raise error(
                f"{prefix}{section} is unknown to this d3jax{did_you_mean(section, known)}; it "
                f"knows {', '.join(sorted(known))}"
            )
        read = {
            section: from_json(kinds[section], each, prefix + section, error)
            for section, each in sections.items()
        }
        return cls(**read)


_SHARED: dict[str, type[Any]] = {
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
}


def _sections_of(*names: str) -> list[str]:
    """The sections of a backbone, a head and an adapter."""
    named = zip((BACKBONES, HEADS, ADAPTERS), names, strict=True)
    return [section for registry, name in named for section in registry.find(name).sections(name)]


def _section_class(name: str) -> type[Any] | None:
    return _SHARED.get(name) or section_class(name)


def _check_section(name: str, options: Any) -> None:
    kind = section_class(name)
    if kind is None:
        known = section_names()
        raise ConfigError(
            f"no part has settings called {name!r}{did_you_mean(name, known)}; those that are "
            f"known are {', '.join(known)}"
        )
    if type(options) is not kind:
        raise ConfigError(f"{name} is a {type(options).__name__}; it must be a {kind.__name__}")


def completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity whose "config" has the defaults of the settings and sections it lacks.

    An earlier d3jax wrote it without those that have come since: a new setting's default is what
    was done before there was one.
    """
    given = identity.get("config", {})
    model = {**_plain(ModelConfig()), **given.get("model", {})}
    adapter = given.get("adapter", {}).get("adapter", AdapterConfig.adapter)
    chosen = _sections_of(model["backbone"], model["head"], adapter)
    kinds = {name: _section_class(name) for name in (*_SHARED, *chosen, *given)}
    sections = {
        name: {**_plain(kind()), **given.get(name, {})}
        for name, kind in kinds.items()
        if kind is not None
    }
    return {**identity, "config": {**given, **sections}}


def _plain(section: Any) -> dict[str, Any]:
    """The settings of a section as JSON has them."""
    return json.loads(json.dumps(asdict(section)))


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """`key: ours -> theirs` for every leaf in which two JSON-like values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [
            line
            for key in keys
            for line in differences(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        ]
    return [] if ours == theirs else [f"{prefix.rstrip('.')}: {ours} -> {theirs}"]
