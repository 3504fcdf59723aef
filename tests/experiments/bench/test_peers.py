"""The commands: what is asked of the processes, what is refused, printed, written and drawn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import peers, turns
from experiments.bench.children import ChildError, Chosen, Request, TorchSettings
from experiments.bench.limits import Limits
from experiments.bench.peers import PeersBench, ready
from experiments.bench.variants import TUNED, variants

BEST = Chosen(train=TorchSettings(2, True))
RATE = {"rows_per_second": 100.0, "first_seconds": 1.0, "others": 0.0, "faults": 0.0, "steps": 2}


class Children:
    """Answers instead of processes, and remembers what was asked."""

    def __init__(self, differs: tuple[str, ...] = ()) -> None:
        self.asked: list[Request] = []
        self.differs = differs

    def ask(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        own = request.variant.side == "torch" and request.variant.sparse
        return {
            "reference": {},
            "probe": {"chosen": asdict(BEST)},
            "check": {"differs": list(self.differs) if own else []},
            "time": {
                "train": RATE,
                "score": RATE,
                "peak_megabytes": 99.0,
                "latency": {"1": [0.1], "500": [0.2]},
            },
        }[request.action]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    made = Children()
    for module in (peers, turns):
        monkeypatch.setattr(module, "ask", lambda request: made.ask(request))
    monkeypatch.setattr(peers, "measure_limits", lambda: Limits(1e12, 1e10, "numpy"))
    return made


def request_for(name: str) -> Request:
    variant = next(variant for variant in variants("plain") if variant.name == name)
    return Request("reference", variant, "tiny", 64, 3.0, 500, folder="weights")


def test_tuned_torch_is_probed_then_checked(children: Children) -> None:
    timed = ready(request_for(TUNED))
    assert (timed.action, timed.chosen, timed.seconds) == ("time", BEST, 3.0)
    assert [(asked.action, asked.chosen) for asked in children.asked] == [
        ("probe", Chosen()),
        ("check", BEST),
    ]


@pytest.mark.parametrize("name", ["d3jax", "fuxictr DNN"])
def test_models_without_the_reference_s_weights_are_not_checked(
    children: Children, name: str
) -> None:
    assert ready(request_for(name)).action == "time"
    assert children.asked == []


def test_torch_that_differs_is_not_timed(children: Children) -> None:
    children.differs = ("logits differ by up to 3", "and", "so", "on")
    with pytest.raises(ChildError, match=r"differs from d3jax: logits differ by up to 3; and; so$"):
        ready(request_for("torch, tuned, sparse table"))


def test_peers(children: Children, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    children.differs = ("loss of step 1",)
    bench = PeersBench(
        workloads=("tiny",),
        families=("plain",),
        rounds=2,
        out=tmp_path / "peers.json",
        picture=tmp_path / "peers.png",
    )
    peers.main(bench)
    results = json.loads((tmp_path / "peers.json").read_text())
    (title,) = results["results"]
    group = results["results"][title]
    assert title == "plain at tiny, batch 2,048"
    expected = [variant.name for variant in variants("plain")]
    refused = "torch, tuned, sparse table"
    assert [line["variant"] for line in group["lines"]] == [n for n in expected if n != refused]
    assert group["failures"] == {refused: "differs from d3jax: loss of step 1"}
    assert len(group["answers"]["d3jax"]) == 2
    assert group["torch_settings"][TUNED]["train"] == {"threads": 2, "compiled": True}
    assert results["machine"]["flops"] == 1e12
    assert (tmp_path / "peers.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert f"not run: {refused} ({title}): differs from d3jax: loss of step 1" in printed
    timed = [asked.variant.name for asked in children.asked if asked.action == "time"]
    assert timed == 2 * [name for name in expected if name != refused]


def test_only_some_variants(children: Children) -> None:
    peers.main(PeersBench(("tiny",), ("mmoe",), only=("torch, as shipped",), rounds=1))
    assert [(asked.action, asked.variant.name) for asked in children.asked] == [
        ("reference", "d3jax"),
        ("check", "torch, as shipped"),
        ("time", "torch, as shipped"),
    ]


def test_a_failure_is_told(children: Children, capsys: pytest.CaptureFixture[str]) -> None:
    answer = children.ask

    def fail(request: Request) -> dict[str, Any]:
        if request.action == "time":
            raise ChildError("Out of memory")
        return answer(request)

    children.ask = fail  # type: ignore[method-assign]
    peers.main(PeersBench(("tiny",), ("mmoe",), only=("d3jax",), rounds=2))
    assert "not run: d3jax (mmoe at tiny, batch 2,048): Out of memory" in capsys.readouterr().out
