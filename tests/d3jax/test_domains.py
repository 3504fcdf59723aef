"""Rows are divided by scenario or by the values of fields, in every model that divides them."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.batch import EMPTY, Batch, Field, Schema
from d3jax.config import Config, ModelConfig
from d3jax.domains import AUTO, Domains, domains_of
from d3jax.errors import ConfigError
from d3jax.parameters import initialize
from d3jax.parts import build_model
from d3jax.reads import lacking
from d3jax.registry import BACKBONES
from tests.cases import cases

SCHEMA = Schema(
    (Field("item", 9), Field("device", 3), Field("tags", 6, slots=2), Field("place", 4)),
    ("home", "detail"),
    scenario_field="place",
    item_field="item",
)
DEVICES = dataclasses.replace(SCHEMA, scenarios=("unknown", "phone", "tv"), scenario_field="device")
"""The same rows where the scenarios are what the devices are."""


def batch_of(rows: int = 12) -> Batch:
    rng = np.random.default_rng(3)
    sizes = np.array([field.size for field in SCHEMA.fields])[SCHEMA.slot_field]
    ids = rng.integers(0, sizes, (rows, 5)).astype(np.int32)
    ids[::3, 3] = EMPTY
    label = rng.integers(0, 2, rows).astype(np.float32)
    batch = Batch(ids, (ids[:, 4] % 2).astype(np.int32), label, np.ones(rows, bool))
    return jax.tree.map(jnp.asarray, batch)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_values_and_domains_are_one_to_one(sizes: list[int]) -> None:
    fields = tuple(Field(f"f{n}", size) for n, size in enumerate(sizes))
    domains = domains_of(Schema(fields, ("only",)), [field.name for field in fields])
    ids = np.array(list(itertools.product(*map(range, sizes))), np.int32)
    batch = Batch(ids, np.zeros(len(ids), np.int32), np.zeros(len(ids)), np.ones(len(ids), bool))
    assert sorted(domains.of(batch)) == list(range(domains.number)) == list(range(len(ids)))


def test_without_fields_the_domains_are_the_scenarios_and_an_empty_value_is_unknown() -> None:
    batch = batch_of()
    assert domains_of(SCHEMA, ()) == domains_of(SCHEMA, AUTO) == Domains(2)
    assert (Domains(2).of(batch) == batch.scenario).all()
    empty = batch._replace(ids=batch.ids.at[0, 1].set(EMPTY))
    assert domains_of(SCHEMA, ["device"]).of(empty)[0] == 0


@pytest.mark.parametrize("backbone", cases(BACKBONES.names(), quick=["plain", "star", "mmoe"]))
@pytest.mark.parametrize("wide", ["none", "residual", "crosses"])
def test_a_model_divided_by_a_field_is_the_one_whose_scenarios_are_its_values(
    backbone: str, wide: str
) -> None:
    model = ModelConfig(backbone, "own", 4, wide=wide, domain=("device",))  # type: ignore[arg-type]
    config, batch = Config(model=model), batch_of()
    if lacking(config, "model.domain") is not None:
        return
    ours = build_model(SCHEMA, config)
    theirs = build_model(
        DEVICES, dataclasses.replace(config, model=dataclasses.replace(model, domain=()))
    )
    arrays = initialize(tuple(ours.declared), jax.random.key(0))
    by_device = batch._replace(scenario=batch.ids[:, 1])
    found, _ = ours.apply(*arrays, batch)
    expected, _ = theirs.apply(*arrays, by_device)
    np.testing.assert_array_equal(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["devise"],
            r"^--domain 'devise' is no field .did you mean device\?.; the fields are item, ",
        ),
        (["tags"], r"^--domain 'tags' has several values in a row, which is then in no one domain"),
        (["device", "device"], r"^--domain names 'device' twice; name it once$"),
        *(
            (
                given,
                rf"^--domain names '{given[0]}' among fields; name fields, or auto alone, or leave "
                "it out for the scenarios$",
            )
            for given in (["none"], ["auto", "device"])
        ),
    ],
)
def test_fields_that_are_refused(fields: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        domains_of(SCHEMA, fields)


def test_too_many_domains_are_refused() -> None:
    schema = Schema((Field("user", 9000), Field("item", 9)), ("only",))
    with pytest.raises(
        ConfigError, match=r"user item divides rows into 81,000 domains; at most 16"
    ):
        domains_of(schema, ["user", "item"])
