"""What is no argument at all is refused by name, at the front door, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import optax
import pytest

import d3jax
from d3jax.base import Model
from d3jax.batch import Field, Schema
from d3jax.training.trainer import Trainer

SCHEMA = Schema((Field("user", 9), Field("item", 7)), ("home", "slot"))
NO_PATHS = (None, 5, b"clicks", [], "")


# As users have them: the hook of the tests' session would check their types first.
make_model, make_trainer = unwrap(d3jax.model), unwrap(d3jax.trainer)
placed, init = unwrap(Trainer.placed), unwrap(Trainer.init)


def model() -> Model:
    return d3jax.model(SCHEMA, d3jax.plain(d3jax.dense_head((4,))), embedding_dim=2)


def trainer(**settings: Any) -> Trainer:
    return make_trainer(model(), optax.sgd(0.1), **settings)


PATHS: dict[str, Callable[[Any, Path], Any]] = {
    "directory": lambda value, tmp: d3jax.open_prepared(value),
    "path": lambda value, tmp: d3jax.load(value),
    "out": lambda value, tmp: d3jax.train(tmp, value),
    "out of fit": lambda value, tmp: d3jax.fit(trainer(), tmp, value),
    "config": lambda value, tmp: d3jax.train(tmp, tmp / "run", config=value),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in PATHS for value in NO_PATHS if (name, value) != ("config", None)],
)
def test_what_is_no_path(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(d3jax.ConfigError, match=rf"^{name.partition(' ')[0]} is .*; give .* Path$"):
        PATHS[name](value, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d3jax.train("x", "y", preset=5), "preset is 5; give a preset's name"),
        (lambda: make_model(None, None), "schema is None; give data.schema of a prepared"),
        (lambda: make_model(SCHEMA, "mmoe"), "backbone is 'mmoe'; give what a backbone returns"),
        (
            lambda: make_model(SCHEMA, d3jax.plain(d3jax.dense_head(())), domain="user"),
            "domain is 'user'; give the names of fields, such as",
        ),
        (
            lambda: make_model(SCHEMA, d3jax.mmoe),
            "backbone is the function mmoe; give what a backbone",
        ),
        (lambda: make_trainer(None, None), "model is None; give what d3jax.model returns"),
        (lambda: make_trainer(model(), 0.1), "optimizer is 0.1; give an optax transformation"),
        (
            lambda: make_trainer(model(), optax.adamw),
            "optimizer is the function adamw; give an optax transformation",
        ),
        (lambda: trainer(loss="d3"), "loss is 'd3'; give a LossAdapter, such as d3jax.d3_balance"),
        (lambda: trainer(steps=0), "steps is 0; it must be between 1 and"),
        (lambda: trainer(steps=-1), "steps is -1; it must be between 1 and"),
        (lambda: trainer(steps=2.5), "steps is 2.5; give the number of the run's steps"),
        (lambda: placed(trainer(), None), "batch is None; give a d3jax.Batch"),
        (lambda: d3jax.fit(None, "x", "y"), "trainer is None; give what d3jax.trainer returns"),
        (lambda: d3jax.register("backbone", 5, model), "name is 5; give a Python identifier"),
        (lambda: d3jax.register("backbone", "mine", None), "build is None; give a function of"),
        (
            lambda: d3jax.register("backbone", "mine", model, dict),
            "options is <class 'dict'>; give a frozen dataclass",
        ),
    ],
)
def test_what_is_no_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(d3jax.ConfigError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("seed", [1.5, True, "a", -1, 2**31, 2**32, [1, 2], None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    made = trainer()
    if seed is None:
        init(made, seed)  # The trainer's own.
        return
    with pytest.raises(
        d3jax.ConfigError, match=r"^(seed is .*; give a whole number|2 seeds for 1)"
    ):
        init(made, seed)
