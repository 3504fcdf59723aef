from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig, completed, differences
from d3jax.errors import ConfigError
from d3jax.heads import D3Options

pytestmark = pytest.mark.trains


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (ModelConfig, {"embedding_dim": 0}, "embedding_dim is 0; it must be between 1 and 4096"),
        (ModelConfig, {"embedding_scale": 0.0}, "embedding_scale is 0.0; it must be between 1e-08"),
        (ModelConfig, {"embedding_scale": math.nan}, "embedding_scale is nan; it must be a finite"),
        (ModelConfig, {"bottom_layers": (8, 0)}, "bottom_layers holds 0; each width must be at l"),
        (ModelConfig, {"tower_layers": (-1,)}, "tower_layers holds -1; each width must be at leas"),
        (ModelConfig, {"bottom_layers": ()}, "bottom_layers is empty; the shared bottom needs at"),
        (D3Options, {"field_hidden": 0}, "field_hidden is 0; it must be between 1 and 65536"),
        (D3Options, {"width": 70000}, "width is 70000; it must be between 0 and 65536"),
        (D3Options, {"head_layers": (16, 0)}, "head_layers holds 0; each width must be at least 1"),
        (D3Options, {"gate_layers": (0,)}, "gate_layers holds 0; each width must be at least 1"),
        (BalanceOptions, {"start_ratio": 1.01}, "start_ratio is 1.01; it must be between 0 and 1"),
        (BalanceOptions, {"start_ratio": -0.1}, "start_ratio is -0.1; it must be between 0 and 1"),
        (
            BalanceOptions,
            {"complexity_shift": -1.0},
            "complexity_shift is -1.0; it must be between",
        ),
        (
            BalanceOptions,
            {"complexity_scale": 101.0},
            "complexity_scale is 101.0; it must be betwe",
        ),
        (
            BalanceOptions,
            {"specificity_shift": -0.5},
            "specificity_shift is -0.5; it must be betwe",
        ),
        (BalanceOptions, {"specificity_scale": math.nan}, "specificity_scale is nan; it must be"),
        (
            BalanceOptions,
            {"lower": 0.5, "upper": 0.4},
            "lower is 0.5; it must be between 0 and 0.4",
        ),
        (BalanceOptions, {"minimum_std": -1e-9}, "minimum_std is -1e-09; it must be between 0 and"),
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate is 0.0; it must be between 1e-12"),
        (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay is -1.0; it must be between 0 and"),
        (OptimizerConfig, {"embedding_decay": -1.0}, "embedding_decay is -1.0; it must be between"),
        (OptimizerConfig, {"warmup": 1.5}, "warmup is 1.5; it must be between 0 and 1"),
        (OptimizerConfig, {"average": 1.0}, "average is 1.0; it must be between 0 and 1"),
        (OptimizerConfig, {"clip_norm": -1.0}, "clip_norm is -1.0; it must be between 0 and 1e+30"),
        (
            OptimizerConfig,
            {"schedule": "wsd", "warmup": 0.5, "cooldown": 0.6},
            "warmup 0.5 and cooldown 0.6 are shares of the same steps, more than all of them",
        ),
        (TrainConfig, {"seed": -1}, "seed is -1; it must be between 0 and 2.14748e+09"),
        (TrainConfig, {"batch_size": 0}, "batch_size is 0; it must be between 1 and"),
        (TrainConfig, {"epochs": 0}, "epochs is 0; it must be between 1 and 100000"),
        (TrainConfig, {"evaluate_every": 0.0}, "evaluate_every is 0.0; it must be between 0.001"),
        (TrainConfig, {"patience": -1}, "patience is -1; it must be between 0 and 100000"),
        (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every is 0; it must be between 1 and"),
        (TrainConfig, {"log_every": 0}, "log_every is 0; it must be between 1 and"),
        (TrainConfig, {"workers": -1}, "workers is -1; it must be between 0 and 256"),
    ],
)
def test_a_setting_outside_its_range_is_named(
    config: type, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        config(**change)


@pytest.mark.parametrize("name", ["complexity", "specificity"])
def test_weights_that_are_all_zero_are_refused(name: str) -> None:
    message = f"{name}_shift and {name}_scale are both 0, .* set one of them above 0"
    with pytest.raises(ConfigError, match=message):
        BalanceOptions(**{f"{name}_shift": 0.0, f"{name}_scale": 0.0})
    BalanceOptions(**{f"{name}_shift": 0.0, f"{name}_scale": 0.1})


def test_the_edges_of_ranges_are_allowed() -> None:
    BalanceOptions(start_ratio=1.0, lower=0.0, upper=0.0, minimum_std=0.0)
    ModelConfig(embedding_dim=1, tower_layers=())
    D3Options(head_layers=(), gate_layers=(), width=1, field_hidden=1)
    TrainConfig(patience=0, workers=0)


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.balance.lower, config.balance.upper) == (0.1, 1.0)
    assert config.d3.attention_value == "text"
    assert not config.d3.attention_scaled
    assert not config.d3.detach_generator
    assert (config.optimizer.learning_rate, config.train.batch_size) == (1e-3, 2048)


def test_json_round_trip() -> None:
    config = Config(
        model=ModelConfig(bottom_layers=(7, 3)), d3=D3Options(parts="d1", head_layers=(4,))
    )
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert Config.from_json({}) == Config()


def test_an_unknown_key_is_named() -> None:
    message = r"d3\.widht is unknown to this d3jax \(did you mean width\?\); it knows .*outer_a"
    with pytest.raises(ConfigError, match=message):
        Config.from_json({"d3": {"widht": 3}})


def test_an_identity_of_before_a_setting_has_its_default() -> None:
    config = Config().to_json()
    del config["train"]["deterministic"], config["balance"]["lower"]
    old = {"config": config, "schema": {"scenarios": ["a"]}}
    now = {**old, "config": Config().to_json()}
    assert completed(old) == completed(now) == now
    off = replace(Config(), train=replace(Config().train, deterministic=False)).to_json()
    assert differences(completed(old), completed({**old, "config": off})) == [
        "config.train.deterministic: True -> False"
    ]
    rival = Config(model=ModelConfig(head="m2m_wg")).to_json()
    before = {name: section for name, section in rival.items() if name != "m2m_wg"}
    assert completed({"config": before}) == completed({"config": rival}) == {"config": rival}
    gone = {"config": {"train": {"tempo": 3}, "music": {"key": "d"}}}
    assert differences(completed(gone), completed({})) == [
        "config.music: {'key': 'd'} -> None",
        "config.train.tempo: 3 -> None",
    ]


def test_differences_name_the_leaf_and_both_values() -> None:
    ours = Config().to_json()
    theirs = Config(d3=D3Options(width=7), train=TrainConfig(seed=3)).to_json()
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == ["d3.width: 0 -> 7", "train.seed: 0 -> 3"]
    assert differences({"a": {"b": 1}}, {"a": {}, "c": 2}) == ["a.b: 1 -> None", "c: None -> 2"]


def test_an_unknown_choice_is_listed() -> None:
    with pytest.raises(ConfigError, match=r"d3\.parts is 'd4'; it must be one of d1, d2, d3"):
        Config.from_json({"d3": {"parts": "d4"}})
