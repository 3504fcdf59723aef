"""A preset file holds what differs from the defaults, and reads back as the same settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from d3jax.config import Config
from d3jax.presets import PRESETS, read_preset
from experiments.search.preset_file import is_found, settings_of

STORED = sorted((Path(__file__).parents[3] / "experiments/results").glob("*/settings/*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_what_differs_reads_back_as_the_whole(name: str) -> None:
    assert Config.from_json(settings_of(PRESETS[name])) == PRESETS[name]


def test_a_default_is_left_out_and_an_empty_section_too() -> None:
    config = Config()
    assert settings_of(config) == {}
    changed = replace(config, train=replace(config.train, epochs=77))
    assert settings_of(changed) == {"train": {"epochs": 77}}


def test_there_are_stored_settings() -> None:
    assert len(STORED) == 38


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_stored_settings_repeat_no_default(path: Path) -> None:
    assert is_found(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["config"] == settings_of(read_preset(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}, "trials": {}}'])
def test_another_file_is_none_that_a_search_found(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert not is_found(path)
