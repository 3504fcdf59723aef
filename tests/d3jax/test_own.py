"""A model of one's own is trained, goes on, is served without its code, and is never mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import d3jax
from d3jax.cli import main
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.errors import CheckpointError, ConfigError
from d3jax.parameters import named_leaves
from d3jax.training.trainer import Trainer
from tests.flags import said

pytestmark = pytest.mark.trains

LOOP: dict[str, Any] = {"epochs": 2, "batch_size": 256, "patience": 0, "log_every": 4}


def a_trainer(prepared: Path, experts: int = 2, **settings: Any) -> Trainer:
    data = d3jax.open_prepared(prepared)
    head = d3jax.d3(field_hidden=3, width=5, rank=2, gate_layers=(4,))
    backbone = d3jax.mmoe(head, experts=experts, layers=(6,))
    model = d3jax.model(data.schema, backbone, embedding_dim=4)
    loss = d3jax.d3_balance(start=0.5)
    return d3jax.trainer(model, optax.sgd(0.05, momentum=0.9), loss=loss, **settings)


@pytest.fixture(scope="module")
def fitted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with jax.numpy_dtype_promotion("standard"):
        run = d3jax.fit(
            a_trainer(prepared), prepared, tmp_path_factory.mktemp("own") / "run", **LOOP
        )
    return run.directory


def some_rows(prepared: Path) -> dict[str, list[str]]:
    """Raw rows of any values, with the scenarios by name."""
    schema = d3jax.open_prepared(prepared).schema
    rows = {field.name: ["1", "2", "nothing"] for field in schema.fields}
    place = schema.scenario_field
    return rows | {place or "scenario": list(schema.scenarios)}


def test_the_run_knows_its_weights_and_its_export_predicts_the_same(
    fitted: Path, prepared: Path
) -> None:
    run = d3jax.fit(a_trainer(prepared), prepared, fitted, **LOOP)
    rows = some_rows(prepared)
    ours, served = run.predict(rows), d3jax.load(fitted)
    assert isinstance(served, d3jax.Exported)
    np.testing.assert_allclose(served.predict(rows), ours, atol=1e-6)
    metrics = json.loads((fitted / "evaluation.json").read_text())
    assert run.evaluate("test").overall.auc == pytest.approx(metrics["overall"]["auc"], abs=1e-6)
    inspected = run.inspect_rows(rows)
    assert inspected.gate is not None
    np.testing.assert_allclose(inspected.gate.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    fitted: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import d3jax.own as own

    out, keep = tmp_path / "run", own.interrupting
    monkeypatch.setattr(own, "interrupting", lambda: _stopping_after(5))
    with pytest.raises(d3jax.Preempted, match="stopped after step 5"):
        d3jax.fit(a_trainer(prepared), prepared, out, **LOOP)
    monkeypatch.setattr(own, "interrupting", keep)
    again = d3jax.fit(a_trainer(prepared), prepared, out, **LOOP)
    whole = d3jax.fit(a_trainer(prepared), prepared, fitted, **LOOP)
    ours, theirs = (named_leaves(each.best.state) for each in (again, whole))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


class _stopping_after:
    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> Any:
        return lambda step: step >= self.step

    def __exit__(self, *error: object) -> None:
        return None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 3}, CheckpointError, r"other settings or data \(config.train.epochs: 2 -> 3\)"),
        ({"seed": 1}, ConfigError, "^seed is a setting of the trainer; give it to d3jax.trainer$"),
        ({"slices": 2}, ConfigError, "^slices is a setting of the trainer; give it to d3jax.tr"),
        ({"epoch": 3}, ConfigError, r"^there is no setting 'epoch' \(did you mean epochs\?\)"),
        ({"epochs": 0}, ConfigError, "^epochs is 0; it must be between 1 and"),
        ({"batch_size": 100}, ConfigError, "batch_size is 100, which 8 devices can't share evenly"),
        ({"monitor_scenario": "moon"}, ConfigError, "^monitor_scenario is 'moon'; the data has"),
    ],
)
def test_what_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str, fitted: Path, prepared: Path
) -> None:
    with pytest.raises(error, match=message):
        d3jax.fit(a_trainer(prepared), prepared, fitted, **(LOOP | settings))


def test_another_model_does_not_go_on_with_a_run(fitted: Path, prepared: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other settings or data \(arrays\.\S+: float32\["):
        d3jax.fit(a_trainer(prepared, experts=3), prepared, fitted, **LOOP)


def test_models_side_by_side_and_other_data_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^fit trains one model; make the trainer without mod"):
        d3jax.fit(a_trainer(prepared, models=2), prepared, tmp_path / "run", **LOOP)
    other = tmp_path / "other"
    write(synthetic(SyntheticConfig(rows=3000, users=40, items=50, smallest_share=0.05)), other)
    with pytest.raises(ConfigError, match=r"^the data have another schema than the model: .*user"):
        d3jax.fit(a_trainer(prepared), other, tmp_path / "run", **LOOP)
    assert not (tmp_path / "run").exists()


def test_the_command_says_that_it_has_no_code_for_it(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["evaluate", str(fitted)])
    told = said(capsys)
    assert f"{fitted} holds a model of one's own, whose code d3jax doesn't have; call" in told
    assert f"which predicts by the program in {fitted / 'model'}" in told
