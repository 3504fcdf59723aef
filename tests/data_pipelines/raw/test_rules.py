"""The small languages of `prepare table`, against values computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ibis
import pyarrow as pa
import pytest

from d3jax.errors import ConfigError
from data_pipelines.raw.rules import Rule, parse_counts, parse_rule, parse_scenario, parse_settings

VALUES = ["1", "1.0", "2", "10", "-3", "2.5"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("click", ["1", "1.0"]),
        ("click>2", ["10", "2.5"]),
        ("click >= 2", ["2", "10", "2.5"]),
        ("click<1", ["-3"]),
        ("click<=1", ["1", "1.0", "-3"]),
        ("click=1", ["1", "1.0"]),
        ("click==2.50", ["2.5"]),
        ("click!=1", ["2", "10", "-3", "2.5"]),
        ("click = 1.0x", []),
        ("click!=a>b", VALUES),
    ],
)
def test_label_rules(text: str, expected: list[str]) -> None:
    rule = parse_rule(text)
    assert rule.column == "click"
    connection = ibis.duckdb.connect()
    connection.con.register("rows", pa.table({"click": VALUES}))
    rows = connection.table("rows")
    assert rows.filter(rule.holds(rows.click)).to_pyarrow()["click"].to_pylist() == expected


def test_a_rule_is_parsed_not_run() -> None:
    assert parse_rule("__import__('os')") == Rule("__import__('os')", "=", "1")
    assert parse_rule(" my rating >= 4 ") == Rule("my rating", ">=", "4")
    assert parse_rule("kind=video") == Rule("kind", "=", "video")


def test_scenarios() -> None:
    assert parse_scenario("tab") == ("tab", ())
    assert parse_scenario("age=25,35") == ("age", (25.0, 35.0))
    assert parse_scenario("age= -1, 2.5 ,1e3") == ("age", (-1.0, 2.5, 1000.0))


def test_settings() -> None:
    assert parse_settings("multi", ["genres=|", "tags=="]) == {"genres": "|", "tags": "="}
    assert parse_counts("hash", ["user=100"]) == {"user": 100}


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_rule, "rating>", "label rule 'rating>': > needs a number after it, not ''; write"),
        (parse_rule, "rating>x", "> needs a number after it, not 'x'; write a column, or a col"),
        (parse_scenario, "age=35,25", "scenario 'age=35,25': the edges must be ascending numbers"),
        (parse_scenario, "age=25,25", "the edges must be ascending numbers, such as age=25,35"),
        (parse_scenario, "age=young", "the edges must be ascending numbers"),
        (parse_scenario, "age=", "the edges must be ascending numbers"),
        (lambda t: parse_settings("multi", [t]), "genres", "--multi 'genres' must name a column"),
        (lambda t: parse_settings("multi", [t]), "=|", "--multi '=|' must name a column and"),
        (lambda t: parse_settings("multi", [t, t]), "a=b", "--multi names the column 'a' twice"),
        (lambda t: parse_counts("hash", [t]), "a=b", "--hash a=b: 'b' is not a whole number"),
        (lambda t: parse_counts("hash", [t]), "a=-1", "'-1' is not a whole number"),
    ],
)
def test_what_can_not_be_parsed(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert message in str(refused.value)
