"""GradNorm: scenarios that learn slowly get the larger gradients."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.learned import Learned, declare_learned, descend, scenario_means
from d3jax.adapters.scenarios import weigh_scenarios
from d3jax.base import Feedback, LossAdapter, Mode
from d3jax.checks import within
from d3jax.choice import AdapterChoice
from d3jax.errors import ConfigError
from d3jax.parameters import Tree, named_leaves, ones
from d3jax.registry import Part
from d3jax.typed import check_types

GRADNORM_RATE, GRADNORM_LEAST = 0.025, 1e-3
"""Step size and least weight of GradNorm."""


@dataclass(frozen=True)
class GradNormOptions:
    """GradNorm."""

    asymmetry: float = 1.5
    """Exponent of the target; the larger, the more it favours scenarios that learn slowly."""
    watched: str = ""
    """Kernel whose gradients are compared, such as bottom.1.kernel; empty: the last shared."""

    def __post_init__(self) -> None:
        check_types(self, "gradnorm.")
        within("gradnorm.asymmetry", self.asymmetry, 0, 100)


def gradnorm(
    options: GradNormOptions, aggregation: str, num_scenarios: int, watched: str
) -> LossAdapter:
    """GradNorm (Chen et al., ICML 2018): scenarios that learn slowly get the larger gradients.

    `watched` names the shared parameter whose gradients are compared. The weights sum to S.
    """

    def update(state: Learned, feedback: Feedback, step: Array, mode: Mode) -> Learned:
        norms = feedback.gradient_norms
        assert norms is not None, "the step gives an adapter the norms of what it watches"
        losses, rows = scenario_means(feedback.losses, feedback.batch, num_scenarios, mode)
        present = rows > 0
        gradient = gradnorm_gradient(state.value, norms, losses, present, options.asymmetry)
        moved = descend(state, gradient, present, GRADNORM_RATE)
        return moved._replace(value=rescale(moved.value, present))

    row_weights = weigh_scenarios(aggregation, lambda state: state.value)
    declared = declare_learned(num_scenarios, ones)
    return LossAdapter(declared, binary_cross_entropy, row_weights, update, watched)


def gradnorm_gradient(
    weights: Float[Array, " S"],
    norms: Float[Array, " S"],
    losses: Float[Array, " S"],
    present: Bool[Array, " S"],
    asymmetry: float,
) -> Float[Array, " S"]:
    """The derivative of Σ |G - mean(G) ρ^a| by the weights, the target held fixed.

    G = w ‖∇L‖ is linear in w. ρ is a scenario's loss over the mean loss: all are measured against
    the same first loss, the ln 2 of an untrained network, which cancels.
    """

    def mean(values: Array) -> Array:
        return jnp.where(present, values, 0.0).sum() / scenarios

    scenarios = jnp.maximum(jnp.where(present, 1.0, 0.0).sum(), 1.0)
    weighed = weights * norms
    rate = losses / jnp.maximum(mean(losses), jnp.finfo(losses.dtype).tiny)
    return jnp.sign(weighed - mean(weighed) * rate**asymmetry) * norms


def rescale(weights: Float[Array, " S"], present: Bool[Array, " S"]) -> Float[Array, " S"]:
    """Weights that sum to S again; those of absent scenarios stay as they are."""
    floored = jnp.maximum(weights, GRADNORM_LEAST)
    left = weights.shape[0] - jnp.where(present, 0.0, weights).sum()
    total = jnp.maximum(jnp.where(present, floored, 0.0).sum(), GRADNORM_LEAST)
    return jnp.where(present, floored * left / total, weights)


def find_watched(declaration: Tree, name: str) -> str:
    """The parameter of the network that GradNorm watches: `name`, or the default when empty.

    Raises `ConfigError` when the network has no parameter of that name.
    """
    if not name:
        return default_watched(declaration)
    if name not in (names := named_leaves(declaration)):
        raise ConfigError(
            f"gradnorm.watched is {name!r}, which is no parameter of the network; "
            f"use --gradnorm.watched with one of {', '.join(names)}"
        )
    return name


def default_watched(declaration: Tree) -> str:
    """The last kernel that all scenarios share: D3's, or else that of the bottom or the experts.

    Raises `ConfigError` when the network has none of them.
    """
    names = list(named_leaves(declaration))
    fused = [name for name in names if f".{name}".endswith((".shared.kernel", ".shared"))]
    common = [
        name for name in names if name.endswith("kernel") and name.startswith(("bottom", "experts"))
    ]
    if found := fused or common:
        return found[-1]
    raise ConfigError(
        "this network has no shared kernel that gradnorm could watch by default; name one of its "
        f"parameters with --gradnorm.watched: {', '.join(names)}"
    )


def _build(choice: AdapterChoice) -> LossAdapter:
    options: GradNormOptions = choice.options
    watched = find_watched(choice.network, options.watched)
    return gradnorm(options, choice.aggregation, choice.schema.num_scenarios, watched)


_SPACE = {"asymmetry": (0.5, 1.0, 1.5, 3.0)}

PART = Part(_build, GradNormOptions, space=_SPACE)
