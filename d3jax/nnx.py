"""Flax modules around the same functions, to put D3 into a Flax model of one's own.

A module holds the declared parameters as `nnx.Param`s under the names that a checkpoint gives
them. `arrays()` is the plain pytree that the functions take, `load` puts one back, so weights go
from a d3jax run into a Flax model and back without conversion.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from d3jax.base import EVALUATION, Generated, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, GeneratedHeadParams, d3, d3_generator
from d3jax.parameters import Tree, initialize, named_leaves


class Declared(nnx.Module):
    """A module whose parameters are those of a declaration."""

    def __init__(self, declaration: Tree, rngs: nnx.Rngs) -> None:
        arrays = initialize(declaration, rngs.params())
        self.weights = nnx.Dict(
            {name: nnx.Param(array) for name, array in named_leaves(arrays).items()}
        )
        self._structure = jax.tree.structure(declaration)
        self._order = tuple(named_leaves(declaration))

    def arrays(self) -> Tree:
        """The parameters as the plain pytree that d3jax' functions take."""
        leaves = [self.weights[name][...] for name in self._order]
        return jax.tree.unflatten(self._structure, leaves)

    def load(self, arrays: Tree) -> None:
        """Takes over the arrays of a tree of the same structure.

        Raises `ValueError` naming the first array that is missing or of another shape.
        """
        given = named_leaves(arrays)
        for name, weight in self.weights.items():
            if name not in given or given[name].shape != weight.shape:
                found = given[name].shape if name in given else "missing"
                raise ValueError(f"parameter {name!r} is {found}; the module needs {weight.shape}")
        for name, weight in self.weights.items():
            weight[...] = given[name]


class D3Layer(Declared):
    """A dense layer whose weights each row generates from its own fields (Eq. 6-13).

    `layer(hidden, x)` maps `hidden` [B I] to [B O] by weights that the field embeddings `x`
    [B N D] decide; `explain(hidden, x)` gives attention and gate as well.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_fields: int,
        embedding_dim: int,
        *,
        rngs: nnx.Rngs,
        config: D3Options | None = None,
    ) -> None:
        self._generator = d3_generator(config or D3Options())
        sizes = Sizes(num_fields, embedding_dim, num_scenarios=1)
        super().__init__(self._generator.declare(sizes, [(inputs, outputs)]), rngs)

    def __call__(self, hidden: Float[Array, "B I"], x: Float[Array, "B N D"]) -> Array:
        """The layer's output [B O], before any activation."""
        return self.generate(x).layer(0, hidden)

    def generate(self, x: Float[Array, "B N D"]) -> Generated:
        """What the rows generate: the layer, the attention's logits and the gate."""
        return self._generator.generate(self.arrays(), _inputs(x), EVALUATION)


class D3Head(Declared):
    """The whole D3 head: a generated layer, its activation and the dense layers to the logit."""

    def __init__(
        self,
        inputs: int,
        num_fields: int,
        embedding_dim: int,
        *,
        rngs: nnx.Rngs,
        config: D3Options | None = None,
    ) -> None:
        self._head = d3(config or D3Options())
        declared = self._head.declare(Sizes(num_fields, embedding_dim, 1), inputs)
        super().__init__(declared.params, rngs)

    def __call__(
        self, hidden: Float[Array, "B I"], x: Float[Array, "B N D"], mode: Mode = EVALUATION
    ) -> Output:
        """Logits [B], the attention's logits [B N N] and the gate [B 2]."""
        params: GeneratedHeadParams = self.arrays()
        return self._head.apply(params, (), hidden, _inputs(x), mode)[0]


def _inputs(x: Float[Array, "B N D"]) -> Inputs:
    """Field embeddings as a head reads them; D3 asks for neither scenario nor mask."""
    rows = x.shape[0]
    return Inputs(x, jax.numpy.zeros(rows, int), jax.numpy.ones(rows, bool))
