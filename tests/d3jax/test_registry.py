"""A part is found by its name, whoever registers it, and what can't be is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from d3jax.batch import Field, Schema
from d3jax.choice import BackboneChoice
from d3jax.config import Config, ModelConfig
from d3jax.errors import ConfigError
from d3jax.heads import dense_head
from d3jax.parts import build_backbone
from d3jax.registry import BACKBONES, REGISTRIES, owner_of, register, section_class, section_names

SCHEMA = Schema((Field("user", 5), Field("place", 3)), ("a", "b"), "place")


@dataclass(frozen=True)
class DeepOptions:
    """A backbone of somebody's own."""

    layers: int = 2


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Only for one test are parts registered."""
    before = {kind: dict(registry._registered) for kind, registry in REGISTRIES.items()}
    yield
    for kind, registry in REGISTRIES.items():
        registry._registered = before[kind]


def test_a_registered_backbone_has_a_section_and_gets_its_settings() -> None:
    asked: list[BackboneChoice] = []

    def build(choice: BackboneChoice) -> Any:
        asked.append(choice)
        return choice.head(dense_head())

    register("backbone", "deep", build, DeepOptions)
    assert "deep" in BACKBONES.names()
    assert section_class("deep") is DeepOptions
    assert "deep" in section_names()
    assert owner_of("deep") == ("backbone", "deep")
    config = Config(model=ModelConfig(backbone="deep", head="own"), deep=DeepOptions(5))
    assert Config.from_json(config.to_json()) == config
    build_backbone(SCHEMA, config)
    assert asked[0].options == DeepOptions(5)


def test_a_section_that_is_called_otherwise_than_its_part_is_found() -> None:
    assert owner_of("balance") == ("head", "d3")
    assert section_class("balance") is type(Config().balance)
    assert owner_of("nothing") is section_class("nothing") is None


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("layer", "mine", "^kind is 'layer'; it must be one of backbone, head, adapter$"),
        ("backbone", "mmoe", "^there is a backbone called 'mmoe' already; choose another name$"),
        ("adapter", "mmoe", "^there is a backbone called 'mmoe' already; choose another name$"),
        ("head", "train", "^a head can't be called 'train'; take a Python identifier other than"),
        ("head", "a-b", "^a head can't be called 'a-b'; take a Python identifier other than ada"),
    ],
)
def test_what_can_not_be_registered(kind: Any, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register(kind, name, lambda choice: None)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    told = "backbone is 'mmoee' (did you mean mmoe?); it must be one of "
    with pytest.raises(ConfigError, match=re.escape(told)):
        ModelConfig(backbone="mmoee")
