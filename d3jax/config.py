"""Every setting of a run, as frozen dataclasses; the command line is made from them.

Library functions take the smallest of these they need. Each class checks its own ranges. This
file imports no JAX, so that the command line can explain itself at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from d3jax.checks import check_weighing, widths, within
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
from d3jax.typed import check_types, from_json

BackboneName = Literal[
    "plain",
    "shared_bottom",
    "mmoe",
    "m2m",
    "adi",
    "star",
    "sar_net",
    "ple",
    "pepnet",
    "adasparse",
    "hamur",
    "m3oe",
    "adaptdhm",
]
HeadName = Literal["own", "d3", "m2m_wg", "pepnet_wg"]
Part = Literal["d1", "d2", "d3"]
D3Form = Literal["text", "official"]
Precision = Literal["float32", "bf16"]
GateInput = Literal["selected", "raw"]
EmbeddingInit = Literal["normal", "xavier_table"]
ValueForm = Literal["text", "official", "danet"]
KernelFusion = Literal["multiplicative", "additive"]
BiasFusion = Literal["multiplicative", "additive", "specific"]
EntropyForm = Literal["rows", "mean_row"]
BalanceEntropy = Literal["rows", "mean_row", "naive"]
AdapterName = Literal["none", "dwa", "dtp", "gradnorm", "uncertainty"]
Aggregation = Literal["row", "scenario_sum"]
TableLayout = Literal["auto", "replicated", "sharded"]
TableUpdateName = Literal["auto", "dense", "lazy_adamw", "adagrad"]
OnNonFinite = Literal["stop", "skip"]
Monitor = Literal["logloss", "auc", "macro_auc", "worst_auc"]


@dataclass(frozen=True)
class ModelConfig:
    """Embedding, backbone and head."""

    backbone: BackboneName = "shared_bottom"
    """What the embeddings pass through before the head; plain: nothing."""
    head: HeadName = "d3"
    """What turns a representation into a logit; own: what the backbone has without D3."""
    embedding_dim: int = 16
    """Width D of a field's embedding."""
    embedding_init: EmbeddingInit = "xavier_table"
    """xavier_table: Glorot over the whole table, as the authors do; normal: N(0, scale)."""
    embedding_scale: float = 0.01
    """Standard deviation of the normal embedding initialisation."""
    embedding_dropout: float = 0.0
    """Share of the embeddings' numbers that training zeroes."""
    table_layout: TableLayout = "auto"
    """sharded: the table's rows over all devices; auto: from 100,000 rows on."""
    bottom_layers: tuple[int, ...] = (128, 64)
    """Widths of the shared bottom, and of the plain backbone's own network."""
    tower_layers: tuple[int, ...] = (32,)
    """Hidden widths of each scenario's tower."""

    def __post_init__(self) -> None:
        check_types(self)
        within("embedding_dim", self.embedding_dim, 1, 4096)
        within("embedding_scale", self.embedding_scale, 1e-8, 10)
        within("embedding_dropout", self.embedding_dropout, 0, 0.99)
        widths("bottom_layers", self.bottom_layers)
        widths("tower_layers", self.tower_layers)
        if not self.bottom_layers:
            raise ConfigError("bottom_layers is empty; the shared bottom needs at least one layer")


