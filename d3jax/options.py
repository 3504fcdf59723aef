"""The options of each backbone, and the sizes that other implementations give them.

The defaults are the original papers'; what a field changes is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from d3jax.checks import widths, within
from d3jax.typed import check_types

D3Place = Literal["site", "head"]
Excitation = Literal["linear", "sigmoid", "2sigmoid"]
NormPlace = Literal["input", "per_layer"]
Mixture = Literal["softmax", "ratio"]
Forward = Literal["own", "star"]
Reads = Literal["adapted", "raw"]
ScenarioInit = Literal["ones", "glorot"]
GateDepth = Literal["all", "first"]
Expert = Literal["relu", "bn_linear"]
GatePlace = Literal["group", "transform"]
Pruning = Literal["fusion", "scaling", "binary"]


@dataclass(frozen=True)
class MMoEOptions:
    """Multi-gate Mixture-of-Experts."""

    experts: int = 4
    """Number of experts."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""
    one_gate: bool = False
    """One gate for all scenarios instead of one each."""

    def __post_init__(self) -> None:
        check_types(self, "mmoe.")
        within("mmoe.experts", self.experts, 1, 4096)
        widths("mmoe.layers", self.layers, empty=False)


@dataclass(frozen=True)
class M2MOptions:
    """M2M."""

    experts: int = 4
    """Number of experts."""
    width: int = 16
    """Output width of an expert."""
    knowledge: int = 16
    """Width of the scenario knowledge that weights are generated from."""
    meta_layers: int = 1
    """Generated layers in each meta unit, at least 1."""
    tower_blocks: int = 1
    """Residual blocks in the meta tower."""
    layers: tuple[int, ...] = (64, 32)
    """Dense layers between the meta tower and the logit."""
    inner_activation: bool = False
    """Apply the activation inside the tower's meta unit as well."""
    d3_place: D3Place = "site"
    """D3 generates each meta unit (site), or stands after a plain attention as the head."""

    def __post_init__(self) -> None:
        check_types(self, "m2m.")
        within("m2m.experts", self.experts, 1, 4096)
        within("m2m.width", self.width, 1, 4096)
        within("m2m.knowledge", self.knowledge, 1, 4096)
        within("m2m.meta_layers", self.meta_layers, 1, 4096)
        within("m2m.tower_blocks", self.tower_blocks, 1, 4096)
        widths("m2m.layers", self.layers)


@dataclass(frozen=True)
class ADIOptions:
    """ADI, the adaptive domain interest network."""

    excitation: Excitation = "linear"
    """What the interest adaptation's weights pass through."""
    norm: NormPlace = "input"
    """Where scenarios are normalised on their own: the input, or also after each dense layer."""
    layers: tuple[int, ...] = (64, 32)
    """Widths of the shared and the scenario's own network."""
    shared_networks: int = 1
    """Number of shared networks."""
    mixture: Mixture = "softmax"
    """How shared networks are weighed; a ratio of affine functions can blow up."""
    forward_width: int = 32
    """Width of the scenario's forward network."""
    forward: Forward = "own"
    """The forward network's weights: the scenario's, or times shared ones as in STAR."""
    head_layers: tuple[int, ...] = (64, 16)
    """Dense layers between the forward network and the logit."""
    d3_reads: Reads = "adapted"
    """What D3 selects features from: adapted embeddings, or embeddings as they were looked up."""
    keep_forward: bool = False
    """With D3 or another generator, keep the scenario's forward network on top of its layer."""

    def __post_init__(self) -> None:
        check_types(self, "adi.")
        widths("adi.layers", self.layers, empty=False)
        within("adi.shared_networks", self.shared_networks, 1, 4096)
        within("adi.forward_width", self.forward_width, 1, 4096)
        widths("adi.head_layers", self.head_layers)


@dataclass(frozen=True)
class STAROptions:
    """STAR, the star topology adaptive recommender."""

    layers: tuple[int, ...] = (128, 64, 32)
    """Hidden widths of the star-shaped network."""
    auxiliary: tuple[int, ...] = (32,)
    """Hidden widths of the auxiliary network."""
    scenario_init: ScenarioInit = "ones"
    """How scenario weights start: near 1, so the product starts as the shared weights, or drawn."""
    gate_bias: bool = False
    """With D3, the biases are gated as well: g0 of the scenario's plus g1 of the shared one."""
    gate_depth: GateDepth = "all"
    """With D3, the layers that the gate acts on."""
    gate_scale: float = 1.0
    """With D3, a factor on the gated product; 4 makes an even gate neutral."""

    def __post_init__(self) -> None:
        check_types(self, "star.")
        widths("star.layers", self.layers)
        widths("star.auxiliary", self.auxiliary)
        within("star.gate_scale", self.gate_scale, 0, 1000)


@dataclass(frozen=True)
class SARNetOptions:
    """SAR-Net."""

    shared_experts: int = 8
    """Experts that all scenarios share."""
    own_experts: int = 2
    """Experts of each scenario."""
    width: int = 16
    """Output width of an expert."""
    expert: Expert = "relu"
    """An expert is dense and rectifier, or batch norm (one for each group) and dense."""
    scenario_gate: bool = False
    """A mixture gate per scenario instead of one for all."""
    layers: tuple[int, ...] = (32, 32)
    """Dense layers between the mixture and the logit."""
    d3_place: GatePlace = "group"
    """With D3, the gate weighs own against shared experts (group), or the two kernels of a
    star-shaped scenario transform (Eq. 13), which then replaces the plain one."""

    def __post_init__(self) -> None:
        check_types(self, "sar_net.")
        within("sar_net.shared_experts", self.shared_experts, 1, 4096)
        within("sar_net.own_experts", self.own_experts, 1, 4096)
        within("sar_net.width", self.width, 1, 4096)
        widths("sar_net.layers", self.layers)


