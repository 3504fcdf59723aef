"""The parts that have names: backbones, heads and loss adapters, the paper's own and others'.

A part is found by its name, through an entry point of its package or a call of `register`. Its
module is imported when the part is asked for, so that a name costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, NamedTuple

from d3jax.checks import is_a
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean

Kind = Literal["backbone", "head", "adapter"]


class Need(NamedTuple):
    """A condition on the configuration for a setting to be read, and what brings it about."""

    holds: Callable[[Any], bool]
    cure: str


class Part(NamedTuple):
    """A part that a configuration can name.

    `build(choice)` makes it from the settings that were chosen; `choice.options` is an instance of
    `options`, a frozen dataclass of the part's own settings (None: it has none). The settings are
    flags `--name.setting` and a section of the configuration that is called as the part is.
    `needs` says, by setting, what must hold for it to be read; `space` the values that d3jax search
    tries, beside the one that it starts from.
    """

    build: Callable[[Any], Any]
    options: type[Any] | None = None
    needs: Mapping[str, tuple[Need, ...]] = {}
    more: Mapping[str, type[Any]] = {}
    """Further sections that come with the part."""
    space: Mapping[str, Sequence[Any]] = {}

    def sections(self, name: str) -> dict[str, type[Any]]:
        """Return the part's sections of a configuration, by their names."""
        return {**({} if self.options is None else {name: self.options}), **self.more}


LAYERS = (64,), (128, 64), (256, 128), (256, 128, 64)
"""The networks that a search tries, the same for every part with a whole one."""


class Registry:
    """The parts of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._registered: dict[str, Part] = {}

    def names(self) -> list[str]:
        """Return all names: ours in the order of their publication, then others'."""
        return list(dict.fromkeys([*_points(self.kind), *self._registered]))

    def find(self, name: str) -> Part:
        """Return the part of that name; its module is imported.

        Raises `ConfigError` for a name that nothing registers, and for a part that can't be
        imported or is none.
        """
        if name in self._registered:
            return self._registered[name]
        self.check(name)
        return _load(self.kind, _points(self.kind)[name])

    def check(self, name: str) -> None:
        """Raise `ConfigError` for a name that nothing registers."""
        known = self.names()
        if name not in known:
            raise ConfigError(
                f"{self.kind} is {name!r}{did_you_mean(name, known)}; it must be one of "
                f"{', '.join(known)}, or of a package that registers its own: install or import it"
            )

    def register(self, name: str, part: Part) -> None:
        """Add a part, or put it in the place of one that was registered before by a call.

        Raises `ConfigError` for a name that an installed package has, or a section uses.
        """
        is_a("name", name, str, "a Python identifier")
        if not name.isidentifier() or name in RESERVED:
            raise ConfigError(
                f"a {self.kind} can't be called {name!r}; take a Python identifier other than "
                f"{', '.join(sorted(RESERVED))}"
            )
        for registry in REGISTRIES.values():
            if name in _points(registry.kind) or (
                registry is not self and name in registry._registered
            ):
                raise ConfigError(
                    f"there is a {registry.kind} called {name!r} already; choose another name"
                )
        self._registered[name] = part


RESERVED = frozenset(
    {"model", "balance", "adapter", "optimizer", "train", "parts", "head", "backbone", "data"}
)
"""Sections of a configuration, and flags, that no part may be called as."""

BACKBONES, HEADS, ADAPTERS = Registry("backbone"), Registry("head"), Registry("adapter")
REGISTRIES: dict[Kind, Registry] = {
    registry.kind: registry for registry in (BACKBONES, HEADS, ADAPTERS)
}


def register(
    kind: Kind,
    name: str,
    build: Callable[[Any], Any],
    options: type[Any] | None = None,
) -> None:
    """Make a backbone, head or loss adapter known by a name, as an entry point does.

    `build(choice)` returns it; `options` is a frozen dataclass of its settings with defaults. An
    installed package can name a `Part` in its entry points instead, in the group
    `d3jax.backbones`, `d3jax.heads` or `d3jax.adapters`; the command line then knows it too.
    Raises `ConfigError` for a kind or name that can't be.
    """
    if kind not in REGISTRIES:
        raise ConfigError(f"kind is {kind!r}; it must be one of {', '.join(REGISTRIES)}")
    if not callable(build):
        raise ConfigError(f"build is {build!r}; give a function of the choice that makes the part")
    if options is not None and not (isinstance(options, type) and is_dataclass(options)):
        raise ConfigError(f"options is {options!r}; give a frozen dataclass of the settings")
    REGISTRIES[kind].register(name, Part(build, options))


def owner_of(section: str) -> tuple[Kind, str] | None:
    """Return the kind and the name of the part that a section belongs to; None for a section of
    none."""
    owner = _OWNERS.get(section, section)
    kinds = (kind for kind, registry in REGISTRIES.items() if owner in registry.names())
    return next(((kind, owner) for kind in kinds), None)


def section_class(name: str) -> type[Any] | None:
    """Return the dataclass of a part's section of a configuration; None for a name of none."""
    part = _part_of(name)
    return None if part is None else part.sections(_OWNERS.get(name, name)).get(name)


def section_names() -> list[str]:
    """Return the names of all parts' sections; the parts' modules are imported."""
    return [
        section
        for registry in REGISTRIES.values()
        for name in registry.names()
        for section in registry.find(name).sections(name)
    ]


def needs_of(section: str, setting: str) -> tuple[Need, ...]:
    """Return what must hold for a part's setting to be read, beside the part being chosen."""
    part = _part_of(section)
    return () if part is None else part.needs.get(setting, ())


def _part_of(section: str) -> Part | None:
    owner = owner_of(section)
    return None if owner is None else REGISTRIES[owner[0]].find(owner[1])


_OWNERS = {"balance": "d3"}
"""Sections that are called otherwise than their part."""


@cache
def _points(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"d3jax.{kind}s")}


@cache
def _load(kind: Kind, point: EntryPoint) -> Part:
    try:
        part = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{kind} {point.name} can't be loaded from {point.value} ({error}); install or mend "
            "the package that names it"
        ) from error
    if not isinstance(part, Part):
        raise ConfigError(
            f"{kind} {point.name} is to be {point.value}, which is no d3jax.Part; name a Part in "
            "the entry point"
        )
    return part
