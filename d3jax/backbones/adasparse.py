"""AdaSparse: one network, of which each scenario uses the neurons that a pruner leaves it.

Yang et al., "AdaSparse: Learning Adaptively Sparse Structures for Multi-Domain Click-Through Rate
Prediction" (CIKM 2022). Assumed where the paper leaves room or this library differs: what a row's
domain is known by is an embedding of its scenario, apart from the fields; a pruner is one dense
layer; the pruned neurons are not rewarded by a sparsity term in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import dense_head
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense
from d3jax.meta import declare_scenarios
from d3jax.parameters import Tree, constant, declare_array
from d3jax.registry import LAYERS, Need, Part
from d3jax.typed import check_types

Pruning = Literal["fusion", "scaling", "binary"]


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
    """The increase of the steepness in each training step."""
    sharpest: float = 5.0
    """The steepness at which it stops growing."""

    def __post_init__(self) -> None:
        check_types(self, "adasparse.")
        widths("adasparse.layers", self.layers, empty=False)
        within("adasparse.scale", self.scale, 0, 1000)
        within("adasparse.threshold", self.threshold, 0, 1000)
        within("adasparse.sharpness", self.sharpness, 0, 1000)
        within("adasparse.growth", self.growth, 0, 1000)
        within("adasparse.sharpest", self.sharpest, 0, 1000)


class AdaSparseParams(NamedTuple):
    """Scenario embeddings; the network; a pruner of its input and of each layer; the head."""

    scenario: Float[Array, "S D"]
    layers: tuple[Dense, ...]
    pruners: tuple[Dense, ...]
    head: Tree


class AdaSparseState(NamedTuple):
    """The present steepness of the pruners' sigmoid, and the head's state."""

    sharpness: Float[Array, ""]
    head: Tree


def adasparse(head: Head, options: AdaSparseOptions | None = None, **settings: Any) -> Backbone:
    """The head reads the last layer's neurons, each weighed by its pruner."""
    options = chosen(AdaSparseOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        dim = sizes.embedding_dim
        params = AdaSparseParams(
            scenario=declare_scenarios(sizes),
            layers=declare_mlp(sizes.flat + dim, options.layers),
            pruners=tuple(
                declare_dense(width + dim, width) for width in (sizes.flat, *options.layers)
            ),
            head=declared.params,
        )
        sharpness = declare_array((), constant(options.sharpness))
        return Declared(params, AdaSparseState(sharpness, declared.state))

    def apply(
        params: AdaSparseParams, state: AdaSparseState, inputs: Inputs, mode: Mode
    ) -> tuple[Output, AdaSparseState]:
        hidden = pruned_network(params, state.sharpness, inputs, options)
        output, head_state = head.apply(params.head, state.head, hidden, inputs, mode)
        sharpness = state.sharpness
        if mode.train:
            sharpness = jnp.minimum(sharpness + options.growth, options.sharpest)
        return output, AdaSparseState(sharpness, head_state)

    return Backbone(declare, apply)


def pruned_network(
    params: AdaSparseParams,
    sharpness: Float[Array, ""],
    inputs: Inputs,
    options: AdaSparseOptions,
) -> Float[Array, "B W"]:
    """Dense layers over the scenario's embedding and the fields; fields and neurons are pruned."""
    known = params.scenario[inputs.scenario]

    def prune(pruner: Dense, hidden: Array) -> Array:
        scores = dense(pruner, jnp.concatenate([hidden, known], axis=1))
        return hidden * neuron_weights(scores, sharpness, options)

    hidden = jnp.concatenate([known, prune(params.pruners[0], inputs.flat)], axis=1)
    for layer, pruner in zip(params.layers, params.pruners[1:], strict=True):
        hidden = prune(pruner, jax.nn.relu(dense(layer, hidden)))
    return hidden


def neuron_weights(
    scores: Float[Array, "B W"], sharpness: Float[Array, ""], options: AdaSparseOptions
) -> Float[Array, "B W"]:
    """Return each neuron's weight: β σ(v), [σ(α v) > ε], or β σ(α v) where that is above ε.

    A step has no slope, so `binary` learns from the sigmoid's (straight through; Bengio et al.,
    2013). A neuron that `fusion` prunes for a row learns nothing from that row.
    """
    if options.form == "scaling":
        return options.scale * jax.nn.sigmoid(scores)
    soft = jax.nn.sigmoid(sharpness * scores)
    if options.form == "binary":
        kept = (soft > options.threshold).astype(soft.dtype)
        return soft + lax.stop_gradient(kept - soft)
    weights = options.scale * soft
    return jnp.where(weights > options.threshold, weights, 0.0)


def _build(choice: BackboneChoice) -> Backbone:
    return adasparse(choice.head(dense_head()), choice.options)


_SCALED = (Need(lambda c: c.adasparse.form != "binary", "--adasparse.form fusion or scaling"),)
_PRUNED = (Need(lambda c: c.adasparse.form != "scaling", "--adasparse.form fusion or binary"),)
_NEEDS = {
    "scale": _SCALED,
    **{name: _PRUNED for name in ("threshold", "sharpness", "growth", "sharpest")},
}

_SPACE = {
    "layers": LAYERS,
    "threshold": (0.1, 0.25, 0.5),
    "sharpness": (0.5, 1.0, 2.0),
}

PART = Part(_build, AdaSparseOptions, needs=_NEEDS, space=_SPACE)
