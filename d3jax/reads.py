"""Which settings a configuration's parts read, and what a setting needs to be read at all.

A part ignores the settings of other parts, so that one configuration can serve many models. What
somebody sets himself should not be ignored in silence: `idle` finds it. A setting without a rule
here is read by every model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

from d3jax.config import BackboneName, Config
from d3jax.errors import ConfigError

GATED = ("star", "sar_net")
"""Backbones without a tower or layer to generate: D3 adds its gate and loss weight to them."""


class Need(NamedTuple):
    """A condition for a setting to be read, and what brings it about."""

    holds: Callable[[Config], bool]
    cure: str


def _backbone(*names: str) -> Need:
    return Need(lambda c: c.model.backbone in names, f"--backbone {' or '.join(names)}")


def _adapter(*names: str) -> Need:
    return Need(lambda c: c.adapter.adapter in names, f"--adapter {' or '.join(names)}")


def generates_inside(config: Config) -> bool:
    """Whether D3 makes M2M's own layers, instead of one on top of it."""
    return config.model.backbone == "m2m" and config.m2m.d3_place == "site"


def _keeps_forward(config: Config) -> bool:
    """Whether ADI's forward network reads a layer that D3 or M2M-WG makes."""
    head, text = config.model.head, config.d3.form == "text"
    reads = head == "m2m_wg" or (head == "d3" and text)
    return config.model.backbone == "adi" and config.adi.keep_forward and reads


_NORMAL = Need(lambda c: c.model.embedding_init == "normal", "--embedding-init normal")
_BOTTOM = Need(
    lambda c: (
        c.model.backbone == "shared_bottom"
        or (c.model.backbone == "plain" and c.model.head == "own")
    ),
    "--backbone shared_bottom, or plain with --head own",
)
_OWN = Need(lambda c: c.model.head == "own", "--head own")
_TOWERS = _backbone("shared_bottom", "mmoe", "ple", "pepnet", "hamur", "m3oe")

_D3 = Need(lambda c: c.model.head == "d3", "--head d3")
_GENERATED = Need(
    lambda c: c.model.backbone not in GATED, f"a --backbone other than {' and '.join(GATED)}"
)
_TEXT = Need(lambda c: c.d3.form == "text", "--form text")
_ON_TOP = Need(lambda c: not generates_inside(c), "--m2m.d3-place head")
_SHARED = Need(lambda c: c.d3.parts != "d1", "--parts d2 or d3")
_TAIL = Need(lambda c: not _keeps_forward(c), "--adi.no-keep-forward")

_BALANCE = Need(lambda c: c.has_balance, "--head d3 with --parts d3")
_STARTED = Need(lambda c: c.balance.start_ratio < 1, "--start-ratio below 1")
_COMPLEX = Need(lambda c: c.balance.complexity_scale > 0, "--complexity-scale above 0")

_NOT_ON_TOP = Need(
    lambda c: c.model.head == "own" or generates_inside(c), "--head own or --m2m.d3-place site"
)
_READS_FIELDS = Need(lambda c: c.model.head in ("d3", "pepnet_wg"), "--head d3 or pepnet_wg")
_FORWARD = Need(
    lambda c: c.model.head == "own" or _keeps_forward(c),
    "--head own, or --adi.keep-forward under --head m2m_wg, or d3 with --form text",
)
_KEEPABLE = Need(
    lambda c: c.model.head == "m2m_wg" or (c.model.head == "d3" and c.d3.form == "text"),
    "--head m2m_wg, or d3 with --form text",
)
_MIXED = Need(lambda c: c.adi.shared_networks > 1, "--adi.shared-networks 2 or more")
_SCALED = Need(lambda c: c.adasparse.form != "binary", "--adasparse.form fusion or scaling")
_PRUNED = Need(lambda c: c.adasparse.form != "scaling", "--adasparse.form fusion or binary")
_ADAPTED = Need(lambda c: c.hamur.adapters > 0, "--hamur.adapters 1 or more")
_COOLING = Need(lambda c: c.optimizer.schedule == "wsd", "--schedule wsd")

_HEAD = (_GENERATED,)
_TEXT_HEAD = (*_HEAD, _TEXT)
_WEIGHED = (_STARTED,)
_ATTENTION = (*_WEIGHED, _GENERATED)
_NORMALIZED = (*_ATTENTION, _COMPLEX)

SECTIONS = tuple(name for name in get_args(BackboneName) if hasattr(Config(), name))
"""Backbones with a section of their own, which has their name."""

