"""M2M's meta unit: layers generated from what is known of the row's scenario.

Zhang et al., "Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for
Advertiser Modeling" (WSDM 2022). D3 is compared with this generator as M2M-WG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from d3jax.base import Generated, Generator, Inputs, Mode, Sizes
from d3jax.generation import GeneratorParams, declare_generator, generate_weights
from d3jax.layers.dense import Dense, declare_dense, dense, select, stacked_dense
from d3jax.parameters import declare_array, glorot, normal


class MetaParams(NamedTuple):
    """The scenarios' embeddings, the knowledge layer over them, and one generator a layer."""

    scenario: Float[Array, "S D"]
    knowledge: Dense
    layers: tuple[GeneratorParams, ...]


def meta_generator(knowledge_width: int) -> Generator:
    """Layers generated from `knowledge_width` units of scenario knowledge.

    The knowledge depends on the scenario alone, so S sets of weights are generated and each row
    uses its own: the same as generating for every row, and far cheaper.
    """

    def declare(sizes: Sizes, sites: Sequence[tuple[int, int]]) -> MetaParams:
        return MetaParams(
            scenario=declare_scenarios(sizes),
            knowledge=declare_dense(sizes.embedding_dim, knowledge_width),
            layers=tuple(
                declare_generator(knowledge_width, inputs, outputs, glorot(inputs, outputs))
                for inputs, outputs in sites
            ),
        )

    def generate(params: MetaParams, inputs: Inputs, mode: Mode) -> Generated:
        knowledge = jax.nn.leaky_relu(dense(params.knowledge, params.scenario))

        def layer(index: int, values: Array) -> Array:
            weights = Dense(*generate_weights(params.layers[index], knowledge))
            return select(stacked_dense(weights, values), inputs.scenario)

        return Generated(layer)

    return Generator(declare, generate)


def declare_scenarios(sizes: Sizes) -> Any:
    """A table [S D] of scenario embeddings, apart from the scenario's own field, if any."""
    return declare_array((sizes.num_scenarios, sizes.embedding_dim), normal(0.05))
