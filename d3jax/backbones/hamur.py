"""HAMUR: each scenario's own network, with adapters that one hyper-network makes for every row.

Li et al., "HAMUR: Hyper Adapter for Multi-Domain Recommendation" (CIKM 2023). An adapter's kernel
is U_s · G · V_s: G is made from the row by a hyper-network that all scenarios share, the
low-rank factors are the scenario's. Assumed or different from the authors' code: factors start as
Glorot instead of all 1, where every column would learn the same; networks and hyper-network have
no batch norm, and G no activation; an adapter's domain norm keeps running moments for evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.errors import ConfigError
from d3jax.heads import towers
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, mlp, select, stacked_dense
from d3jax.layers.grouping import own_mlp
from d3jax.layers.normalization import BatchNorm, Moments, declare_batch_norm, scenario_batch_norm
from d3jax.parameters import Tree
from d3jax.registry import LAYERS, Need, Part
from d3jax.typed import check_types


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


class LowRank(NamedTuple):
    """The two outer factors of a generated kernel, with its bias beside the second."""

    left: Dense
    right: Dense


class AdapterParams(NamedTuple):
    """Down to the narrow middle, up again, and the norm at the end."""

    down: LowRank
    up: LowRank
    norm: BatchNorm


class HAMURParams(NamedTuple):
    """Stacked networks, adapters of their last layers, the hyper-network and the head."""

    layers: tuple[Dense, ...]
    adapters: tuple[AdapterParams, ...]
    hyper: tuple[Dense, ...]
    head: Tree


class HAMURState(NamedTuple):
    """Each adapter's moments per scenario, and the head's state."""

    moments: tuple[Moments, ...]
    head: Tree


def hamur(head: Head, options: HAMUROptions | None = None, **settings: Any) -> Backbone:
    """The head reads the scenario's last layer after its adapter.

    Raises `ConfigError` when there are more adapters than layers to adapt.
    """
    options = chosen(HAMUROptions, options, settings)
    if options.adapters > len(options.layers):
        raise ConfigError(
            f"hamur.adapters is {options.adapters}, but hamur.layers has only "
            f"{len(options.layers)}; use fewer adapters or more layers"
        )

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        adapted = options.layers[len(options.layers) - options.adapters :]
        adapters = [declare_adapter(sizes.num_scenarios, width, options) for width in adapted]
        params = HAMURParams(
            layers=declare_mlp(sizes.flat, options.layers, stack=(sizes.num_scenarios,)),
            adapters=tuple(adapter.params for adapter in adapters),
            hyper=declare_mlp(sizes.flat, (*options.hyper_layers, options.rank**2)),
            head=declared.params,
        )
        moments = tuple(adapter.state for adapter in adapters)
        return Declared(params, HAMURState(moments, declared.state))

    def apply(
        params: HAMURParams, state: HAMURState, inputs: Inputs, mode: Mode
    ) -> tuple[Output, HAMURState]:
        hidden, moments = adapted_network(params, state.moments, inputs, mode)
        output, head_state = head.apply(params.head, state.head, hidden, inputs, mode)
        return output, HAMURState(moments, head_state)

    return Backbone(declare, apply)


def declare_adapter(scenarios: int, width: int, options: HAMUROptions) -> Declared:
    """An adapter of a layer of `width`, and its moments; `shared_factors` declares one U and V."""
    stack = (1 if options.shared_factors else scenarios,)

    def low_rank(inputs: int, outputs: int) -> LowRank:
        left = declare_dense(inputs, options.rank, stack=stack, bias=None)
        return LowRank(left, declare_dense(options.rank, outputs, stack=stack))

    norm = declare_batch_norm(scenarios, width)
    down, up = low_rank(width, options.adapter_width), low_rank(options.adapter_width, width)
    return Declared(AdapterParams(down, up, norm.params), norm.state)


def adapted_network(
    params: HAMURParams, moments: Sequence[Moments], inputs: Inputs, mode: Mode
) -> tuple[Float[Array, "B W"], tuple[Moments, ...]]:
    """The scenario's layers, the last of them followed by adapters; the adapters' new moments."""
    core = instance_matrix(params.hyper, inputs.flat)
    plain = len(params.layers) - len(params.adapters)
    hidden = own_layers(params.layers[:plain], inputs.flat, inputs.scenario)
    updated = []
    for layer, adapter, running in zip(
        params.layers[plain:], params.adapters, moments, strict=True
    ):
        hidden = own_layers([layer], hidden, inputs.scenario)
        hidden, new = adapt(adapter, running, core, hidden, inputs, mode)
        updated.append(new)
    return hidden, tuple(updated)


def own_layers(
    layers: Sequence[Dense], hidden: Float[Array, "B I"], scenario: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """Each row through its scenario's copy of the layers, each followed by the activation."""
    return jax.nn.relu(own_mlp(layers, hidden, scenario)) if layers else hidden


def instance_matrix(hyper: Sequence[Dense], flat: Float[Array, "B I"]) -> Float[Array, "B R R"]:
    """The matrix that the hyper-network makes for each row, the same one for all adapters."""
    values = dense(hyper[-1], mlp(hyper[:-1], flat))
    rank = round(values.shape[1] ** 0.5)
    return values.reshape(-1, rank, rank)


def adapt(
    params: AdapterParams,
    moments: Moments,
    core: Float[Array, "B R R"],
    hidden: Float[Array, "B W"],
    inputs: Inputs,
    mode: Mode,
) -> tuple[Float[Array, "B W"], Moments]:
    """h + norm(up(σ(down(h)))), normalised over the rows of each scenario."""
    shared_factors = params.down.left.kernel.shape[0] == 1
    owner = jnp.zeros_like(inputs.scenario) if shared_factors else inputs.scenario
    narrow = jax.nn.sigmoid(low_rank_dense(params.down, core, hidden, owner))
    change = low_rank_dense(params.up, core, narrow, owner)
    normed, moments = scenario_batch_norm(
        params.norm, moments, change, inputs.scenario, inputs.mask, mode
    )
    return hidden + normed, moments


def low_rank_dense(
    params: LowRank,
    core: Float[Array, "B R R"],
    hidden: Float[Array, "B I"],
    owner: Int[Array, " B"],
) -> Float[Array, "B O"]:
    """`hidden · U G V + b` from left to right: no row's kernel of [I O] is ever formed."""
    narrow = select(stacked_dense(params.left, hidden), owner)
    turned = jnp.einsum("br,brq->bq", narrow, core)
    return select(stacked_dense(params.right, turned), owner)


def _build(choice: BackboneChoice) -> Backbone:
    return hamur(choice.head(towers(choice.tower_layers)), choice.options)


_ADAPTED = (Need(lambda c: c.hamur.adapters > 0, "--hamur.adapters 1 or more"),)
_NEEDS = {name: _ADAPTED for name in ("adapter_width", "rank", "hyper_layers", "shared_factors")}

_SPACE = {
    "layers": LAYERS,
    "adapter_width": (16, 32, 64),
    "rank": (4, 8, 16),
    "hyper_layers": ((32,), (64,), (128,)),
}

PART = Part(_build, HAMUROptions, needs=_NEEDS, space=_SPACE)
