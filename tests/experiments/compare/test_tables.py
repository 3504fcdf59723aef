"""The tables hold what the paper compares, and a plain MLP, as configurations that build."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.batch import Field, Schema
from d3jax.config import Config, differences
from d3jax.errors import ConfigError
from d3jax.parts import refusal
from experiments.compare.paper import ALI_CCP, printed
from experiments.compare.tables import FIGURES, MLP, TABLES, find_table

SCHEMA = Schema(
    (Field("user", 20), Field("item", 15), Field("place", 4)), ("home", "slot"), "place", "user"
)


@pytest.mark.parametrize("build", [*TABLES.values(), *FIGURES.values()])
def test_every_table_begins_with_the_mlp_and_can_be_built(build) -> None:
    table = build("adi")
    assert replace(table.methods[0], settings=()) == MLP
    slugs = [method.slug for method in table.methods]
    assert len(set(slugs)) == len(slugs)
    for method in table.methods:
        config = method.configure(Config(), seed=3)
        assert refusal(SCHEMA, config) is None
        assert config.train.seed == 3
        assert method.base is None or table.method(method.base) is not None


def test_table_1_pairs_six_backbones_with_and_without_d3() -> None:
    methods = find_table(1, None, "adi", None).methods[1:]
    assert len(methods) == 12
    for own, d3 in zip(methods[::2], methods[1::2], strict=True):
        assert (own.head, own.base, d3.head, d3.parts) == ("own", None, "d3", "d3")
        assert (own.backbone, own.name) == (d3.backbone, d3.base)


def test_table_2_has_the_papers_lines_and_tests_them_against_the_backbone() -> None:
    table = find_table(2, None, "adi", None)
    assert {method.name for method in table.methods} == {"MLP", *ALI_CCP}
    assert {method.base for method in table.methods[2:]} == {"ADI"}
    dwa = table.method("ADI + D2 + DWA")
    config = dwa.configure(Config(), 0)
    assert (config.d3.parts, config.adapter.adapter) == ("d2", "dwa")


def test_table_3_adds_the_parts_on_any_backbone() -> None:
    names = [method.name for method in find_table(3, None, "mmoe", None).methods]
    assert names == ["MLP", "MMoE", "MMoE + D1", "MMoE + D2", "MMoE + D3"]


def test_each_open_point_is_d3_with_one_thing_changed() -> None:
    table = find_table("open", None, "star", None)
    d3 = table.method("STAR + D3")
    assert d3.base == "STAR"
    plain = d3.configure(Config(), 3).to_json()
    for method in table.methods[3:]:
        assert (method.base, method.preset) == (d3.name, d3.slug)
        changed = differences(plain, method.configure(Config(), 3).to_json())
        assert {line.split(":")[0] for line in changed} == {name for name, _ in method.settings}
        assert len(changed) == (2 if "multiplied" in method.name else 1)


def test_a_scenarios_own_terms_are_tested_against_what_lacks_them() -> None:
    table = TABLES["terms"]("adi")
    bases = {method.name: method.base for method in table.methods}
    assert bases["MLP + crosses"] == bases["Adaptive D2"] == bases["MMoE"] == "MLP"
    assert bases["Adaptive D2 + crosses"] == "MLP + crosses"
    wide = {m.name: m.configure(Config(), 0).model.wide for m in table.methods}
    assert {name for name, kind in wide.items() if kind != "none"} == {
        name for name in wide if name.endswith(("residual", "crosses"))
    }


def test_figure_3_changes_the_start_alone() -> None:
    methods = find_table(None, 3, "adi", None).methods[1:]
    config = Config(balance=BalanceOptions(start_ratio=0.3))
    starts = [method.configure(config, 0).balance.start_ratio for method in methods]
    assert starts == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [method.base for method in methods] == ["ADI + D3, start 1"] * 4 + [None]
    assert {method.preset for method in methods} == {"adi-d3"}
    kept = find_table(3, None, "adi", None).methods[-1].configure(config, 0)
    assert kept.balance.start_ratio == 0.3


def test_a_base_of_ones_own() -> None:
    table = find_table(1, None, "adi", "MLP")
    assert [method.base for method in table.methods] == [None] + ["MLP"] * 12
    with pytest.raises(ConfigError, match="base 'GBDT' is not in the table; it has MLP, Shared-B"):
        find_table(1, None, "adi", "GBDT")


@pytest.mark.parametrize(("table", "figure"), [(None, None), (1, 3)])
def test_exactly_one_is_asked_for(table: int | None, figure: int | None) -> None:
    with pytest.raises(
        ConfigError, match="give --table 1, 2, 3, open or terms, or --figure 3 or 4"
    ):
        find_table(table, figure, "adi", None)


def test_the_papers_numbers_stand_beside_its_own_data_only() -> None:
    ours = Schema((Field("301", 4),), ("1", "2", "3"), "301")
    assert printed(ours, "ADI + D3", "auc") == (0.6261, 0.6029, 0.6230)
    assert printed(ours, "ADI + D1", "logloss") is None
    assert printed(ours, "MLP", "auc") is None
    assert printed(SCHEMA, "ADI + D3", "auc") is None
