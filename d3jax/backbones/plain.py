"""No backbone: the head reads the field embeddings themselves."""

from __future__ import annotations

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.choice import BackboneChoice
from d3jax.heads import WHOLE_WIDTH, dense_head
from d3jax.parameters import Tree
from d3jax.registry import Part


def plain(head: Head) -> Backbone:
    """With the D3 head this is D3 as a model of its own (Eq. 2-14): I is N·D."""

    def declare(sizes: Sizes) -> Declared:
        return head.declare(sizes, sizes.flat)

    def apply(params: Tree, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        return head.apply(params, state, inputs.flat, inputs, mode)

    return Backbone(declare, apply)


def _build(choice: BackboneChoice) -> Backbone:
    return plain(choice.head(dense_head(choice.bottom_layers), WHOLE_WIDTH))


PART = Part(_build)
