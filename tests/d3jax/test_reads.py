"""What is said to be read changes what is computed, and what is not changes nothing of it."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from d3jax.adapters.d3 import weigh_rows
from d3jax.base import Feedback, Mode, Output
from d3jax.batch import Batch, Field, Schema
from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.parameters import initialize
from d3jax.parts import build_adapter, build_model, build_trainer, refusal
from d3jax.reads import NEEDS, get, idle, lacking, put, refuse_idle
from d3jax.registry import ADAPTERS, BACKBONES, HEADS, needs_of, section_class, section_names
from d3jax.training.sharding import make_mesh
from tests.cases import cases

pytestmark = pytest.mark.trains

SCHEMA = Schema(
    (Field("user", 9), Field("item", 7), Field("place", 4)),
    ("home", "slot"),
    scenario_field="place",
    user_field="user",
    item_field="item",
)
ROWS = 8

SMALL = {
    "model.embedding_dim": 4,
    "model.bottom_layers": (6, 5),
    "model.tower_layers": (4,),
    "d3.field_hidden": 3,
    "d3.width": 5,
    "d3.gate_layers": (4,),
    "train.batch_size": ROWS,
}

CHOICES: list[dict[str, Any]] = [
    {"model.backbone": backbone, "model.head": head, "d3.parts": parts}
    for backbone in BACKBONES.names()
    for head, parts in [
        ("own", "d3"),
        ("m2m_wg", "d3"),
        ("pepnet_wg", "d3"),
        ("d3", "d1"),
        ("d3", "d2"),
        ("d3", "d3"),
    ]
]
QUICK_BACKBONES = ("plain", "m2m", "star")
QUICK = [
    choices
    for choices in CHOICES
    if choices["model.backbone"] in QUICK_BACKBONES
    and (
        choices["model.head"] == "own"
        or choices.items() >= {"model.head": "d3", "d3.parts": "d3"}.items()
    )
]
WIDE = ("residual", "crosses")
SPECIAL: list[dict[str, Any]] = [
    *({"model.backbone": name, "d3.form": "official"} for name in ("plain", "adi", "mmoe")),
    {"model.backbone": "plain", "d3.form": "official", "d3.parts": "d1"},
    {"model.backbone": "m2m", "m2m.d3_place": "head"},
    {"model.backbone": "m2m", "m2m.d3_place": "head", "d3.form": "official"},
    *(
        {"model.backbone": "adi", "model.head": head, "adi.keep_forward": True, "d3.form": form}
        for head, form in [
            ("own", "text"),
            ("d3", "text"),
            ("d3", "official"),
            ("m2m_wg", "text"),
            ("pepnet_wg", "text"),
        ]
    ),
    {"model.backbone": "adi", "model.head": "own", "adi.shared_networks": 2},
    {"model.embedding_init": "normal"},
    {"balance.start_ratio": 1.0},
    {"model.backbone": "star", "balance.start_ratio": 1.0},
    *(
        {"model.head": "own", "adapter.adapter": name}
        for name in ("dwa", "dtp", "uncertainty", "share")
    ),
    {"d3.parts": "d2", "adapter.adapter": "gradnorm", "adapter.aggregation": "scenario_sum"},
    *({"model.backbone": "adasparse", "adasparse.form": form} for form in ("scaling", "binary")),
    {"model.backbone": "hamur", "hamur.adapters": 0},
    *(
        {"model.backbone": "mmoe", "mmoe.one_gate": True, "model.head": head}
        for head in ("own", "d3")
    ),
    {"optimizer.embedding_update": "lazy_adamw"},
    {"optimizer.embedding_update": "adagrad"},
    {"optimizer.schedule": "wsd"},
    *({"model.backbone": "plain", "model.head": "own", "model.wide": wide} for wide in WIDE),
    {"model.backbone": "plain", "d3.form": "adaptive", "d3.head_layers": (4,)},
]
CHOICES += SPECIAL


def configured(choices: dict[str, Any]) -> Config:
    """A small configuration with these choices; by sections, as some only go together."""
    config, given = Config(), SMALL | choices
    for section in dict.fromkeys(name.split(".")[0] for name in given):
        values = {
            name.split(".")[1]: value
            for name, value in given.items()
            if name.startswith(f"{section}.")
        }
        config = config.changed(
            **{section: dataclasses.replace(getattr(config, section), **values)}
        )
    return config


def setting_names() -> list[str]:
    """All settings of all parts."""
    return [
        f"{section}.{field.name}"
        for section in (*Config().shared, *section_names())
        for field in dataclasses.fields(getattr(Config(), section))
    ]


CONFIGS = {
    ", ".join(map(str, choices.values())): config
    for choices in CHOICES
    if refusal(SCHEMA, config := configured(choices)) is None
}
QUICK_NAMES = {", ".join(map(str, choices.values())) for choices in (*QUICK, *SPECIAL)}
MODEL_SETTINGS = [n for n in setting_names() if not n.startswith(("train.", "optimizer."))]


NAMED = {"model.backbone": BACKBONES, "model.head": HEADS, "adapter.adapter": ADAPTERS}


def other_values(name: str, value: Any) -> list[Any]:
    """Other values of a setting; of a choice, all."""
    section, key = name.split(".")
    kind = get_type_hints(type(getattr(Config(), section)))[key]
    if kind is bool:
        return [not value]
    if kind is int:
        return [value + 1]
    if kind is float:
        return [value * 0.5 + 0.2]
    if name in NAMED:
        return [other for other in NAMED[name].names() if other != value]
    if kind is str:
        return ["bottom.0.kernel"]
    if kind == tuple[int, ...]:
        return [(7, 3)]
    if kind == tuple[str, ...]:
        return [("user",), ("item", "place")]
    if name == "model.wide":  # What the data decide is none where there are no data.
        return [choice for choice in get_args(kind) if choice not in (value, "auto")]
    return [choice for choice in get_args(kind) if choice != value]


@cache
def batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (ROWS, 3)).astype(np.int32)
    label = rng.integers(0, 2, ROWS).astype(np.float32)
    rows = Batch(ids, (ids[:, 2] % 2).astype(np.int32), label, np.ones(ROWS, bool))
    return jax.tree.map(jnp.asarray, rows)


@cache
def arrays(config: Config) -> str:
    """The shapes of a model's parameters, quicker to tell than its program."""
    return str(jax.tree.map(lambda p: p.shape, build_model(SCHEMA, config).declared.params))