@dataclass(frozen=True)
class D3Config:
    """The D3 head. The defaults are the paper's text; the options are what others do."""

    parts: Part = "d3"
    """d1: domain division; d2: and modelling (gate, shared weights); d3: and balance (loss)."""
    form: D3Form = "text"
    """text: the paper's equations; official: the authors' code, batch norms included."""
    field_hidden: int = 64
    """Width H of each field's own layer in the generator."""
    width: int = 0
    """Output width O of the generated layer; 0: 128 for plain and adi, 32 elsewhere."""
    generator_rank: int = 0
    """Shared matrices that a generated kernel is mixed from; 0: one per hidden unit."""
    precision: Precision = "float32"
    """What a row's kernel is made and multiplied in; weights, attention and loss are float32."""
    head_layers: tuple[int, ...] = ()
    """Hidden layers between the generated layer and the logit."""
    gate_layers: tuple[int, ...] = (64, 16)
    """Hidden widths of the fusion gate."""
    attention_value: ValueForm = "text"
    """What attention mixes: the embeddings (text), projected values (official), or danet's form."""
    attention_scaled: bool = False
    """Divide the attention's logits by the square root of the embedding width."""
    gate_input: GateInput = "selected"
    """What the gate reads: the attention's output, or the embeddings."""
    kernel_fusion: KernelFusion = "multiplicative"
    """How the row's kernel and the shared one are fused."""
    bias_fusion: BiasFusion = "multiplicative"
    """How biases are fused; specific: the row's own bias alone."""
    outer_activation: bool = True
    """Apply the activation around the generator's residual sum, as Eq. 10 prints it."""
    layer_activation: bool = True
    """Apply the activation to the generated layer's output (Eq. 14)."""
    separate_bias: bool = False
    """Generate biases from a hidden vector of their own instead of the kernels'."""
    detach_generator: bool = False
    """Stop the gradient from the generator into attention and embeddings."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.precision == "bf16" and self.form == "official":
            raise ConfigError("the official form is float32 throughout; use --form text for bf16")
        within("field_hidden", self.field_hidden, 1, 65536)
        within("generator_rank", self.generator_rank, 0, 65536)
        within("width", self.width, 0, 65536)
        widths("head_layers", self.head_layers)
        widths("gate_layers", self.gate_layers)

    @property
    def outputs(self) -> int:
        """O, also where `width` leaves it open."""
        return self.width or 32


@dataclass(frozen=True)
class BalanceConfig:
    """How the D3 loss weighs rows (Eq. 15-19)."""

    start_ratio: float = 0.5
    """Share of the run's steps before weighting starts; 1: never."""
    complexity_shift: float = 0.5
    """Lambda 1 of Eq. 17."""
    complexity_scale: float = 1.0
    """Alpha 1 of Eq. 17."""
    specificity_shift: float = 0.5
    """Lambda 2 of Eq. 18."""
    specificity_scale: float = 1.0
    """Alpha 2 of Eq. 18."""
    lower: float = 0.1
    """Least normalised complexity (Eq. 16)."""
    upper: float = 1.0
    """Greatest normalised complexity (Eq. 16)."""
    entropy: BalanceEntropy = "rows"
    """rows: mean of the rows' entropies; mean_row: entropy of the mean row; naive: the authors'."""
    literal_sign: bool = False
    """Use Eq. 15 as printed, without entropy's minus."""
    minimum_std: float = 1e-20
    """Deviation of the complexities at or below which all rows count the same."""
    normalize: bool = False
    """Divide the loss by the sum of the weights instead of the number of rows."""

    def __post_init__(self) -> None:
        check_types(self)
        within("start_ratio", self.start_ratio, 0, 1)
        check_weighing("complexity", self.complexity_shift, self.complexity_scale)
        check_weighing("specificity", self.specificity_shift, self.specificity_scale)
        within("lower", self.lower, 0, self.upper)
        within("minimum_std", self.minimum_std, 0, math.inf)


