"""Flax modules around the same functions, to put D3 into a Flax model of one's own.

A module holds its parameters as `nnx.Param`s under the names that a checkpoint gives them.
`arrays()` is the plain pytree that the functions take, `load` puts one back, so weights go from a
d3jax run into a Flax model and back without conversion.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.heads import d3
from d3jax.layer import DEFAULTS, D3Info, check_inputs, d3_layer, d3_settings
from d3jax.parameters import Tree, initialize, named_leaves
from d3jax.shapes import check_arrays, check_size


class TreeModule(nnx.Module):
    """A module whose parameters are the arrays of a pytree."""

    def __init__(self, arrays: Tree) -> None:
        named = named_leaves(arrays)
        self.weights = nnx.Dict({name: nnx.Param(array) for name, array in named.items()})
        self._structure = jax.tree.structure(arrays)
        self._order = tuple(named)

    def arrays(self) -> Tree:
        """Return the parameters as the plain pytree that d3jax' functions take."""
        leaves = [self.weights[name][...] for name in self._order]
        return jax.tree.unflatten(self._structure, leaves)

    def load(self, arrays: Tree) -> None:
        """Take over the arrays of a tree of the same structure.

        Raises `ShapeError` naming the first array that is missing or of another shape.
        """
        check_arrays(self.arrays(), arrays)
        given = named_leaves(arrays)
        for name, weight in self.weights.items():
            weight[...] = given[name]


class D3Layer(TreeModule):
    """A dense layer whose weights each row generates from its own fields: `d3_layer` for Flax.

    `layer(hidden, x)` maps `hidden` [B inputs] to [B outputs], before any activation, by weights
    that the field embeddings `x` [B fields dim] decide. The arguments are those of `d3_layer`.

    >>> import jax
    >>> from flax import nnx
    >>> layer = D3Layer(fields=3, dim=4, inputs=6, outputs=2, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((5, 6)), jax.numpy.ones((5, 3, 4))).shape
    (5, 2)
    """

    def __init__(
        self,
        *,
        fields: int,
        dim: int,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        rank: int = DEFAULTS.rank,
        field_hidden: int = DEFAULTS.field_hidden,
        **settings: Any,
    ) -> None:
        self._functions = d3_layer(
            fields=fields,
            dim=dim,
            inputs=inputs,
            outputs=outputs,
            rank=rank,
            field_hidden=field_hidden,
            **settings,
        )
        super().__init__(self._functions.init(rngs.params()))

    def __call__(self, hidden: ArrayLike, x: ArrayLike) -> Array:
        """Return the layer's outputs [B outputs]."""
        return self.with_info(hidden, x)[0]

    def with_info(self, hidden: ArrayLike, x: ArrayLike) -> tuple[Array, D3Info]:
        """Return the layer's outputs, and the attention's logits and gate of each row."""
        return self._functions.with_info(self.arrays(), hidden, x)


class D3Head(TreeModule):
    """The whole D3 head: a generated layer, its activation and the dense layers to the logit.

    `settings` are those of the D3 head, such as `width`, the generated layer's outputs.

    >>> import jax
    >>> from flax import nnx
    >>> head = D3Head(fields=3, dim=4, inputs=6, rngs=nnx.Rngs(0))
    >>> head(jax.numpy.ones((5, 6)), jax.numpy.ones((5, 3, 4))).logits.shape
    (5,)
    """

    def __init__(
        self,
        *,
        fields: int,
        dim: int,
        inputs: int,
        rngs: nnx.Rngs,
        rank: int = DEFAULTS.rank,
        field_hidden: int = DEFAULTS.field_hidden,
        **settings: Any,
    ) -> None:
        self._sizes = {"fields": fields, "dim": dim, "inputs": inputs}
        for name, size in self._sizes.items():
            check_size(name, size)
        self._head = d3(d3_settings(rank, field_hidden, settings, unread=frozenset({"form"})))
        declared = self._head.declare(Sizes(fields, dim, num_scenarios=1), inputs)
        super().__init__(initialize(declared.params, rngs.params()))

    def __call__(self, hidden: ArrayLike, x: ArrayLike, mode: Mode = EVALUATION) -> Output:
        """Return logits [B], the attention's logits [B N N] and the gate [B 2]."""
        hidden, x = jnp.asarray(hidden), jnp.asarray(x)
        check_inputs(hidden, x, **self._sizes)
        return self._head.apply(self.arrays(), (), hidden, _inputs(x), mode)[0]


def _inputs(x: Array) -> Inputs:
    """Return field embeddings as a head reads them; D3 asks for neither scenario nor mask."""
    rows = x.shape[0]
    return Inputs(x, jnp.zeros(rows, int), jnp.ones(rows, bool))
