"""PEPNet (Chang et al., KDD 2023) as a backbone: gated embeddings and layers under any head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import towers
from d3jax.layers.prior_gates import (
    PersonalizedParams,
    declare_personalized,
    personalized,
    prior_fields,
)
from d3jax.parameters import Tree
from d3jax.registry import LAYERS, Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class PEPNetOptions:
    """PEPNet."""

    layers: tuple[int, ...] = (128, 64)
    """Widths of the layers that user and item gate."""
    epnet_only: bool = False
    """Gate the embeddings alone, by the scenario; user and item then gate nothing."""

    def __post_init__(self) -> None:
        check_types(self, "pepnet.")
        widths("pepnet.layers", self.layers, empty=False)


class PEPNetParams(NamedTuple):
    """The gated layers and the head."""

    body: PersonalizedParams
    head: Tree


def pepnet_backbone(
    head: Head,
    prior: Sequence[int],
    options: PEPNetOptions | None = None,
    **settings: Any,
) -> Backbone:
    """The head reads the last gated layer.

    The paper's towers are one per task; here, with one task, they are the head's.
    """
    options = chosen(PEPNetOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        body = declare_personalized(sizes, sizes.flat, options.layers, prior, options.epnet_only)
        return Declared(PEPNetParams(body, declared.params), declared.state)

    def apply(params: PEPNetParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        hidden = personalized(params.body, inputs.flat, inputs, prior)
        return head.apply(params.head, state, hidden, inputs, mode)

    return Backbone(declare, apply)


def _build(choice: BackboneChoice) -> Backbone:
    head = choice.head(towers(choice.tower_layers))
    return pepnet_backbone(head, prior_fields(choice.schema), choice.options)


_SPACE = {"layers": LAYERS, "epnet_only": (False, True)}

PART = Part(_build, PEPNetOptions, space=_SPACE)