@dataclass(frozen=True)
class PLEOptions:
    """Progressive layered extraction."""

    levels: int = 2
    """Levels of experts."""
    own_experts: int = 2
    """Experts of each scenario in a level."""
    shared_experts: int = 2
    """Experts in a level that all scenarios share."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""

    def __post_init__(self) -> None:
        check_types(self, "ple.")
        within("ple.levels", self.levels, 1, 4096)
        within("ple.own_experts", self.own_experts, 1, 4096)
        within("ple.shared_experts", self.shared_experts, 1, 4096)
        widths("ple.layers", self.layers, empty=False)


@dataclass(frozen=True)
class AdaSparseOptions:
    """AdaSparse."""

    layers: tuple[int, ...] = (128, 64)
    """Widths of the network whose neurons are pruned."""
    form: Pruning = "fusion"
    """A neuron is scaled, kept or dropped (binary), or scaled and dropped when small (fusion)."""
    scale: float = 2.0
    """Beta, the greatest weight of a neuron; 2 makes an undecided pruner neutral."""
    threshold: float = 0.25
    """Epsilon, the weight at or below which a neuron is dropped."""
    sharpness: float = 1.0
    """Alpha, the steepness of the pruners' sigmoid at first; scaling has none."""
    growth: float = 1e-4
    """What each training step adds to the steepness."""
    sharpest: float = 5.0
    """Where the steepness stops growing."""

    def __post_init__(self) -> None:
        check_types(self, "adasparse.")
        widths("adasparse.layers", self.layers, empty=False)
        within("adasparse.scale", self.scale, 0, 1000)
        within("adasparse.threshold", self.threshold, 0, 1000)
        within("adasparse.sharpness", self.sharpness, 0, 1000)
        within("adasparse.growth", self.growth, 0, 1000)
        within("adasparse.sharpest", self.sharpest, 0, 1000)


@dataclass(frozen=True)
class HAMUROptions:
    """HAMUR, hyper-network adapters."""

    layers: tuple[int, ...] = (128, 64)
    """Widths of each scenario's network."""
    adapters: int = 1
    """Number of last layers that an adapter follows."""
    adapter_width: int = 32
    """Width of an adapter's middle."""
    rank: int = 8
    """Rank of an adapter's kernels."""
    hyper_layers: tuple[int, ...] = (64,)
    """Hidden widths of the hyper-network."""
    shared_factors: bool = False
    """One pair of low-rank factors for all scenarios, as in the authors' code."""

    def __post_init__(self) -> None:
        check_types(self, "hamur.")
        widths("hamur.layers", self.layers, empty=False)
        within("hamur.adapters", self.adapters, 0, 4096)
        within("hamur.adapter_width", self.adapter_width, 1, 4096)
        within("hamur.rank", self.rank, 1, 4096)
        widths("hamur.hyper_layers", self.hyper_layers)


@dataclass(frozen=True)
class M3oEOptions:
    """M3oE."""

    star_width: int = 128
    """Width of the first layer, shared times scenario's weights."""
    width: int = 64
    """Width of what the experts read."""
    experts: int = 4
    """Experts that all scenarios share."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""

    def __post_init__(self) -> None:
        check_types(self, "m3oe.")
        within("m3oe.star_width", self.star_width, 1, 4096)
        within("m3oe.width", self.width, 1, 4096)
        within("m3oe.experts", self.experts, 1, 4096)
        widths("m3oe.layers", self.layers, empty=False)


@dataclass(frozen=True)
class AdaptDHMOptions:
    """AdaptDHM, distribution routing."""

    clusters: int = 3
    """Number of clusters."""
    layers: tuple[int, ...] = (128, 64)
    """Widths of the clusters' networks."""
    rounds: int = 3
    """Moves of the centres in a training step."""
    decay: float = 0.9
    """Beta, the share of a centre that a move keeps."""
    sharpness: float = 10.0
    """Factor on the cosines before the softmax; at 1 the centres drift into one."""

    def __post_init__(self) -> None:
        check_types(self, "adaptdhm.")
        within("adaptdhm.clusters", self.clusters, 1, 4096)
        widths("adaptdhm.layers", self.layers, empty=False)
        within("adaptdhm.rounds", self.rounds, 1, 4096)
        within("adaptdhm.decay", self.decay, 0, 1000)
        within("adaptdhm.sharpness", self.sharpness, 0, 1000)


@dataclass(frozen=True)
class PEPNetOptions:
    """PEPNet."""

    layers: tuple[int, ...] = (128, 64)
    """Widths of the layers that user and item gate."""
    epnet_only: bool = False
    """Gate the embeddings alone, by the scenario; user and item then gate nothing."""

    def __post_init__(self) -> None:
        check_types(self, "pepnet.")
        widths("pepnet.layers", self.layers, empty=False)
