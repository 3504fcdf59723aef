"""The settings that a configuration's parts read, and the conditions for a setting to be read.

A part ignores the settings of other parts, so that one configuration can serve many models. What
somebody sets himself should not be ignored in silence: `idle` finds it. A setting without a rule
here is read by every model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.needs import GATED, OWN_HEAD, generates_inside, keeps_forward
from d3jax.registry import Need, needs_of, owner_of

_WITHOUT_TOWERS = ("plain", "m2m", "adi", "star", "sar_net", "adasparse", "adaptdhm")
_WITHOUT_BOTTOM = (*_WITHOUT_TOWERS, "mmoe", "ple", "pepnet", "hamur", "m3oe")
"""A backbone of another package may take either."""

_NORMAL = Need(lambda c: c.model.embedding_init == "normal", "--embedding-init normal")
_BOTTOM = Need(
    lambda c: (
        c.model.backbone not in _WITHOUT_BOTTOM
        or (c.model.backbone == "plain" and c.model.head == "own")
    ),
    "--backbone shared_bottom, or plain with --head own",
)
_TOWERS = Need(
    lambda c: c.model.backbone not in _WITHOUT_TOWERS,
    "--backbone shared_bottom or mmoe or ple or pepnet or hamur or m3oe",
)
_GENERATED = Need(
    lambda c: c.model.backbone not in GATED, f"a --backbone other than {' and '.join(GATED)}"
)
_TEXT = Need(lambda c: c.d3.form == "text", "--form text")
_PAPER = Need(lambda c: c.d3.form != "adaptive", "--form text or official")
_ON_TOP = Need(lambda c: not generates_inside(c), "--m2m.d3-place head")
_SHARED = Need(lambda c: c.d3.parts != "d1", "--parts d2 or d3")
_TAIL = Need(lambda c: not keeps_forward(c), "--adi.no-keep-forward")

_BALANCE = Need(lambda c: c.has_balance, "--head d3 with --parts d3")
_STARTED = Need(lambda c: c.balance.start_ratio < 1, "--start-ratio below 1")
_COMPLEX = Need(lambda c: c.balance.complexity_scale > 0, "--complexity-scale above 0")

_OWN = Need(
    lambda c: c.model.wide == "residual" or (c.model.head == "d3" and c.d3.form == "adaptive"),
    "--wide residual or --form adaptive",
)
_BLIND = ("plain", "shared_bottom", "m2m", "adaptdhm")
"""Backbones that take all rows alike, but for the towers or the layers of some's own head."""
_DIVIDED = Need(
    lambda c: (
        c.model.wide != "none"
        or not (c.model.backbone in _BLIND or (c.model.backbone == "mmoe" and c.mmoe.one_gate))
        or c.model.head not in ("own", "d3")
        or (c.model.head == "own" and c.model.backbone in ("shared_bottom", "mmoe", "m2m"))
        or (c.model.head == "d3" and c.d3.form == "adaptive")
    ),
    "--wide residual or crosses, or a model that divides rows",
)
_COOLING = Need(lambda c: c.optimizer.schedule == "wsd", "--schedule wsd")

_HEAD = (_GENERATED,)
_TEXT_HEAD = (*_HEAD, _TEXT)
_WEIGHED = (_STARTED,)
_ATTENTION = (*_WEIGHED, _GENERATED)
_NORMALIZED = (*_ATTENTION, _COMPLEX)

NEEDS: Mapping[str, tuple[Need, ...]] = {
    "model.embedding_scale": (_NORMAL,),
    "model.bottom_layers": (_BOTTOM,),
    "model.tower_layers": (OWN_HEAD, _TOWERS),
    "model.domain": (_DIVIDED,),
    "d3.field_hidden": _HEAD,
    "d3.width": (*_HEAD, _ON_TOP),
    "d3.rank": _TEXT_HEAD,
    "d3.precision": _TEXT_HEAD,
    "d3.head_layers": (*_HEAD, _ON_TOP, _TAIL),
    "d3.gate_layers": (_SHARED, _PAPER),
    "d3.attention_value": _TEXT_HEAD,
    "d3.attention_scaled": (*_HEAD, _PAPER),
    "d3.gate_input": (*_TEXT_HEAD, _SHARED),
    "d3.kernel_fusion": (*_TEXT_HEAD, _SHARED),
    "d3.bias_fusion": (*_TEXT_HEAD, _SHARED),
    "d3.outer_activation": _TEXT_HEAD,
    "d3.layer_activation": (*_TEXT_HEAD, _ON_TOP),
    "d3.separate_bias": _TEXT_HEAD,
    "d3.detach_generator": (*_HEAD, _PAPER),
    "balance": (_BALANCE,),
    "balance.complexity_shift": _ATTENTION,
    "balance.complexity_scale": _ATTENTION,
    "balance.specificity_shift": _WEIGHED,
    "balance.specificity_scale": _WEIGHED,
    "balance.lower": _NORMALIZED,
    "balance.upper": _NORMALIZED,
    "balance.entropy": _NORMALIZED,
    "balance.literal_sign": _NORMALIZED,
    "balance.minimum_std": _NORMALIZED,
    "balance.normalize": _WEIGHED,
    "optimizer.cooldown": (_COOLING,),
    "optimizer.own_decay": (_OWN,),
}
"""The needs of a section or of one of its settings; those of a part's are in its own file."""