@cache
def program(config: Config) -> str:
    """All that decides what a model computes, in training and evaluation, step after step: how
    what matters starts, and how it goes on. What never reaches a logit or a loss is left out."""
    model = build_model(SCHEMA, config)
    adapter = build_adapter(config, model, 4)
    kept = (model.declared.params, model.declared.state, adapter.state)

    def step(kept: Any, rows: Batch, key: Any, number: Any) -> Any:
        params, state, memory = kept
        mode = Mode(train=True, key=key)
        output, state = model.apply(params, state, rows, mode)
        losses = adapter.row_losses(output.logits, rows.label)
        weights = adapter.row_weights(memory, output, rows, number, mode)
        norms = jnp.ones(2) if adapter.watched else None
        memory = adapter.update(memory, Feedback(output, rows, losses, norms), number, mode)
        evaluated, _ = model.apply(kept[0], kept[1], rows)
        return (params, state, memory), (weights * losses, evaluated.logits)

    start = jax.make_jaxpr(lambda key: initialize(kept, key))(jax.random.key(0))
    given = jax.eval_shape(lambda: initialize(kept, jax.random.key(0)))
    with jax.numpy_dtype_promotion("standard"):  # optax' bias correction relies on it
        whole = jax.make_jaxpr(step)(given, batch(), jax.random.key(0), jnp.zeros((), jnp.int32))
    count = len(jax.tree.leaves(given))
    used = [False] * count
    while True:
        traced, inputs = partial_eval.dce_jaxpr(whole.jaxpr, [*used, True, True])
        now = [before or after for before, after in zip(used, inputs[:count], strict=True)]
        if now == used:
            break
        used = now
    begun, _ = partial_eval.dce_jaxpr(start.jaxpr, used)
    text = f"{adapter.watched}\n{begun}\n{traced}\n{whole.consts}"
    return re.sub(r"0x[0-9a-f]+", "", text)


