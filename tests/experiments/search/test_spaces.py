"""Every method is searched over what it reads, alike where it is shared, from what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from d3jax.data.synthetic import SyntheticConfig, synthetic
from d3jax.errors import ConfigError
from d3jax.heads import D3Options
from d3jax.parameters import named_leaves
from d3jax.parts import build_model
from d3jax.presets import PRESETS
from d3jax.reads import lacking, put
from d3jax.registry import BACKBONES, REGISTRIES, Part
from experiments.compare.tables import FIGURES, TABLES, Method
from experiments.search.spaces import (
    SHARED,
    SPACES,
    Range,
    draw,
    open_width,
    space_of,
    start,
)

SCHEMA = synthetic(SyntheticConfig(rows=3000)).schema
OWN = Config(model=ModelConfig(backbone="plain", head="own"))
RIVALS = {
    name: put(put(OWN, "model.head", name), "model.backbone", "adi")
    for name in ("d3", "m2m_wg", "pepnet_wg")
}
METHODS = {
    str(method): method
    for find in (*TABLES.values(), *FIGURES.values())
    for backbone in BACKBONES.names()
    for method in find(backbone).methods
}.values()
PARTS = [
    (kind, name, registry.find(name))
    for kind, registry in REGISTRIES.items()
    for name in registry.names()
]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_of_every_table_starts_as_it_is(preset: str) -> None:
    for method in METHODS:
        config = method.configure(PRESETS[preset], 0)
        for name in SPACES:
            if name == "paper" and not config.has_balance:
                continue
            space = space_of(name, config)
            given = optuna.trial.FixedTrial(start(space, config))
            assert draw(space, given, config) == config, (method, name)


def test_all_methods_have_the_same_space_of_what_they_share() -> None:
    spaces = [space_of("wide", method.configure(Config(), 0)) for method in METHODS]
    for setting in SHARED:
        having = [space[setting] for space in spaces if setting in space]
        assert having
        assert all(each == SHARED[setting] for each in having)
    everyone = {
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.embedding_decay",
        "model.embedding_dropout",
        "train.epochs",
    }
    assert all(everyone < space.keys() for space in spaces)


def test_a_space_holds_what_the_model_reads() -> None:
    for method in METHODS:
        config = method.configure(Config(), 0)
        space = space_of("wide", config)
        assert [lacking(config, setting) for setting in space] == [None] * len(space)
    star = space_of("wide", Method("STAR + D3", "star", "d3").configure(Config(), 0))
    assert {"star.gate_scale", "balance.start_ratio"} < star.keys()
    assert not {"d3.field_hidden", "d3.width", "d3.rank", "model.bottom_layers"} & star.keys()
    mmoe = space_of("wide", Method("MMoE", "mmoe").configure(Config(), 0))
    assert {"mmoe.experts", "mmoe.layers", "model.tower_layers"} < mmoe.keys()
    assert not [setting for setting in mmoe if setting.startswith(("d3.", "balance."))]


@pytest.mark.parametrize(("kind", "name", "part"), PARTS, ids=lambda given: str(given)[:20])
def test_a_part_declares_a_few_choices_with_its_default(kind: str, name: str, part: Part) -> None:
    bare = {"plain", "shared_bottom", "own", "none", "uncertainty"}
    assert len(part.space) in (range(1) if name in bare else range(1, 5))
    for setting, choices in part.space.items():
        assert 2 <= len(set(choices)) == len(choices) <= 5
        [default] = [
            getattr(options(), setting)
            for options in part.sections(name).values()
            if hasattr(options(), setting)
        ]
        assert default in choices or (name, setting) == ("d3", "width")


@pytest.mark.parametrize(("kind", "name", "part"), PARTS, ids=lambda given: str(given)[:20])
def test_every_choice_can_be_made(kind: str, name: str, part: Part) -> None:
    for setting, choices in part.space.items():
        for section, options in part.sections(name).items():
            if hasattr(options(), setting):
                for choice in choices:
                    put(Config(), f"{section}.{setting}", choice)


def test_what_is_generated_has_the_same_widths_for_all() -> None:
    spaces = {head: space_of("wide", config) for head, config in RIVALS.items()}
    assert spaces["m2m_wg"]["m2m_wg.width"] == spaces["pepnet_wg"]["pepnet_wg.width"]
    assert spaces["m2m_wg"]["m2m_wg.width"] == (16, 32, 64, 128)
    assert spaces["d3"]["d3.width"] == (16, 32, 64, 0)
    explicit = put(RIVALS["d3"], "d3.width", 64)
    assert space_of("wide", explicit)["d3.width"] == (16, 32, 64, 128)
    assert set(spaces["d3"]["d3.rank"]) == {0, 4, 8, 16, 32}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model that a configuration names."""
    network = build_model(SCHEMA, config).declared.params.network
    return {name: leaf.shape for name, leaf in named_leaves(network).items()}


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_an_open_width_is_what_the_model_makes_of_it(backbone: str) -> None:
    config = put(Config(), "model.backbone", backbone)
    assert shapes(config) == shapes(put(config, "d3.width", open_width(config)))


