"""The comparisons of the D3 paper, Tables 1 to 3 and Figures 3 and 4, and those of one's own
choice, as lists of methods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from d3jax.config import Config
from d3jax.domains import AUTO
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from d3jax.registry import BACKBONES, HEADS

START_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""When loss adaptation starts in Figure 3, as a share of the run's steps; 1: never."""

BACKBONE: str = "adi"
"""The backbone of the tables and figures that have only one, unless another is named."""

TITLES: dict[str, str] = {
    "plain": "MLP",
    "shared_bottom": "Shared-Bottom",
    "mmoe": "MMoE",
    "m2m": "M2M",
    "adi": "ADI",
    "star": "STAR",
    "sar_net": "SAR-Net",
    "ple": "PLE",
    "pepnet": "PEPNet",
    "adasparse": "AdaSparse",
    "hamur": "HAMUR",
    "m3oe": "M3oE",
    "adaptdhm": "AdaptDHM",
}


HEAD_TITLES: dict[str, str] = {"d3": "D3", "m2m_wg": "M2M-WG", "pepnet_wg": "PEPNet-WG"}


def title_of(backbone: str) -> str:
    """Return what tables call a backbone; one of another package by its own name."""
    return TITLES.get(backbone, backbone)


PAPER_BACKBONES: tuple[str, ...] = (
    "shared_bottom",
    "mmoe",
    "m2m",
    "adi",
    "star",
    "sar_net",
)


Settings = tuple[tuple[str, Any], ...]
"""Settings by name, such as "model.wide", and their values."""

SCENARIOS = ("model.domain", ())
FOUND = ("model.domain", AUTO)
"""The domains are the scenarios, or those that the training rows speak for."""


@dataclass(frozen=True)
class Method:
    """One line of a table: what it changes in the configuration, and what it is tested against."""

    name: str
    backbone: str
    head: str = "own"
    parts: str = "d3"
    adapter: str = "none"
    start_ratio: float | None = None
    """Share of the steps before loss adaptation starts; the configuration's own when None."""
    base: str | None = None
    """The name of the method whose seeds this one's are paired with."""
    settings: Settings = ()
    """Other settings that it changes, such as ("balance.entropy", "mean_row")."""
    preset: str = ""
    """The slug of the method whose searched settings it takes; its own when empty."""

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9._]+", "-", self.name.lower()).strip("-")

    def configure(self, config: Config, seed: int) -> Config:
        """The configuration with this method's model, adapter and start, and a seed."""
        start = config.balance.start_ratio if self.start_ratio is None else self.start_ratio
        values = config.to_json()
        for name, value in self.settings:
            section, key = name.split(".")
            values[section][key] = value
        config = Config.from_json(values)
        return config.changed(
            model=replace(config.model, backbone=self.backbone, head=self.head),
            d3=replace(config.d3, parts=self.parts),
            balance=replace(config.balance, start_ratio=start),
            adapter=replace(config.adapter, adapter=self.adapter),
            train=replace(config.train, seed=seed),
        )


def preset_path(configs: Path | None, method: Method) -> Path | None:
    """The preset file that a method takes instead of what all share; None where it has none."""
    path = configs / f"{method.preset or method.slug}.json" if configs else None
    return path if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Table:
    """Methods to train side by side."""

    name: str
    title: str
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method | None:
        """The method of that name, None when the table has none."""
        return next((method for method in self.methods if method.name == name), None)


MLP = Method(TITLES["plain"], "plain")
"""A plain network on all embeddings: the bar that anything more elaborate has to pass."""


def table1() -> Table:
    """The paper's six backbones without and with D3."""
    pairs = [
        method
        for backbone in PAPER_BACKBONES
        for method in (_own(backbone), _d3(backbone, "d3", base=title_of(backbone)))
    ]
    return Table("table1", "Backbones without and with D3 (Table 1)", (MLP, *pairs))


def table2(backbone: str = "adi") -> Table:
    """Weight generators and loss adapters on one backbone."""
    title = title_of(backbone)
    d2 = _d3(backbone, "d2", base=title)
    methods = (
        MLP,
        _own(backbone),
        Method(f"{title} + M2M-WG", backbone, "m2m_wg", base=title),
        Method(f"{title} + PEPNet-WG", backbone, "pepnet_wg", base=title),
        _d3(backbone, "d1", base=title),
        d2,
        replace(d2, name=f"{title} + D2 + DWA", adapter="dwa"),
        replace(d2, name=f"{title} + D2 + DTP", adapter="dtp"),
        _d3(backbone, "d3", base=title),
    )
    return Table("table2", f"Weight generators and loss adapters on {title} (Table 2)", methods)