NEEDS: Mapping[str, tuple[Need, ...]] = {
    **{name: (_backbone(name),) for name in SECTIONS},
    "model.embedding_scale": (_NORMAL,),
    "model.bottom_layers": (_BOTTOM,),
    "model.tower_layers": (_OWN, _TOWERS),
    "d3": (_D3,),
    "d3.field_hidden": _HEAD,
    "d3.width": (*_HEAD, _ON_TOP),
    "d3.generator_rank": _TEXT_HEAD,
    "d3.precision": _TEXT_HEAD,
    "d3.head_layers": (*_HEAD, _ON_TOP, _TAIL),
    "d3.gate_layers": (_SHARED,),
    "d3.attention_value": _TEXT_HEAD,
    "d3.attention_scaled": _HEAD,
    "d3.gate_input": (*_TEXT_HEAD, _SHARED),
    "d3.kernel_fusion": (*_TEXT_HEAD, _SHARED),
    "d3.bias_fusion": (*_TEXT_HEAD, _SHARED),
    "d3.outer_activation": _TEXT_HEAD,
    "d3.layer_activation": (*_TEXT_HEAD, _ON_TOP),
    "d3.separate_bias": _TEXT_HEAD,
    "d3.detach_generator": _HEAD,
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
    "adapter.period_steps": (_adapter("dwa", "dtp"),),
    "adapter.temperature": (_adapter("dwa"),),
    "adapter.kpi_smoothing": (_adapter("dtp"),),
    "adapter.scenario_focus": (_adapter("dtp"),),
    "adapter.row_focus": (_adapter("dtp"),),
    "adapter.mean_one": (_adapter("dtp"),),
    "adapter.asymmetry": (_adapter("gradnorm"),),
    "adapter.watched": (_adapter("gradnorm"),),
    "optimizer.cooldown": (_COOLING,),
    "m2m.knowledge": (_OWN,),
    "m2m.meta_layers": (_NOT_ON_TOP,),
    "m2m.tower_blocks": (_NOT_ON_TOP,),
    "m2m.layers": (_NOT_ON_TOP,),
    "m2m.inner_activation": (_NOT_ON_TOP,),
    "m2m.d3_place": (_D3,),
    "adi.norm": (_OWN,),
    "adi.layers": (_OWN,),
    "adi.shared_networks": (_OWN,),
    "adi.mixture": (_OWN, _MIXED),
    "adi.forward_width": (_FORWARD,),
    "adi.forward": (_FORWARD,),
    "adi.head_layers": (_FORWARD,),
    "adi.d3_reads": (_READS_FIELDS,),
    "adi.keep_forward": (_KEEPABLE,),
    "star.gate_bias": (_D3,),
    "star.gate_depth": (_D3,),
    "star.gate_scale": (_D3,),
    "sar_net.d3_place": (_D3,),
    "adasparse.scale": (_SCALED,),
    "adasparse.threshold": (_PRUNED,),
    "adasparse.sharpness": (_PRUNED,),
    "adasparse.growth": (_PRUNED,),
    "adasparse.sharpest": (_PRUNED,),
    "hamur.adapter_width": (_ADAPTED,),
    "hamur.rank": (_ADAPTED,),
    "hamur.hyper_layers": (_ADAPTED,),
    "hamur.shared_factors": (_ADAPTED,),
}
"""What a section needs, and what one of its settings needs beside that."""

Variants = Callable[[Config], Sequence[Config]]
"""The configurations that are trained when somebody gives this one."""


def alone(config: Config) -> Sequence[Config]:
    """The configuration itself."""
    return (config,)


def lacking(config: Config, name: str) -> str | None:
    """What would make the parts of a configuration read a setting; None where they do."""
    needs = (*NEEDS.get(name.partition(".")[0], ()), *NEEDS.get(name, ()))
    return next((need.cure for need in needs if not need.holds(config)), None)


def idle(config: Config, before: Config, variants: Variants = alone) -> dict[str, str]:
    """Settings that somebody changed, from what was `before`, and nothing reads; and the cure.

    What is as it was, or has its default, is no change.
    """
    known = Config()
    changed = [
        name
        for name in setting_names()
        if get(config, name) not in (get(before, name), get(known, name))
    ]
    cures = {name: _cure(config, name, get(before, name), variants) for name in changed}
    return {name: cure for name, cure in cures.items() if cure is not None}


def refuse_idle(config: Config, idle: Mapping[str, str], where: str = "") -> None:
    """Raises `ConfigError` naming the first of the idle settings, its value and the cure."""
    for name, cure in idle.items():
        section, key = name.split(".")
        flag = f"{section}.{key}" if section in SECTIONS else key
        raise ConfigError(
            f"{where}--{flag.replace('_', '-')} ({name}) is {get(config, name)}, but nothing here "
            f"reads it; {cure}"
        )


def setting_names() -> list[str]:
    """All settings, such as "d3.width"."""
    return [f"{section}.{key}" for section, part in vars(Config()).items() for key in vars(part)]


def get(config: Config, name: str) -> Any:
    """The value of a setting."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def put(config: Config, name: str, value: Any) -> Config:
    """The configuration with another value of a setting; raises what that raises."""
    section, key = name.split(".")
    changed: dict[str, Any] = {section: replace(getattr(config, section), **{key: value})}
    return replace(config, **changed)


def _cure(config: Config, name: str, before: Any, variants: Variants) -> str | None:
    """What would make one of the variants take a setting; None where one does.

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
