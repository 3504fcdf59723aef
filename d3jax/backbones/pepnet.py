"""PEPNet (Chang et al., KDD 2023) as a backbone: gated embeddings and layers under any head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.layers.prior_gates import PersonalizedParams, declare_personalized, personalized
from d3jax.options import PEPNetOptions
from d3jax.parameters import Tree


class PEPNetParams(NamedTuple):
    """The gated layers and the head."""

    body: PersonalizedParams
    head: Tree


def pepnet_backbone(head: Head, options: PEPNetOptions, prior_fields: Sequence[int]) -> Backbone:
    """The head reads the last gated layer.

    The paper's towers are one per task; here, with one task, they are the head's.
    """

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        body = declare_personalized(
            sizes, sizes.flat, options.layers, prior_fields, options.epnet_only
        )
        return Declared(PEPNetParams(body, declared.params), declared.state)

    def apply(params: PEPNetParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        hidden = personalized(params.body, inputs.flat, inputs, prior_fields)
        return head.apply(params.head, state, hidden, inputs, mode)

    return Backbone(declare, apply)
