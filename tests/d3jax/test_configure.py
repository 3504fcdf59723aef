"""Settings by name become the configuration that the flags of the same names would give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from d3jax.batch import Field, Schema
from d3jax.config import Config
from d3jax.configure import configure, settled
from d3jax.data.prepared import Prepared
from d3jax.errors import ConfigError
from d3jax.presets import PRESETS


def test_names_reach_their_sections() -> None:
    ours = configure("text", epochs=3, learning_rate=0.01, bottom_layers=[8, 4], field_hidden=3)
    theirs = PRESETS["text"].changed(
        model=replace(PRESETS["text"].model, bottom_layers=(8, 4)),
        d3=replace(PRESETS["text"].d3, field_hidden=3),
        optimizer=replace(PRESETS["text"].optimizer, learning_rate=0.01),
        train=replace(PRESETS["text"].train, epochs=3),
    )
    assert ours == theirs
    assert configure() == PRESETS["best"]


def test_a_section_tells_settings_of_one_name_apart() -> None:
    ours = configure("text", backbone="mmoe", mmoe={"layers": [8], "experts": 2})
    assert (ours.mmoe.layers, ours.mmoe.experts) == ((8,), 2)


def test_settings_that_need_each_other_are_set_together() -> None:
    """Gradnorm alone contradicts the other's default."""
    ours = configure(
        "text", backbone="mmoe", head="own", adapter="gradnorm", aggregation="scenario_sum"
    )
    assert (ours.adapter.adapter, ours.adapter.aggregation) == ("gradnorm", "scenario_sum")


def test_a_configuration_or_its_file_stands_in_for_a_preset(tmp_path: Path) -> None:
    config = replace(Config(), train=replace(PRESETS["text"].train, epochs=7))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"config": config.to_json()}))
    for given in (config, path, str(path)):
        assert configure(config=given, seed=5) == replace(
            config, train=replace(config.train, seed=5)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"preset": "bets"},
            r"^there is no preset 'bets' \(did you mean best\?\); there are best,",
        ),
        (
            {"preset": "text", "config": PRESETS["text"]},
            "^preset and config both give all settings; give one",
        ),
        (
            {"epoch": 3},
            r"^there is no setting 'epoch' \(did you mean epochs\?\); d3jax train --hel",
        ),
        (
            {"mmoe": {"expert": 3}},
            r"^there is no setting 'mmoe.expert' \(did you mean experts\?\); d3jax train --h",
        ),
        (
            {"backbone": "adi", "layers": (3,), "mmoe": {"experts": 3}},
            r"^'layers' is a setting of adi, mmoe; say of which, such as adi=\{'layers'",
        ),
        ({"epochs": 3, "train": {"epochs": 3}}, r"^train\.epochs is given twice; give it once$"),
        ({"epochs": 0}, r"^epochs is 0; it must be between 1 and"),
        (
            {"mmoe": {"experts": 3}},
            r"\(mmoe\.experts\) is 3, but nothing here reads it; use --backbone mmoe",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(**given)


@pytest.mark.parametrize(
    ("provenance", "wide"),
    [
        ({"split": {"method": "md5 of seed and key"}}, "crosses"),
        ({"split": {"method": "md5 of seed and user"}}, "crosses"),
        ({"split": {"method": "the latest rows by time"}}, "none"),
        ({"split": {"method": "the latest rows by md5 of seed and key"}}, "none"),
        ({"split": {"method": "test is a file of its own; what is not, by md5 of"}}, "none"),
        ({"source": "synthetic", "split": {"test": 0.2}}, "crosses"),
        ({}, "none"),
    ],
)
def test_the_split_decides_what_is_left_to_the_data(
    provenance: dict[str, Any], wide: str, tmp_path: Path
) -> None:
    prepared = Prepared(tmp_path, Schema((Field("user", 9),), ("home",)), provenance)
    config = configure(wide="auto", domain=())
    assert settled(config, prepared).model.wide == wide
    for other in ("none", "residual", "crosses"):
        chosen = configure(wide=other, domain=())
        assert settled(chosen, prepared) == chosen
