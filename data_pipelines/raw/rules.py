"""The small languages of `prepare table`: label rules, scenario ranges and 'column=setting'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import ibis
from ibis.expr.types import BooleanValue, StringValue

from d3jax.data.encoding import NUMBER
from d3jax.errors import ConfigError

_RULE = re.compile(r"\s*(.+?)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*", re.DOTALL)


class Rule(NamedTuple):
    """Label 1 is where `column` compares with `value`; a bare column holds 0 and 1 itself."""

    column: str
    comparison: str = "="
    value: str = "1"

    @property
    def is_numeric(self) -> bool:
        """Return whether the column's values are to be numbers."""
        return re.fullmatch(NUMBER, self.value) is not None

    def holds(self, text: StringValue) -> BooleanValue:
        """Return whether the rule holds for values that are numbers, where they need to be."""
        left = _truths(text).cast("float64") if self.is_numeric else text
        right = float(self.value) if self.is_numeric else self.value
        match self.comparison:
            case ">":
                return left > right
            case ">=":
                return left >= right
            case "<":
                return left < right
            case "<=":
                return left <= right
            case "!=":
                return left != right
            case _:
                return left == right


def _truths(text: StringValue) -> StringValue:
    """True and false as 1 and 0."""
    lowered = text.lower()
    return ibis.cases((lowered == "true", "1"), (lowered == "false", "0"), else_=text)


def parse_rule(text: str) -> Rule:
    """Such as 'click' or 'rating>3'. Raises `ConfigError` where the value does not fit."""
    match = _RULE.fullmatch(text)
    if match is None:
        return Rule(text.strip())
    rule = Rule(*match.groups())
    if not rule.value or (rule.comparison in (">", ">=", "<", "<=") and not rule.is_numeric):
        raise ConfigError(
            f"label rule {text!r}: {rule.comparison} needs a number after it, not {rule.value!r}; "
            "write a column, or a column, a comparison and a value, such as rating>3"
        )
    return rule


def parse_scenario(text: str) -> tuple[str, tuple[float, ...]]:
    """Such as 'tab', or 'age=25,35' with ascending edges. Raises `ConfigError` otherwise."""
    column, equals, edges = text.partition("=")
    parts = [part.strip() for part in edges.split(",")]
    if not equals:
        return column.strip(), ()
    wrong = [part for part in parts if not re.fullmatch(NUMBER, part)]
    numbers = [] if wrong else [float(part) for part in parts]
    if wrong or numbers != sorted(set(numbers)):
        raise ConfigError(
            f"scenario {text!r}: the edges must be ascending numbers, such as age=25,35"
        )
    return column.strip(), tuple(numbers)


def parse_settings(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Such as {'genres': '|'} of 'genres=|'. Raises `ConfigError` without column or setting."""
    settings = {}
    for text in texts:
        column, _, value = text.partition("=")
        if not column or not value:
            raise ConfigError(
                f"--{flag} {text!r} must name a column and, after an equals sign, its setting"
            )
        if column in settings:
            raise ConfigError(f"--{flag} names the column {column!r} twice; keep one")
        settings[column] = value
    return settings


def parse_counts(flag: str, texts: Sequence[str]) -> dict[str, int]:
    """Such as {'price': 20} of 'price=20'. Raises `ConfigError` for what is no whole number."""
    settings = parse_settings(flag, texts)
    for column, value in settings.items():
        if not re.fullmatch("[0-9]{1,10}", value):
            raise ConfigError(f"--{flag} {column}={value}: {value!r} is not a whole number")
    return {column: int(value) for column, value in settings.items()}
