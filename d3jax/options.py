"""The options of each backbone, and the sizes that other implementations give them.

The defaults are the original papers'; what a field changes is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MMoEOptions:
    """Multi-gate Mixture-of-Experts."""

    experts: int = 4
    """Number of experts."""
    layers: tuple[int, ...] = (64,)
    """Widths of an expert."""
    one_gate: bool = False
    """One gate for all scenarios instead of one each."""


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
    """Generated layers in each meta unit."""
    tower_blocks: int = 1
    """Residual blocks in the meta tower."""
    layers: tuple[int, ...] = (64, 32)
    """Dense layers between the meta tower and the logit."""
    inner_activation: bool = False
    """Apply the activation inside the tower's meta unit as well."""
    d3_place: Literal["site", "head"] = "site"
    """D3 generates each meta unit (site), or stands after a plain attention as the head."""


@dataclass(frozen=True)
class ADIOptions:
    """ADI, the adaptive domain interest network."""

    excitation: Literal["linear", "sigmoid", "2sigmoid"] = "linear"
    """What the interest adaptation's weights pass through."""
    norm: Literal["input", "per_layer"] = "input"
    """Where scenarios are normalised on their own: the input, or also after each dense layer."""
    layers: tuple[int, ...] = (64, 32)
    """Widths of the shared and the scenario's own network."""
    shared_networks: int = 1
    """Number of shared networks."""
    mixture: Literal["softmax", "ratio"] = "softmax"
    """How shared networks are weighed; a ratio of affine functions can blow up."""
    forward_width: int = 32
    """Width of the scenario's forward network."""
    forward: Literal["own", "star"] = "own"
    """The forward network's weights: the scenario's, or times shared ones as in STAR."""
    head_layers: tuple[int, ...] = (64, 16)
    """Dense layers between the forward network and the logit."""
    d3_reads: Literal["adapted", "raw"] = "adapted"
    """What D3 selects features from: adapted embeddings, or those before adaptation."""


@dataclass(frozen=True)
class STAROptions:
    """STAR, the star topology adaptive recommender."""

    layers: tuple[int, ...] = (128, 64, 32)
    """Hidden widths of the star-shaped network."""
    auxiliary: tuple[int, ...] = (32,)
    """Hidden widths of the auxiliary network."""
    scenario_init: Literal["ones", "glorot"] = "ones"
    """How scenario weights start: near 1, so the product starts as the shared weights, or drawn."""
    gate_bias: bool = False
    """With D3, the biases are gated as well: g0 of the scenario's plus g1 of the shared one."""
    gate_depth: Literal["all", "first"] = "all"
    """With D3, the layers that the gate acts on."""
    gate_scale: float = 1.0
    """With D3, a factor on the gated product; 4 makes an even gate neutral."""


@dataclass(frozen=True)
class SARNetOptions:
    """SAR-Net."""

    shared_experts: int = 8
    """Experts that all scenarios share."""
    own_experts: int = 2
    """Experts of each scenario."""
    width: int = 16
    """Output width of an expert."""
    expert: Literal["relu", "bn_linear"] = "relu"
    """An expert is dense and rectifier, or batch norm (one for each group) and dense."""
    scenario_gate: bool = False
    """A mixture gate per scenario instead of one for all."""
    layers: tuple[int, ...] = (32, 32)
    """Dense layers between the mixture and the logit."""
    d3_place: Literal["group", "transform"] = "group"
    """With D3, the gate weighs own against shared experts (group), or the two kernels of a
    star-shaped scenario transform (Eq. 13), which then replaces the plain one."""


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


@dataclass(frozen=True)
class AdaSparseOptions:
    """AdaSparse."""

    layers: tuple[int, ...] = (128, 64)
    """Widths of the network whose neurons are pruned."""
    form: Literal["fusion", "scaling", "binary"] = "fusion"
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
