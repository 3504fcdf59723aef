"""Processes of their own: what goes in, what comes out, and what is said when one fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d3jax.typed import to_json
from experiments.bench import children
from experiments.bench.children import ChildError, Chosen, Request, TorchSettings, ask
from experiments.bench.variants import ALLOCATOR, variants

REQUEST = Request("time", variants("plain")[0], "tiny", 32, 0.01, 5)


def test_request_survives_json() -> None:
    chosen = Chosen(train=TorchSettings(2, True), latency=TorchSettings(1, False))
    request = replace(REQUEST, variant=variants("d3")[-1], folder="here", chosen=chosen)
    assert Request.from_json(json.loads(json.dumps(to_json(request)))) == request


@pytest.mark.slow
def test_d3jax_answers(tmp_path: Path) -> None:
    answer = ask(REQUEST)
    assert answer["train"]["rows_per_second"] > 0
    assert answer["train"]["first_seconds"] > 32 / answer["train"]["rows_per_second"]
    assert answer["score"]["steps"] >= 2
    assert set(answer["latency"]) == {"1", "5"}
    assert min(answer["latency"]["1"]) > 0
    assert answer["peak_megabytes"] > 100


@pytest.mark.slow
def test_reference_is_written(tmp_path: Path) -> None:
    assert ask(replace(REQUEST, action="reference", folder=str(tmp_path))) == {}
    with np.load(tmp_path / "results.npz") as results, np.load(tmp_path / "weights.npz") as weights:
        assert results["logits"].shape == (32,)
        assert results["losses"].shape == (2,)
        assert weights["embedding.table"].shape == (78, 16)
        shapes = {name: array.shape for name, array in weights.items()}
    with np.load(tmp_path / "gradients.npz") as gradients:
        assert {name: array.shape for name, array in gradients.items()} == shapes


def test_a_child_s_last_line_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(children.SIDES, "d3jax", "experiments.bench.nothing")
    with pytest.raises(ChildError, match=r"No module named experiments\.bench\.nothing"):
        ask(REQUEST)


def test_environment() -> None:
    tuned = next(variant for variant in variants("d3") if variant.name == "torch, tuned")
    probed, timed = (
        children._environment(replace(REQUEST, action=action, variant=tuned, folder="f"))
        for action in ("probe", "time")
    )
    assert probed.items() >= ALLOCATOR.items()
    assert probed["TORCHINDUCTOR_CACHE_DIR"] != timed["TORCHINDUCTOR_CACHE_DIR"]
    assert children._environment(REQUEST) == {}