@pytest.mark.parametrize(
    "name",
    cases(CONFIGS, QUICK_NAMES),
)
def test_what_is_not_read_changes_nothing(name: str) -> None:
    """All such settings at once: the program is the same to the letter."""
    config = moved = CONFIGS[name]
    for setting in MODEL_SETTINGS:
        if lacking(config, setting) is not None:
            for value in other_values(setting, get(config, setting)):
                try:
                    moved = put(moved, setting, value)
                except ConfigError:
                    continue
    assert moved != config
    assert program(moved) == program(config)


def silent_values(config: Config, setting: str) -> list[Any]:
    """Values of a setting that change nothing though the configuration is said to read it."""
    silent = []
    for value in other_values(setting, get(config, setting)):
        try:
            changed = put(config, setting, value)
            if refusal(SCHEMA, changed) is not None or arrays(changed) != arrays(config):
                continue
            same = program(changed) == program(config)
        except ConfigError:
            continue
        if same and not _never_weighs(config, changed):
            silent.append(value)
    return silent


def _never_weighs(config: Config, changed: Config) -> bool:
    """D3 that never weighs a row is D2."""
    return config.balance.start_ratio == 1 and {config.d3.parts, changed.d3.parts} == {"d2", "d3"}


def readers(setting: str) -> list[str]:
    return [name for name, config in CONFIGS.items() if lacking(config, setting) is None]


@pytest.mark.parametrize("setting", [n for n in MODEL_SETTINGS if n != "model.table_layout"])
def test_what_is_read_changes_the_program(setting: str) -> None:
    """In the last of the configurations that read it; the slow test below looks at all."""
    found = readers(setting)
    assert found, f"no configuration of this file reads {setting}"
    assert silent_values(CONFIGS[found[-1]], setting) == [], found[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_is_read_anywhere_changes_the_program(name: str) -> None:
    config = CONFIGS[name]
    for setting in MODEL_SETTINGS:
        if setting != "model.table_layout" and lacking(config, setting) is None:
            assert silent_values(config, setting) == [], setting


OPTIMIZED = [n for n in setting_names() if n.startswith("optimizer.")]


@cache
def training_step(config: Config) -> str:
    """The whole step, optimizer and all."""
    mesh = make_mesh(jax.devices()[:1])
    with jax.numpy_dtype_promotion("standard"):
        trainer = build_trainer(SCHEMA, config, 4, mesh)
        traced = trainer.train_step.trace(trainer.abstract, batch())
    return re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))


@pytest.mark.parametrize("setting", OPTIMIZED)
def test_a_setting_of_the_optimizer_that_is_read_changes_the_step(setting: str) -> None:
    lazy = {"model.backbone": "plain", "model.head": "own"}
    asked = {
        "optimizer.cooldown": {"optimizer.schedule": "wsd"},
        "optimizer.own_decay": {"model.wide": "residual"},
    }.get(setting, {})
    config = configured(lazy | {"optimizer.embedding_update": "lazy_adamw"} | asked)
    assert lacking(config, setting) is None
    for value in other_values(setting, get(config, setting)):
        assert training_step(put(config, setting, value)) != training_step(config), value