@dataclass(frozen=True)
class AdapterConfig:
    """How the loss weighs scenarios, for models without D3's own balance."""

    adapter: AdapterName = "none"
    """Weights by how fast losses fall (dwa), by AUC (dtp), by gradients, or by uncertainty."""
    aggregation: Aggregation = "row"
    """row: mean over rows, a scenario counts by its size; scenario_sum: sum of scenarios' means."""
    period_steps: int = 0
    """Steps between changes of dwa and dtp; 0: an epoch if a run has three, else 1/20 of it."""
    temperature: float = 2.0
    """T of dwa; the larger, the more alike the weights."""
    kpi_smoothing: float = 0.1
    """Alpha of dtp, what the latest AUC counts in its running mean."""
    scenario_focus: float = 1.0
    """Exponent of dtp's scenario weights; the larger, the more the hard scenarios count."""
    row_focus: float = 1.0
    """Exponent of dtp's focal factor on rows; 0: none."""
    mean_one: bool = False
    """Divide dtp's weights by their mean."""
    asymmetry: float = 1.5
    """Exponent of gradnorm; the larger, the more it favours scenarios that learn slowly."""
    watched: str = ""
    """Kernel whose gradients gradnorm compares, such as bottom.1.kernel; empty: the last shared."""

    def __post_init__(self) -> None:
        check_types(self)
        within("period_steps", self.period_steps, 0, 2**31 - 1)
        within("temperature", self.temperature, 1e-3, 1e6)
        within("kpi_smoothing", self.kpi_smoothing, 0, 1)
        within("scenario_focus", self.scenario_focus, 0, 100)
        within("row_focus", self.row_focus, 0, 100)
        within("asymmetry", self.asymmetry, 0, 100)
        if self.adapter == "gradnorm" and self.aggregation == "row":
            raise ConfigError(
                "gradnorm weighs each scenario's mean loss, which aggregation row doesn't have; "
                "use --aggregation scenario_sum"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019)."""

    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 1e-5
    """Decoupled weight decay of the network."""
    embedding_decay: float = 1e-5
    """Decoupled weight decay of the embedding table."""
    b1: float = 0.9
    """Decay of the gradient's running mean."""
    b2: float = 0.999
    """Decay of the squared gradient's running mean."""
    epsilon: float = 1e-8
    """Added to the denominator."""
    embedding_update: TableUpdateName = "auto"
    """dense: all rows; lazy_adamw, adagrad: the batch's; auto: lazy_adamw from 100,000 rows on."""
    embedding_catch_up: bool = False
    """Let lazy_adamw make the moves a row missed, so that it agrees with dense AdamW."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.embedding_catch_up and self.embedding_update != "lazy_adamw":
            raise ConfigError(
                "embedding_catch_up is what lazy_adamw can do; use --embedding-update lazy_adamw"
            )
        within("learning_rate", self.learning_rate, 1e-12, 10)
        within("weight_decay", self.weight_decay, 0, 1000)
        within("embedding_decay", self.embedding_decay, 0, 1000)
        within("b1", self.b1, 0, 0.999999)
        within("b2", self.b2, 0, 0.9999999)
        within("epsilon", self.epsilon, 1e-30, 1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the step."""

    seed: int = 0
    """Decides initial parameters and the order of rows."""
    batch_size: int = 2048
    """Rows of a step over all devices."""
    epochs: int = 10
    """Most passes over the training rows."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation rows (a fraction evaluates within one)."""
    patience: int = 2
    """Evaluations without a better result before training stops; 0: never stop early."""
    monitor: Monitor = "logloss"
    """What the best weights are best at, on validation rows; macro: the scenarios' mean."""
    monitor_scenario: str = ""
    """The scenario whose logloss or auc is monitored; empty: all rows."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, beside the one at each evaluation."""
    log_every: int = 50
    """Steps between progress lines and fetches from the device."""
    window_rows: int = 0
    """Rows to shuffle among at a time, for data larger than memory; 0: all of them."""
    slices: int = 1
    """Parts that a device computes its share of a batch in, one after another, to save memory."""
    on_nonfinite: OnNonFinite = "stop"
    """What a loss or gradient that isn't finite does: stop the run, or skip the batch."""
    workers: int = 0
    """Processes that read batches; 0 reads in the training process."""
    deterministic: bool = True
    """On a GPU, the same bits whenever a run is repeated or resumed; without it small steps are
    up to a third faster, large ones by a few percent. A computer's own cores and TPUs always give
    the same bits."""

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


@dataclass(frozen=True)
class Config:
    """All of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    d3: D3Config = field(default_factory=D3Config)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mmoe: MMoEOptions = field(default_factory=MMoEOptions)
    m2m: M2MOptions = field(default_factory=M2MOptions)
    adi: ADIOptions = field(default_factory=ADIOptions)
    star: STAROptions = field(default_factory=STAROptions)
    sar_net: SARNetOptions = field(default_factory=SARNetOptions)
    ple: PLEOptions = field(default_factory=PLEOptions)
    pepnet: PEPNetOptions = field(default_factory=PEPNetOptions)
    adasparse: AdaSparseOptions = field(default_factory=AdaSparseOptions)
    hamur: HAMUROptions = field(default_factory=HAMUROptions)
    m3oe: M3oEOptions = field(default_factory=M3oEOptions)
    adaptdhm: AdaptDHMOptions = field(default_factory=AdaptDHMOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def has_balance(self) -> bool:
        """Whether the loss weighs rows as D3 does (Eq. 15-19)."""
        return self.model.head == "d3" and self.d3.parts == "d3"

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Any) -> Config:
        """The inverse of `to_json`; a setting that is left out has its default.

        Raises `ConfigError` naming a setting that is unknown, of the wrong type or out of range.
        """
        return from_json(cls, value)


def completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity whose "config" has the defaults of the settings that it lacks.

    An earlier d3jax wrote it without those that have come since: a new setting's default is what
    was done before there was one.
    """
    defaults, given = Config().to_json(), identity.get("config", {})
    sections = {name: {**defaults.get(name, {}), **given.get(name, {})} for name in defaults}
    return {**identity, "config": {**given, **sections}}


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
