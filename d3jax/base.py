"""The contracts: what a head, a backbone, a model and a loss adapter are.

Each is a NamedTuple of pure functions over plain pytrees. `declare` says which parameters and
which state (running statistics; `()` for none) a part owns, `apply` computes. State goes in and
comes out; nothing is kept anywhere else.

The shape alphabet, the same in every file: B rows, N fields, K id slots, D embedding width,
H hidden width per field, M = N·H, I and O input and output width of a generated layer,
S scenarios, V rows of the embedding table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from d3jax.batch import Batch, Schema
from d3jax.embedding import EmbeddingParams, lookup, table_rows
from d3jax.parameters import Tree


class Sizes(NamedTuple):
    """The sizes of the data that a part needs to declare its parameters."""

    num_fields: int
    embedding_dim: int
    num_scenarios: int

    @property
    def flat(self) -> int:
        """N·D, the width of all field embeddings side by side."""
        return self.num_fields * self.embedding_dim


class Mode(NamedTuple):
    """The circumstances of a forward pass, fixed when the step is compiled.

    `axis_name` is the mesh axis that shares the batch (None outside `shard_map`): statistics over
    "the batch" are taken over it. `key` feeds whatever is random in training.
    """

    train: bool = False
    axis_name: Hashable | None = None
    key: PRNGKeyArray | None = None

    def total(self, value: Array) -> Array:
        """The sum of per-device values over the whole batch."""
        return value if self.axis_name is None else lax.psum(value, self.axis_name)


EVALUATION = Mode()
"""The mode of anything but training."""


class Inputs(NamedTuple):
    """The arrays that the embedding hands to a backbone."""

    x: Float[Array, "B N D"]
    scenario: Int[Array, " B"]
    mask: Bool[Array, " B"]

    @property
    def flat(self) -> Float[Array, "B I"]:
        """All field embeddings of a row side by side, field by field."""
        return self.x.reshape(self.x.shape[0], -1)


class Output(NamedTuple):
    """A model's answer for each row: the logit before the sigmoid and, where it has them,
    the attention's logits (rows: the field that asks) and the gate (specific first)."""

    logits: Float[Array, " B"]
    attention: Float[Array, "B N N"] | None = None
    gate: Float[Array, "B 2"] | None = None


class Declared(NamedTuple):
    """The parameters and the state that a part owns, as trees of `Parameter`."""

    params: Tree
    state: Tree = ()


class Head(NamedTuple):
    """Turns a representation [B I] into logits: scenario towers, D3, or another generator.

    `declare(sizes, width)` with I = width; `apply(params, state, hidden, inputs, mode)` returns
    the output and the new state.
    """

    declare: Callable[[Sizes, int], Declared]
    apply: Callable[[Tree, Tree, Array, Inputs, Mode], tuple[Output, Tree]]


class Generated(NamedTuple):
    """A generator's answer for a batch: `layer(index, hidden)` applies the layer it generated
    for that site; attention and gate are those of `Output`."""

    layer: Callable[[int, Array], Array]
    attention: Float[Array, "B N N"] | None = None
    gate: Float[Array, "B 2"] | None = None


class Generator(NamedTuple):
    """Makes layers whose weights differ by row: D3's, or M2M's meta unit.

    `declare(sizes, sites)` takes the (inputs, outputs) of every layer it will be asked for;
    `generate(params, inputs, mode)` does once what all of them share.
    """

    declare: Callable[[Sizes, Sequence[tuple[int, int]]], Tree]
    generate: Callable[[Tree, Inputs, Mode], Generated]


class Backbone(NamedTuple):
    """Turns field embeddings into logits with the head it was built with."""

    declare: Callable[[Sizes], Declared]
    apply: Callable[[Tree, Tree, Inputs, Mode], tuple[Output, Tree]]


class ModelParams(NamedTuple):
    """The table, and the parameters of everything after it."""

    embedding: EmbeddingParams
    network: Tree


class Model(NamedTuple):
    """Embedding, backbone and head as one.

    `declared.params` is a `ModelParams`. `forward(network, state, rows, batch, mode)` starts from
    the table's rows of the batch, [B K D], so that training can differentiate with respect to the
    rows it touched instead of the whole table; `apply` looks them up itself.
    """

    schema: Schema
    declared: Declared
    forward: Callable[[Tree, Tree, Float[Array, "B K D"], Batch, Mode], tuple[Output, Tree]]

    def apply(
        self, params: ModelParams, state: Tree, batch: Batch, mode: Mode = EVALUATION
    ) -> tuple[Output, Tree]:
        """The whole forward pass: ids in, `Output` and new state out."""
        batch = jax.tree.map(jnp.asarray, batch)
        rows = lookup(params.embedding, table_rows(self.schema, batch.ids))
        return self.forward(params.network, state, rows, batch, mode)


class Feedback(NamedTuple):
    """A step's report to the loss adapter: the model's output, the batch, each row's loss and,
    for an adapter that asked, the gradient norm [S] of each scenario's mean loss."""

    output: Output
    batch: Batch
    losses: Float[Array, " B"]
    gradient_norms: Float[Array, " S"] | None = None


class LossAdapter(NamedTuple):
    """Decides how much each row counts, from what training has seen so far.

    `state` declares what it remembers. `row_losses(logits, label)` is what a row costs before
    it is weighed; `row_weights(state, output, batch, step, mode)` gives the weights [B], never
    differentiated; `update(state, feedback, step, mode)` is what it remembers next, the same on
    every device. `watched` names the parameter, as a checkpoint does, whose gradient norms by
    scenario it needs; None for none. `planned(steps)` is the adapter for a run of at most `steps`
    steps, where it depends on their number.
    """

    state: Tree
    row_losses: Callable[[Array, Array], Float[Array, " B"]]
    row_weights: Callable[[Tree, Output, Batch, Array, Mode], Float[Array, " B"]]
    update: Callable[[Tree, Feedback, Array, Mode], Tree]
    watched: str | None = None
    planned: Callable[[int], Any] | None = None


Activation = Callable[[Array], Array]
Config = Any