def table3(backbone: str = "adi") -> Table:
    """D3's parts, added one after another."""
    title = title_of(backbone)
    parts: tuple[str, ...] = ("d1", "d2", "d3")
    added = (_d3(backbone, part, base=title) for part in parts)
    return Table("table3", f"D3's parts on {title} (Table 3)", (MLP, _own(backbone), *added))


def figure3(backbone: str = "adi") -> Table:
    """D3 whose loss adaptation starts at five moments of the run, against never."""
    d3 = _d3(backbone, "d3", base=None)
    never = f"{d3.name}, start 1"
    methods = [
        replace(
            d3,
            name=f"{d3.name}, start {ratio:g}",
            start_ratio=ratio,
            base=never,
            preset=d3.slug,
        )
        for ratio in START_RATIOS
    ]
    methods[-1] = replace(methods[-1], base=None)
    title = f"When loss adaptation starts, {title_of(backbone)} (Figure 3)"
    return Table("figure3", title, (MLP, *methods))


def figure4(backbone: str = "adi") -> Table:
    """D3 alone, for its attention by scenario and field."""
    title = f"Attention by scenario and field, {title_of(backbone)} (Figure 4)"
    return Table("figure4", title, (MLP, _d3(backbone, "d3", base=MLP.name)))


OPEN_POINTS: dict[str, Settings] = {
    "generator input detached": (("d3.detach_generator", True),),
    "Eq. 15 without minus": (("balance.literal_sign", True),),
    "entropy of the mean row": (("balance.entropy", "mean_row"),),
    "loss over the weights' sum": (("balance.normalize", True),),
    "attention divided by √D": (("d3.attention_scaled", True),),
    "gate reads the embeddings": (("d3.gate_input", "raw"),),
    "added, not multiplied": (("d3.kernel_fusion", "additive"), ("d3.bias_fusion", "additive")),
}
"""Points that the paper leaves open, or prints in one way and its authors' code has in another."""


def open_points(backbone: str = "adi") -> Table:
    """D3 with each open point of the paper settled the other way, against D3 as it is read here."""
    own, d3 = _own(backbone), _d3(backbone, "d3", base=title_of(backbone))
    others = (
        replace(d3, name=f"{d3.name}, {name}", base=d3.name, settings=settings, preset=d3.slug)
        for name, settings in OPEN_POINTS.items()
    )
    title = f"What the paper leaves open, {title_of(backbone)}"
    return Table("open-points", title, (MLP, own, d3, *others))


ADAPTIVE = (("d3.form", "adaptive"), ("d3.width", 128), ("d3.head_layers", [64]))
"""The adaptive form of D3 with layers as wide as the plain network's."""


def terms() -> Table:
    """A scenario's own terms, the adaptive form and what each of its parts adds, against a plain
    network; and the backbones that it has to pass."""
    mlp = replace(MLP, settings=(_wide("none"),))
    wide = {
        kind: replace(MLP, name=f"{MLP.name} + {kind}", base=MLP.name, settings=(_wide(kind),))
        for kind in ("residual", "crosses")
    }
    adaptive = {
        parts: Method(
            f"Adaptive {parts.upper()}",
            "plain",
            "d3",
            parts,
            base=MLP.name,
            settings=(*ADAPTIVE, _wide("none")),
        )
        for parts in ("d1", "d2", "d3")
    }
    fused = [
        replace(
            adaptive["d2"],
            name=f"{adaptive['d2'].name} + {kind}",
            base=wide[kind].name,
            settings=(*ADAPTIVE, _wide(kind)),
        )
        for kind in wide
    ]
    share = replace(mlp, name=f"{MLP.name}, weighed by share", base=MLP.name, adapter="share")
    rivals = [
        replace(_own(name), base=MLP.name, settings=mlp.settings)
        for name in ("shared_bottom", "mmoe", "pepnet")
    ]
    text = replace(_d3("shared_bottom", "d3", base=MLP.name), settings=mlp.settings)
    methods = (mlp, *wide.values(), *adaptive.values(), *fused, share, *rivals, text)
    return Table("terms", "A scenario's own terms, and the adaptive form of D3", methods)