Variants = Callable[[Config], Sequence[Config]]
"""The configurations that are trained when somebody gives this one."""


def alone(config: Config) -> Sequence[Config]:
    """The configuration itself."""
    return (config,)


def lacking(config: Config, name: str) -> str | None:
    """Return what would make the parts of a configuration read a setting; None where they do."""
    section, setting = name.split(".")
    needs = (
        *NEEDS.get(section, ()),
        *_chosen(section),
        *NEEDS.get(name, ()),
        *needs_of(section, setting),
    )
    return next((need.cure for need in needs if not need.holds(config)), None)


def _chosen(section: str) -> tuple[Need, ...]:
    """That the part which the section belongs to is chosen."""
    owner = owner_of(section)
    if owner is None:
        return ()
    kind, name = owner
    return (Need(lambda c: chosen_name(c, kind) == name, f"--{kind} {name}"),)


def chosen_name(config: Config, kind: str) -> str:
    """Return the name of the backbone, head or adapter of a configuration."""
    return config.adapter.adapter if kind == "adapter" else getattr(config.model, kind)


def idle(config: Config, before: Config, variants: Variants = alone) -> dict[str, str]:
    """Return the settings that somebody changed, from `before`, and nothing reads; and the cure.

    A setting that is as it was, or has its default, is no change.
    """
    changed = [
        name
        for name in setting_names(config)
        if get(config, name) not in (get(before, name), _default(config, name))
    ]
    cures = {name: _cure(config, name, get(before, name), variants) for name in changed}
    return {name: cure for name, cure in cures.items() if cure is not None}


def refuse_idle(config: Config, idle: Mapping[str, str], where: str = "") -> None:
    """Raise `ConfigError` naming the first of the idle settings, its value and the cure."""
    for name, cure in idle.items():
        raise ConfigError(
            f"{where}--{flag_of(name)} ({name}) is {get(config, name)}, but nothing here "
            f"reads it; {cure}"
        )


BARE = ("model", "d3", "balance", "adapter", "optimizer", "train")
"""Sections whose flags have no prefix."""


def flag_of(name: str) -> str:
    """Return the flag of a setting, without its hyphens, such as "mmoe.one-gate"."""
    section, key = name.split(".")
    return (key if section in BARE else name).replace("_", "-")


def setting_names(config: Config) -> list[str]:
    """Return the settings of all sections that a configuration holds, such as "d3.width"."""
    sections = {**config.shared, **config.chosen, **config.parts}
    return [f"{name}.{each.name}" for name, part in sections.items() for each in fields(part)]


def get(config: Config, name: str) -> Any:
    """Return the value of a setting."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _default(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(type(getattr(config, section))(), key)


def put(config: Config, name: str, value: Any) -> Config:
    """Return the configuration with another value of a setting; raises what that raises."""
    section, key = name.split(".")
    changed: dict[str, Any] = {section: replace(getattr(config, section), **{key: value})}
    return config.changed(**changed)


def _cure(config: Config, name: str, before: Any, variants: Variants) -> str | None:
    """Return what would make one of the variants take a setting; None where one does.

    A variant that is the same with the value before has a value of its own.
    """
    try:
        pairs = list(zip(variants(config), variants(put(config, name, before)), strict=True))
    except ConfigError:
        return None  # A contradiction, which has a message of its own, is no idle setting.
    lacks = [lacking(ours, name) for ours, _ in pairs]
    differs = [ours != other for ours, other in pairs]
    if any(lack is None and other for lack, other in zip(lacks, differs, strict=True)):
        return None
    if not lacks or None in lacks:
        return "leave it out, for what is compared sets it itself"
    return f"use {lacks[0]}, or leave it out"
