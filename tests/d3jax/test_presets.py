"""Every preset can be built, and is what its name gives on the command line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.base import Mode
from d3jax.batch import Batch, Field, Schema
from d3jax.cli import parse
from d3jax.config import Config, TrainConfig
from d3jax.errors import ConfigError
from d3jax.parameters import count, named_leaves
from d3jax.parts import build_model, build_trainer
from d3jax.presets import PRESETS, read_preset
from d3jax.settings import PresetName, Settings
from d3jax.training.sharding import place_batch
from d3jax.verbs import Train

pytestmark = pytest.mark.trains

SCHEMA = Schema(
    (Field("user", 20), Field("item", 15), Field("place", 4)), ("home", "slot"), "place"
)


def rows(number: int) -> Batch:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, field.size, number) for field in SCHEMA.fields], axis=1)
    return Batch(
        ids=ids.astype(np.int32),
        scenario=rng.integers(0, 2, number).astype(np.int32),
        label=rng.integers(0, 2, number).astype(np.float32),
        mask=np.ones(number, bool),
    )


def test_the_command_line_offers_all_presets() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("spelling", ["--preset {}", "--preset={}"])
def test_a_preset_on_the_command_line_is_the_configuration(name: str, spelling: str) -> None:
    verb = parse(["train", *spelling.format(name).split()])
    assert isinstance(verb, Train)
    assert verb.chosen() == PRESETS[name]


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        (["train"], PRESETS["synthetic"]),
        (["train", "data"], PRESETS["best"]),
        (["train", "data", "--preset", "synthetic"], PRESETS["synthetic"]),
        (["compare", "data", "--table", "1"], PRESETS["text"]),
        (["search", "data"], PRESETS["text"]),
    ],
)
def test_without_a_name_it_depends_on_the_verb_and_the_data(
    arguments: list[str], preset: Config
) -> None:
    verb = parse(arguments)
    assert isinstance(verb, Settings)
    assert verb.chosen() == preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json_and_builds_a_run(name: str) -> None:
    config = PRESETS[name]
    assert Config.from_json(config.to_json()) == config
    trainer = build_trainer(SCHEMA, config, steps_per_epoch=3)
    table = trainer.abstract.params.embedding
    assert count(table) == 512 * config.model.embedding_dim  # 20 + 15 + 4 rows, padded
    assert count(trainer.abstract.params.network) > 1000
    network, moments = trainer.abstract.params.network, trainer.abstract.optimizer_state
    assert count(moments.network[0].mu) == count(moments.network[0].nu) == count(network)
    assert count(moments.table[0].mu) == count(moments.table[0].nu) == count(table)


@pytest.mark.slow
def test_the_official_preset_takes_a_step() -> None:
    config = dataclasses.replace(PRESETS["official"], train=TrainConfig(batch_size=64, epochs=1))
    trainer, batch = build_trainer(SCHEMA, config, steps_per_epoch=10), rows(64)
    state = trainer.init()
    before = jax.device_get(state)
    after, info = trainer.train_step(state, place_batch(trainer.mesh, batch))
    # Its batch norms make a row's logit depend on the whole batch, spread over eight devices.
    model = build_model(SCHEMA, config)
    output, _ = jax.jit(lambda p, s, b: model.apply(p, s, b, Mode(train=True)))(
        before.params, before.model_state, jax.tree.map(jnp.asarray, batch)
    )
    logits = np.asarray(output.logits, np.float64)
    expected = np.mean(np.logaddexp(0, logits) - batch.label * logits)
    assert info.cross_entropy == pytest.approx(expected, abs=1e-6)
    assert info.loss == pytest.approx(expected, abs=1e-6), "no row is weighed before step 7"
    moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), before, after)
    assert all(jax.tree.leaves(moved.model_state))
    # The authors' code stops the generator's gradient, so their attention never learns.
    still = {name for name, was in named_leaves(moved.params).items() if not was}
    attention = {name for name in named_leaves(before.params) if ".attention." in name}
    # A kernel's offset moves all rows alike, which the batch norm behind it takes away again.
    assert still == attention | {"network.generator.kernel_offset"}


ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "experiments" / "results").rglob("settings/*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_stored_settings_are_still_read(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))["config"]
    read = read_preset(path).to_json()
    for section, settings in stored.items():
        assert read[section].items() >= settings.items(), section


def test_there_are_stored_settings() -> None:
    assert len(RESULTS) > 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "it has no config"),
        ("{}", "it has no config"),
        ('{"config": null}', "the whole is None; it must be an object"),
        (
            '{"config": {"train": {"deterministic": "false"}}}',
            "train.deterministic is 'false'; it ",
        ),
        ('{"config": {"train": {"seed": 1, "seed": 2}}}', "the key 'seed' appears twice in one"),
        ('{"config": {"balance": {"lower": NaN}}}', "NaN is no number of JSON"),
        ('{"config": {"balance": {"upper": 1e999}}}', "balance.upper is inf; it must be a finite"),
        (
            '{"config": {"train": {"seed": 9223372036854775808}}}',
            "train.seed is 9223372036854",
        ),
    ],
)
def test_what_is_no_preset_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f"{path} is no preset file (")) as error:
        read_preset(path)
    assert message in str(error.value)
    assert str(error.value).count(str(path)) == 1


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "experiments" / "results").rglob("*.md"))]
WRITTEN = sorted(
    {
        (re.sub(r"\$\w+", "1", command.replace("\\\n", " ")), path.name)
        for path in DOCUMENTS
        for command in re.findall(
            r"d3jax (?:train|compare|search|chaos)(?: [\w./$=-]+| \\\n *)*", path.read_text("utf-8")
        )
    }
)


@pytest.mark.parametrize(("command", "document"), WRITTEN)
def test_the_commands_that_are_written_down_are_taken(command: str, document: str) -> None:
    parse(command.split()[1:])


def test_commands_are_written_down() -> None:
    assert len(WRITTEN) > 15