def default() -> Table:
    """The model of `d3jax train`, with the terms and the domains that the data speak for, against
    a plain network, with those terms too, and the backbones that have to be passed, without."""
    plain, auto = (_wide("none"), SCENARIOS), (_wide("auto"), FOUND)
    rivals = (_own(name) for name in ("shared_bottom", "mmoe", "pepnet"))
    d3 = _d3("shared_bottom", "d3", base=MLP.name)
    methods = (
        replace(MLP, settings=plain),
        *(replace(each, base=MLP.name, settings=plain) for each in rivals),
        replace(MLP, name=f"{MLP.name} with terms", base=MLP.name, settings=auto),
        replace(d3, name="the default", settings=auto),
    )
    return Table("default", "The default, and what it has to pass", methods)


def _wide(kind: str) -> tuple[str, Any]:
    return ("model.wide", kind)


TABLES: dict[int | str, Callable[[str], Table]] = {
    1: lambda backbone: table1(),
    2: table2,
    3: table3,
    "open": open_points,
    "terms": lambda backbone: terms(),
    "default": lambda backbone: default(),
}
FIGURES: dict[int, Callable[[str], Table]] = {3: figure3, 4: figure4}


PLAIN = "mlp"
"""The name of the plain network among methods."""


def of_methods(names: Sequence[str]) -> Table:
    """Return methods by their names, all but the first tested against it.

    A name is that of a backbone, or `mlp`; a head's may follow it, as in star+d3. Raises
    `ConfigError` for a name that no part has, and for a method that is named twice.
    """
    methods = tuple(map(method_of, names))
    for slug, count in Counter(method.slug for method in methods).items():
        if count > 1:
            twice = [name for name in names if method_of(name).slug == slug]
            raise ConfigError(f"methods names {' and '.join(twice)}, which are one; leave one out")
    return against(Table("methods", "Methods side by side", methods), methods[0].name)


def method_of(name: str) -> Method:
    """Return the method of a backbone's name, which "+" and a head's may follow."""
    backbone, plus, head = name.partition("+")
    known = [PLAIN, *BACKBONES.names()]
    if backbone not in known:
        raise ConfigError(
            f"methods names {name!r}, but there is no backbone {backbone!r}"
            f"{did_you_mean(backbone, known)}; there are {', '.join(known)}, and those of packages "
            "that register their own: install or import them"
        )
    if backbone == PLAIN:
        backbone = MLP.backbone
    if plus and head not in HEADS.names():
        raise ConfigError(
            f"methods names {name!r}, but there is no head {head!r}"
            f"{did_you_mean(head, HEADS.names())}; there are {', '.join(HEADS.names())}"
        )
    if head in ("", "own"):
        return _own(backbone)
    return Method(f"{title_of(backbone)} + {HEAD_TITLES.get(head, head)}", backbone, head)


def find_table(
    table: int | str | None,
    figure: int | None,
    backbone: str,
    base: str | None,
    methods: Sequence[str] = (),
) -> Table:
    """The table or figure of that number, or the methods, tested against `base` if one is named.

    Raises `ConfigError` unless exactly one is asked for, and for a base that isn't in it.
    """
    if sum((table is not None, figure is not None, bool(methods))) != 1:
        raise ConfigError(
            "give --methods, --table 1, 2, 3, open, terms or default, or --figure 3 or 4, and one "
            "of them only"
        )
    if backbone != BACKBONE and (methods or table in (1, "terms")):
        what = "--methods names the" if methods else f"table {table} has its own"
        raise ConfigError(f"on is {backbone}, but {what} backbones; leave --on out")
    if methods:
        found = of_methods(methods)
        # The base may be written as the methods are.
        base = method_of(base).name if base and base in methods else base
    else:
        found = TABLES[table](backbone) if table else FIGURES[figure or 0](backbone)
    if base is None:
        return found
    if found.method(base) is None:
        names = ", ".join(method.name for method in found.methods)
        raise ConfigError(f"base {base!r} is not in the table; it has {names}")
    return against(found, base)


def against(table: Table, base: str) -> Table:
    """The table with every method tested against the one called `base`."""
    methods = tuple(
        replace(method, base=None if method.name == base else base) for method in table.methods
    )
    return replace(table, methods=methods)


def _own(backbone: str) -> Method:
    return Method(title_of(backbone), backbone)


def _d3(backbone: str, parts: str, base: str | None) -> Method:
    return Method(f"{title_of(backbone)} + {parts.upper()}", backbone, "d3", parts, base=base)
