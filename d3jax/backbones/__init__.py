"""The registry: every backbone by the name that the configuration uses."""

from __future__ import annotations

from collections.abc import Callable

from d3jax.backbones.plain import plain
from d3jax.backbones.shared_bottom import shared_bottom
from d3jax.base import Backbone, Head
from d3jax.config import ModelConfig

BACKBONES: dict[str, Callable[[ModelConfig, Head], Backbone]] = {
    "plain": lambda config, head: plain(head),
    "shared_bottom": lambda config, head: shared_bottom(head, config.bottom_layers),
}
