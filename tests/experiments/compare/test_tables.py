"""The tables hold what the paper compares, and a plain MLP, as configurations that build."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.batch import Field, Schema
from d3jax.cli import parse
from d3jax.config import Config, differences
from d3jax.errors import ConfigError
from d3jax.parts import refusal
from d3jax.presets import PRESETS
from d3jax.registry import BACKBONES, HEADS, Part
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


@pytest.mark.parametrize(
    ("table", "figure", "methods"),
    [(None, None, ()), (1, 3, ()), (1, None, ("mlp",)), (None, 3, ("mlp",))],
)
def test_exactly_one_is_asked_for(
    table: int | None, figure: int | None, methods: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as error:
        find_table(table, figure, "adi", None, methods)
    assert str(error.value) == (
        "give --methods, --table 1, 2, 3, open, terms or default, or --figure 3 or 4, and one of "
        "them only"
    )


def test_methods_by_name_are_tested_against_the_first() -> None:
    names = ["pepnet", "mlp", "star+d3", "sar_net+own", "ple+m2m_wg"]
    table = find_table(None, None, "adi", None, names)
    assert table.name == "methods"
    found = [(each.name, each.backbone, each.head, each.base) for each in table.methods]
    assert found == [
        ("PEPNet", "pepnet", "own", None),
        ("MLP", "plain", "own", "PEPNet"),
        ("STAR + D3", "star", "d3", "PEPNet"),
        ("SAR-Net", "sar_net", "own", "PEPNet"),
        ("PLE + M2M-WG", "ple", "m2m_wg", "PEPNet"),
    ]
    # They share cells with the tables.
    assert table.methods[2].slug == find_table(1, None, "adi", None).method("STAR + D3").slug
    for base in ("star+d3", "STAR + D3"):
        bases = [m.base for m in find_table(None, None, "adi", base, names).methods]
        assert bases == ["STAR + D3", "STAR + D3", None, "STAR + D3", "STAR + D3"]


def test_a_backbone_of_another_package_is_a_method_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES._registered, "mine", Part(lambda choice: None))
    monkeypatch.setitem(HEADS._registered, "my_head", Part(lambda choice: None))
    mlp, own, headed = find_table(None, None, "adi", None, ["mlp", "mine", "mine+my_head"]).methods
    assert (own.name, own.backbone, own.base) == ("mine", "mine", mlp.name)
    assert (headed.name, headed.backbone, headed.head) == ("mine + my_head", "mine", "my_head")


KNOWN = (
    "mlp, adaptdhm, adasparse, adi, hamur, m2m, m3oe, mmoe, pepnet, plain, ple, sar_net, "
    "shared_bottom, star"
)
OTHERS = ", and those of packages that register their own: install or import them"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            ("mlp", "pepnt"),
            "methods names 'pepnt', but there is no backbone 'pepnt' (did you mean pepnet?); "
            f"there are {KNOWN}{OTHERS}",
        ),
        (
            ("MLP",),
            "methods names 'MLP', but there is no backbone 'MLP' (did you mean mlp?); there are "
            f"{KNOWN}{OTHERS}",
        ),
        (
            ("star+d",),
            "methods names 'star+d', but there is no head 'd'; there are d3, m2m_wg, own, "
            "pepnet_wg",
        ),
        (
            ("star+pepnet-wg",),
            "methods names 'star+pepnet-wg', but there is no head 'pepnet-wg' (did you mean "
            "pepnet_wg?); there are d3, m2m_wg, own, pepnet_wg",
        ),
        (("plain", "star", "mlp"), "methods names plain and mlp, which are one; leave one out"),
    ],
)
def test_methods_that_there_are_not_are_refused(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_table(None, None, "adi", None, methods)
    assert str(error.value) == message


def test_the_backbone_of_tables_is_none_of_methods() -> None:
    with pytest.raises(ConfigError) as error:
        find_table(None, None, "star", None, ("mlp",))
    assert str(error.value) == "on is star, but --methods names the backbones; leave --on out"


def test_the_papers_numbers_stand_beside_its_own_data_only() -> None:
    ours = Schema((Field("301", 4),), ("1", "2", "3"), "301")
    assert printed(ours, "ADI + D3", "auc") == (0.6261, 0.6029, 0.6230)
    assert printed(ours, "ADI + D1", "logloss") is None
    assert printed(ours, "MLP", "auc") is None
    assert printed(SCHEMA, "ADI + D3", "auc") is None


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        (["--table", "default"], "best"),
        (["--table=terms"], "best"),
        (["--methods", "mlp", "mmoe"], "best"),
        (["--table", "default", "--preset", "text"], "text"),
        (["--table", "1"], "text"),
        (["--figure", "3"], "text"),
    ],
)
def test_what_is_not_the_papers_is_compared_as_it_is_trained(flags: list[str], preset: str) -> None:
    assert parse(["compare", "data", *flags]).chosen() == PRESETS[preset]  # type: ignore[attr-defined]
