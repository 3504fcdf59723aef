"""ADI (Jiang et al., CIKM 2022): scenarios normalised on their own, interests adapted by scenario.

The paper's is a retrieval model; here one tower over all fields gives the logit. Its self training
on confident rows is left out, as the D3 paper doesn't describe it for its baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.backbones.star import StarDense, declare_star_dense, star_dense
from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import WHOLE_WIDTH
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, mlp, select, stacked_dense
from d3jax.layers.grouping import own_mlp
from d3jax.layers.normalization import BatchNorm, Moments, declare_batch_norm, scenario_batch_norm
from d3jax.meta import declare_scenarios
from d3jax.needs import OWN_HEAD, keeps_forward
from d3jax.parameters import Tree, declare_array, glorot, ones
from d3jax.registry import Need, Part
from d3jax.typed import check_types

Excitation = Literal["linear", "sigmoid", "2sigmoid"]
NormPlace = Literal["input", "per_layer"]
Mixture = Literal["softmax", "ratio"]
Forward = Literal["own", "star"]
Reads = Literal["adapted", "raw"]


@dataclass(frozen=True)
class ADIOptions:
    """ADI, the adaptive domain interest network."""

    excitation: Excitation = "linear"
    """The function that the interest adaptation's weights pass through."""
    norm: NormPlace = "input"
    """The layers normalised by scenario: the input, or also after each dense layer."""
    layers: tuple[int, ...] = (64, 32)
    """Widths of the shared and the scenario's own network."""
    shared_networks: int = 1
    """Number of shared networks."""
    mixture: Mixture = "softmax"
    """The weights of shared networks; a ratio of affine functions can blow up."""
    forward_width: int = 32
    """Width of the scenario's forward network."""
    forward: Forward = "own"
    """The forward network's weights: the scenario's, or times shared ones as in STAR."""
    head_layers: tuple[int, ...] = (64, 16)
    """Dense layers between the forward network and the logit."""
    d3_reads: Reads = "adapted"
    """The embeddings that D3 selects from: adapted, or raw as they were looked up."""
    keep_forward: bool = False
    """With D3 or another generator, keep the scenario's forward network on top of its layer."""

    def __post_init__(self) -> None:
        check_types(self, "adi.")
        widths("adi.layers", self.layers, empty=False)
        within("adi.shared_networks", self.shared_networks, 1, 4096)
        within("adi.forward_width", self.forward_width, 1, 4096)
        widths("adi.head_layers", self.head_layers)


class ADIParams(NamedTuple):
    """Per-scenario normalisation and interest adaptation, and the head."""

    norm: BatchNorm
    squeeze: Dense
    excite: Dense
    head: Tree


class ADIState(NamedTuple):
    """Each scenario's running moments, and the head's state."""

    norm: Moments
    head: Tree


class InterestParams(NamedTuple):
    """ADI's own networks; `mixture` only with several shared ones, `norms` only per layer."""

    scenario: Float[Array, "S D"]
    shared: tuple[Dense, ...]
    own: tuple[Dense, ...]
    mixture: Dense | None
    own_scale: Float[Array, "S D"]
    shared_scale: Float[Array, "S D"]
    forward: Dense | StarDense
    tail: tuple[Dense, ...]
    norms: tuple[tuple[BatchNorm, BatchNorm], ...]


