"""The data sets that can be prepared: one file each, and table.py for any other.

They are entry points, so that a package of somebody else's adds its own.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points

from d3jax.errors import ConfigError
from d3jax.names import did_you_mean
from data_pipelines.source import DataSet

GROUP = "d3jax.sources"
"""The entry points that are data sets: each names a `DataSet`."""

_registered: dict[str, type[DataSet]] = {}


def register(name: str, kind: type[DataSet]) -> None:
    """Make a data set known to this process, as an entry point would to every process.

    Raises `ConfigError` for a name that is taken, and for what is no `DataSet`.
    """
    if name in find_sources():
        raise ConfigError(f"there is a data source {name!r} already; register another name")
    _registered[name] = _checked(name, kind, repr(kind))


def find_sources() -> dict[str, tuple[EntryPoint, ...] | type[DataSet]]:
    """Return the data sets by name, in its order: entry points not yet loaded, or classes."""
    found: dict[str, tuple[EntryPoint, ...] | type[DataSet]] = {}
    for name in sorted({point.name for point in entry_points(group=GROUP)}):
        found[name] = tuple(entry_points(group=GROUP, name=name))
    return found | _registered


def load_source(name: str) -> type[DataSet]:
    """Return the data set of a name.

    Raises `ConfigError` for an unknown name, one that two packages have, a module that can't be
    imported and an object that is no `DataSet`.
    """
    sources = find_sources()
    if name not in sources:
        raise ConfigError(
            f"there is no data source {name!r}{did_you_mean(name, sources)}; there are "
            f"{', '.join(sources)}"
        )
    source = sources[name]
    if isinstance(source, type):
        return source
    point, *others = source
    if others:
        values = " and ".join(each.value for each in source)
        raise ConfigError(f"the data source {name!r} is both {values}; uninstall one of the two")
    try:
        kind = point.load()
    except Exception as error:  # whatever a module of somebody else's does when it is imported
        package = point.dist.name if point.dist else point.module
        raise ConfigError(
            f"the data source {name!r} can't be loaded from {point.value} "
            f"({type(error).__name__}: {error}); install what is missing, or uninstall {package}"
        ) from error
    return _checked(name, kind, point.value)


def _checked(name: str, kind: type[DataSet], value: str) -> type[DataSet]:
    if isinstance(kind, type) and issubclass(kind, DataSet) and is_dataclass(kind):
        return kind
    raise ConfigError(
        f"{value}, which the data source {name!r} is to be, is no dataclass that inherits "
        "data_pipelines.source.DataSet"
    )