@pytest.mark.parametrize("head", ["m2m_wg", "pepnet_wg"])
def test_a_rivals_width_is_that_of_its_layer(head: str) -> None:
    as_before = shapes(RIVALS[head])
    assert any(128 in shape for shape in as_before.values())
    narrow = shapes(put(RIVALS[head], f"{head}.width", 48))
    assert not any(128 in shape for shape in narrow.values())
    assert any(48 in shape for shape in narrow.values())


@dataclass(frozen=True)
class MineOptions:
    """A backbone of another package."""

    layers: tuple[int, ...] = (5,)
    depth: int = 2


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Config:
    part = Part(lambda choice: None, MineOptions, space={"layers": [(), (9, 4)], "depth": (1, 2)})
    monkeypatch.setitem(BACKBONES._registered, "mine", part)
    return Config(model=ModelConfig(backbone="mine", head="own"))


def test_a_part_of_another_package_is_searched_over_its_own(mine: Config) -> None:
    space = space_of("wide", mine)
    assert space["mine.layers"] == ((), (9, 4), (5,))
    assert space["mine.depth"] == (1, 2)
    found = start(space, mine) | {"mine.layers": "9-4", "mine.depth": 1}
    assert draw(space, optuna.trial.FixedTrial(found), mine).mine == MineOptions((9, 4), 1)
    empty = draw(space, optuna.trial.FixedTrial(found | {"mine.layers": "none"}), mine)
    assert empty.mine.layers == ()


def test_a_space_of_what_the_part_lacks_is_refused(
    mine: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = BACKBONES.find("mine")._replace(space={"dept": (1, 2)})
    monkeypatch.setitem(BACKBONES._registered, "mine", part)
    with pytest.raises(ConfigError) as caught:
        space_of("wide", mine)
    assert str(caught.value) == (
        "the space of backbone mine has 'dept' (did you mean depth?), which is none of its "
        "settings; they are layers, depth"
    )


def test_the_start_is_a_choice_whatever_it_is() -> None:
    config = Config(
        model=ModelConfig(bottom_layers=(7,), embedding_dropout=0.35),
        d3=D3Options(field_hidden=5, rank=3, width=9),
        balance=BalanceOptions(start_ratio=0.726),
        train=TrainConfig(epochs=1),
    )
    space = space_of("wide", config)
    assert space["train.epochs"] == (2, 3, 4, 6, 10, 1)
    assert space["d3.width"] == (16, 32, 64, 128, 9)
    assert draw(space, optuna.trial.FixedTrial(start(space, config)), config) == config


@pytest.mark.parametrize("dropout", [round(0.05 * n, 2) for n in range(13)])
def test_dropout_may_be_any_twentieth(dropout: float) -> None:
    config = Config(model=ModelConfig(embedding_dropout=dropout))
    given = optuna.trial.FixedTrial(start(space_of("wide", config), config))
    assert draw(space_of("wide", config), given, config) == config


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        (
            "wide",
            {"optimizer": OptimizerConfig(learning_rate=0.5)},
            "--learning-rate (optimizer.learning_rate) is 0.5, but the search starts there and "
            "draws it of 0.0002 to 0.01; give one of these",
        ),
        (
            "wide",
            {"model": ModelConfig(embedding_dropout=0.33)},
            "--embedding-dropout (model.embedding_dropout) is 0.33, but the search starts there "
            "and draws it of 0.0 to 0.6 in steps of 0.05; give one of these",
        ),
        (
            "paper",
            {"balance": BalanceOptions(complexity_scale=2.0)},
            "--complexity-scale (balance.complexity_scale) is 2.0, but the search starts there and "
            "draws it of 0.0 to 1.0 in steps of 0.1; give one of these",
        ),
        (
            "paper",
            {"d3": D3Options(parts="d2")},
            "space paper varies D3's balance, which this model lacks; use --head d3 --parts d3, "
            "or --space wide",
        ),
    ],
)
def test_a_start_out_of_bounds_is_refused(
    space: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(space, Config(**changes))
    assert str(caught.value) == message


def test_the_papers_space_is_its_grid() -> None:
    space, seen = space_of("paper", Config()), set()
    for seed in range(30):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        balance = draw(space, study.ask(), Config()).balance
        weights = (
            balance.complexity_shift,
            balance.complexity_scale,
            balance.specificity_shift,
            balance.specificity_scale,
        )
        assert all(round(weight, 1) == weight and 0 <= weight <= 1 for weight in weights)
        seen.add(balance.start_ratio)
    assert seen == {0.0, 0.25, 0.5, 0.75, 1.0}
    nothing = start(space, Config()) | {
        "balance.complexity_shift": 0.0,
        "balance.complexity_scale": 0.0,
    }
    with pytest.raises(ConfigError, match="complexity_shift and complexity_scale are both 0"):
        draw(space, optuna.trial.FixedTrial(nothing), Config())


def test_a_draw_lies_in_the_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    space = space_of("wide", Config())
    for _ in range(20):
        trial = study.ask()
        config = draw(space, trial, Config())
        assert set(trial.params) == set(space)
        for setting, drawn in start(space, config).items():
            of = space[setting]
            assert drawn == trial.params[setting] or isinstance(of, Range)
            if isinstance(of, Range):
                assert of.holds(drawn)
