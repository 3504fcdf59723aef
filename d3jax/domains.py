"""The domains that a model divides the rows into: the scenarios, or the values of other fields."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from jaxtyping import Int

from d3jax.batch import Batch, Schema
from d3jax.errors import ConfigError
from d3jax.names import did_you_mean

AUTO = ("auto",)
"""In the place of fields: those that the training rows speak for (`d3jax.division`)."""
MOST_DOMAINS = 1 << 14
"""Every part that divides rows holds weights for each domain."""


class Domains(NamedTuple):
    """The number of domains, and the id columns and sizes of the fields whose values they are;
    without columns they are the scenarios."""

    number: int
    columns: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def of(self, batch: Batch) -> Int[Any, " B"]:
        """Return the domain of each row, from 0 to `number` - 1."""
        if not self.columns:
            return batch.scenario
        return joined([batch.ids[:, column] for column in self.columns], self.sizes)


def joined(codes: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return one number for each row's values of several fields; an empty one counts as unknown."""
    domain = codes[0].clip(0)
    for code, size in zip(codes[1:], sizes[1:], strict=True):
        domain = domain * size + code.clip(0)
    return domain


def domains_of(schema: Schema, fields: Sequence[str]) -> Domains:
    """Return the domains by the values of `fields`; without fields, the scenarios, and also where
    they were left to rows that there aren't.

    Raises `ConfigError` naming a field that there isn't or that has several values in a row, one
    that is named twice, and too many domains.
    """
    if not fields or tuple(fields) == AUTO:
        return Domains(schema.num_scenarios)
    names = [field.name for field in schema.fields]
    for position, name in enumerate(fields):
        if name not in names and name in ("none", *AUTO):
            raise ConfigError(
                f"--domain names {name!r} among fields; name fields, or auto alone, or leave it "
                "out for the scenarios"
            )
        if name not in names:
            raise ConfigError(
                f"--domain {name!r} is no field{did_you_mean(name, names)}; the fields are "
                f"{', '.join(names)}"
            )
        if schema.fields[names.index(name)].slots > 1:
            raise ConfigError(
                f"--domain {name!r} has several values in a row, which is then in no one domain; "
                "name fields of one value"
            )
        if name in fields[:position]:
            raise ConfigError(f"--domain names {name!r} twice; name it once")
    found = [names.index(name) for name in fields]
    sizes = tuple(schema.fields[index].size for index in found)
    if prod(sizes) > MOST_DOMAINS:
        raise ConfigError(
            f"--domain {' '.join(fields)} divides rows into {prod(sizes):,} domains; at most "
            f"{MOST_DOMAINS:,} have room, so name fields of fewer values"
        )
    return Domains(prod(sizes), tuple(int(schema.first_slot[n]) for n in found), sizes)
