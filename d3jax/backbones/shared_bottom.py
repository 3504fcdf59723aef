"""Shared-Bottom (Caruana, 1997): one network for all scenarios, then a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.choice import BackboneChoice
from d3jax.heads import towers
from d3jax.layers.dense import Dense, declare_mlp, mlp
from d3jax.parameters import Tree
from d3jax.registry import Part


class SharedBottomParams(NamedTuple):
    """The bottom's layers and the head's parameters."""

    bottom: tuple[Dense, ...]
    head: Tree


def shared_bottom(head: Head, layers: Sequence[int] = (128, 64)) -> Backbone:
    """The head reads the bottom's output: I is the last of `layers`."""

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, layers[-1])
        bottom = declare_mlp(sizes.flat, layers)
        return Declared(SharedBottomParams(bottom, declared.params), declared.state)

    def apply(
        params: SharedBottomParams, state: Tree, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        hidden = mlp(params.bottom, inputs.flat)
        return head.apply(params.head, state, hidden, inputs, mode)

    return Backbone(declare, apply)


def _build(choice: BackboneChoice) -> Backbone:
    return shared_bottom(choice.head(towers(choice.tower_layers)), choice.bottom_layers)


PART = Part(_build)
