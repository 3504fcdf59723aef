"""Conditions on a configuration that settings of more than one part have."""

from __future__ import annotations

from typing import Any

from d3jax.registry import Need

GATED = ("star", "sar_net")
"""Backbones without a tower or layer to generate: D3 adds its gate and loss weight to them."""


def generates_inside(config: Any) -> bool:
    """Return whether D3 makes M2M's own layers, instead of one on top of it."""
    return config.model.backbone == "m2m" and config.m2m.d3_place == "site"


def keeps_forward(config: Any) -> bool:
    """Return whether ADI's forward network reads a layer that D3 or M2M-WG makes."""
    if config.model.backbone != "adi" or not config.adi.keep_forward:
        return False
    return config.model.head == "m2m_wg" or (config.model.head == "d3" and config.d3.form == "text")


OWN_HEAD = Need(lambda c: c.model.head == "own", "--head own")
D3_HEAD = Need(lambda c: c.model.head == "d3", "--head d3")
NOT_ON_TOP = Need(
    lambda c: c.model.head == "own" or generates_inside(c), "--head own or --m2m.d3-place site"
)