def test_a_balance_of_scale_0_reads_nothing_of_what_it_scales() -> None:
    config = configured({"balance.complexity_scale": 0.0})
    scaled = {n for n in setting_names() if lacking(config, n) == "--complexity-scale above 0"}
    assert scaled == {
        f"balance.{n}" for n in ("lower", "upper", "entropy", "literal_sign", "minimum_std")
    }
    rng = np.random.default_rng(3)
    attention = jnp.asarray(rng.normal(size=(ROWS, 3, 3)), jnp.float32)
    output = Output(jnp.zeros(ROWS), attention, jnp.full((ROWS, 2), 0.5))

    def weights(config: Config) -> np.ndarray:
        adapter = weigh_rows(config.balance, 0)
        return np.asarray(adapter.row_weights((), output, batch(), jnp.ones((), int), Mode()))

    for name in scaled:
        for value in other_values(name, get(config, name)):
            np.testing.assert_array_equal(weights(put(config, name, value)), weights(config))
            scaling = configured({})
            assert name.endswith("std") or np.any(
                weights(put(scaling, name, value)) != weights(scaling)
            )


def test_every_rule_is_about_a_setting_or_a_section_and_what_it_asks_for_can_be_had() -> None:
    names = setting_names()
    for registry in (BACKBONES, HEADS, ADAPTERS):
        for name in registry.names():
            assert {f"{name}.{key}" for key in registry.find(name).needs} <= set(names), name
    rules = {**NEEDS, **{n: needs_of(*n.split(".")) for n in names if needs_of(*n.split("."))}}
    for name, needs in rules.items():
        assert name in names or section_class(name) is not None, name
        for need in needs:
            assert any(need.holds(config) for config in CONFIGS.values()), need.cure
            assert not all(
                need.holds(config)
                for config in (*CONFIGS.values(), configured({"balance.complexity_scale": 0.0}))
            ), need.cure


@pytest.mark.parametrize(
    ("choices", "changes", "message"),
    [
        (
            {"d3.form": "official"},
            {"d3.rank": 16},
            "--rank (d3.rank) is 16, but nothing here reads it; use --form te",
        ),
        ({"model.backbone": "star"}, {"d3.width": 9}, "use a --backbone other than star and sar_n"),
        (
            {"model.head": "m2m_wg"},
            {"d3.width": 9},
            "--width (d3.width) is 9, but nothing here rea",
        ),
        (
            {},
            {"mmoe.experts": 9},
            "--mmoe.experts (mmoe.experts) is 9, but nothing here reads it; "
            "use --backbone mmoe, or leave it out",
        ),
        ({}, {"model.embedding_scale": 0.5}, "use --embedding-init normal"),
        ({"model.head": "own"}, {"balance.start_ratio": 0.1}, "use --head d3 with --parts d3"),
        ({"d3.parts": "d2"}, {"balance.start_ratio": 0.1}, "use --head d3 with --parts d3"),
        ({"model.head": "own"}, {"dwa.temperature": 9.0}, "use --adapter dwa"),
    ],
)
def test_what_is_set_for_nothing_is_refused_by_name_value_and_cure(
    choices: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    before = configured(choices)
    config = before
    for name, value in changes.items():
        config = put(config, name, value)
    assert idle(before, before) == {}
    with pytest.raises(ConfigError, match=re.escape(message)):
        refuse_idle(config, idle(config, before))
    assert idle(config, config) == {}, "what the preset has is no change"
    assert idle(before, config) == {} or before != configured({}), "nor is a default"


def test_of_several_variants_one_that_reads_a_setting_is_enough() -> None:
    before = configured({"model.head": "own"})

    def both(config: Config) -> list[Config]:
        return [put(config, "model.head", head) for head in ("own", "d3")]

    config = put(before, "d3.width", 9)
    assert idle(config, before).keys() == {"d3.width"}
    assert idle(config, before, both) == {}
    config = put(before, "model.head", "m2m_wg")
    assert idle(config, before, both) == {
        "model.head": "leave it out, for what is compared sets it itself"
    }