def adi(head: Head, options: ADIOptions | None = None, **settings: Any) -> Backbone:
    """The head reads the adapted embeddings, side by side and (D3) as fields."""
    options = chosen(ADIOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, sizes.flat)
        norm = declare_batch_norm(sizes.num_scenarios, sizes.flat)
        fields, stack = sizes.num_fields, (sizes.num_scenarios,)
        squeezed = max(4, -(-fields // 2))
        params = ADIParams(
            norm=norm.params,
            squeeze=declare_dense(fields, squeezed, stack=stack),
            excite=declare_dense(squeezed, fields, stack=stack, bias=ones),
            head=declared.params,
        )
        return Declared(params, ADIState(norm.state, declared.state))

    def apply(
        params: ADIParams, state: ADIState, inputs: Inputs, mode: Mode
    ) -> tuple[Output, ADIState]:
        flat, moments = scenario_batch_norm(
            params.norm, state.norm, inputs.flat, inputs.scenario, inputs.mask, mode
        )
        adapted = adapt_interests(params, inputs._replace(x=flat.reshape(inputs.x.shape)), options)
        read = inputs if options.d3_reads == "raw" else adapted
        output, head_state = head.apply(params.head, state.head, adapted.flat, read, mode)
        return output, ADIState(moments, head_state)

    return Backbone(declare, apply)


def adapt_interests(params: ADIParams, inputs: Inputs, options: ADIOptions) -> Inputs:
    """Each field scaled by what its scenario's squeeze-and-excitation makes of all fields."""
    hidden = jax.nn.relu(stacked_dense(params.squeeze, inputs.x.mean(-1)))
    scale = select(stacked_dense(params.excite, hidden), inputs.scenario)
    if options.excitation != "linear":
        scale = jax.nn.sigmoid(scale) * (2.0 if options.excitation == "2sigmoid" else 1.0)
    return inputs._replace(x=scale[..., None] * inputs.x)


def interest_networks(options: ADIOptions) -> Head:
    """Shared and scenario-own networks, their fusion, and the scenario's forward network."""
    per_layer = options.norm == "per_layer"

    def declare(sizes: Sizes, inputs: int) -> Declared:
        scenarios, last = sizes.num_scenarios, options.layers[-1]
        scale = declare_array((scenarios, sizes.embedding_dim), glorot(sizes.embedding_dim, 1))
        several = options.shared_networks > 1
        norms = [
            (
                declare_batch_norm(scenarios, options.shared_networks * width),
                declare_batch_norm(scenarios, width),
            )
            for width in (options.layers if per_layer else ())
        ]
        params = InterestParams(
            scenario=declare_scenarios(sizes),
            shared=declare_mlp(inputs, options.layers, stack=(options.shared_networks,)),
            own=declare_mlp(inputs, options.layers, stack=(scenarios,)),
            mixture=(
                declare_dense(sizes.embedding_dim, options.shared_networks) if several else None
            ),
            own_scale=scale,
            shared_scale=scale,
            forward=_declare_forward(options, scenarios, 3 * last),
            tail=declare_mlp(options.forward_width, (*options.head_layers, 1)),
            norms=tuple((shared.params, own.params) for shared, own in norms),
        )
        return Declared(params, tuple((shared.state, own.state) for shared, own in norms))

    def apply(
        params: InterestParams, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        embedding = params.scenario[inputs.scenario]
        shared, own, state = _networks(params, state, hidden, inputs, mode)
        shared = jnp.einsum("bk,bkw->bw", _mixture(params, embedding, options), shared)
        fused = _fuse(params, embedding, own, shared, inputs)
        return Output(_forward(params.forward, params.tail, fused, inputs)), state

    return Head(declare, apply)


class ForwardParams(NamedTuple):
    """The scenario's forward network, and the dense layers to the logit."""

    forward: Dense | StarDense
    tail: tuple[Dense, ...]


def forward_head(options: ADIOptions) -> Head:
    """ADI's forward network alone, as what reads a generated layer in its place."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        forward = _declare_forward(options, sizes.num_scenarios, inputs)
        tail = declare_mlp(options.forward_width, (*options.head_layers, 1))
        return Declared(ForwardParams(forward, tail))

    def apply(
        params: ForwardParams, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        return Output(_forward(params.forward, params.tail, hidden, inputs)), state

    return Head(declare, apply)


def _forward(
    forward: Dense | StarDense,
    tail: tuple[Dense, ...],
    hidden: Float[Array, "B I"],
    inputs: Inputs,
) -> Float[Array, " B"]:
    """The row's scenario's forward network, then the dense layers to the logit."""
    if isinstance(forward, StarDense):
        outputs = star_dense(forward, hidden, inputs.scenario)
    else:
        outputs = own_mlp([forward], hidden, inputs.scenario)
    return dense(tail[-1], mlp(tail[:-1], jax.nn.relu(outputs))).squeeze(-1)


def _declare_forward(options: ADIOptions, scenarios: int, inputs: int) -> Dense | StarDense:
    if options.forward == "star":
        return declare_star_dense(scenarios, inputs, options.forward_width)
    return declare_dense(inputs, options.forward_width, stack=(scenarios,))


def _networks(
    params: InterestParams, state: Tree, hidden: Float[Array, "B I"], inputs: Inputs, mode: Mode
) -> tuple[Float[Array, "B K W"], Float[Array, "B W"], Tree]:
    """The shared networks' outputs, those of the row's own network, and the new moments."""
    shared = own = hidden
    updated = []
    for index, (common, specific) in enumerate(zip(params.shared, params.own, strict=True)):
        shared = stacked_dense(common, shared)
        own = own_mlp([specific], own, inputs.scenario)
        if params.norms:
            flat = shared.reshape(shared.shape[0], -1)
            flat, first = _normalize(params.norms[index][0], state[index][0], flat, inputs, mode)
            own, second = _normalize(params.norms[index][1], state[index][1], own, inputs, mode)
            shared = flat.reshape(shared.shape)
            updated.append((first, second))
        shared, own = jax.nn.relu(shared), jax.nn.relu(own)
    return shared, own, tuple(updated)


def _normalize(
    norm: BatchNorm, moments: Moments, hidden: Float[Array, "B F"], inputs: Inputs, mode: Mode
) -> tuple[Float[Array, "B F"], Moments]:
    return scenario_batch_norm(norm, moments, hidden, inputs.scenario, inputs.mask, mode)


def _mixture(
    params: InterestParams, embedding: Float[Array, "B D"], options: ADIOptions
) -> Float[Array, "B K"]:
    """Return each shared network's share in a row's scenario."""
    if params.mixture is None:
        return jnp.ones((embedding.shape[0], 1))
    scores = dense(params.mixture, embedding)
    if options.mixture == "softmax":
        return jax.nn.softmax(scores)
    return scores / scores.sum(-1, keepdims=True)


def _fuse(
    params: InterestParams,
    embedding: Float[Array, "B D"],
    own: Float[Array, "B W"],
    shared: Float[Array, "B W"],
    inputs: Inputs,
) -> Float[Array, "B C"]:
    """Own and shared interests, each scaled by its scenario, and their product between them."""

    def scaled(vectors: Float[Array, "S D"], values: Float[Array, "B W"]) -> Array:
        score = (embedding * vectors[inputs.scenario]).sum(-1, keepdims=True)
        return jax.nn.sigmoid(score) * values

    own, shared = scaled(params.own_scale, own), scaled(params.shared_scale, shared)
    return jnp.concatenate([own, own * shared, shared], axis=-1)


def _build(choice: BackboneChoice) -> Backbone:
    own = interest_networks(choice.options)
    tail = forward_head(choice.options) if choice.options.keep_forward else None
    return adi(choice.head(own, WHOLE_WIDTH, tail), choice.options)


_READS_FIELDS = Need(lambda c: c.model.head in ("d3", "pepnet_wg"), "--head d3 or pepnet_wg")
_FORWARD = Need(
    lambda c: c.model.head == "own" or keeps_forward(c),
    "--head own, or --adi.keep-forward under --head m2m_wg, or d3 with --form text",
)
_KEEPABLE = Need(
    lambda c: c.model.head == "m2m_wg" or (c.model.head == "d3" and c.d3.form == "text"),
    "--head m2m_wg, or d3 with --form text",
)
_MIXED = Need(lambda c: c.adi.shared_networks > 1, "--adi.shared-networks 2 or more")
_NEEDS = {
    **{name: (OWN_HEAD,) for name in ("norm", "layers", "shared_networks")},
    "mixture": (OWN_HEAD, _MIXED),
    **{name: (_FORWARD,) for name in ("forward_width", "forward", "head_layers")},
    "d3_reads": (_READS_FIELDS,),
    "keep_forward": (_KEEPABLE,),
}

_SPACE = {
    "layers": ((32,), (64, 32), (128, 64)),
    "shared_networks": (1, 2, 4),
    "forward_width": (16, 32, 64),
    "head_layers": ((32,), (64, 16), (128, 64)),
}

PART = Part(_build, ADIOptions, needs=_NEEDS, space=_SPACE)
