"""The examples run as they are, and the example package adds a backbone by its entry point."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3jax.cli import main
from tests.flags import SMALL_PLAIN
from tests.test_readme import needs_front_door

EXAMPLES = Path(__file__).parents[2] / "experiments/examples"
PACKAGE = EXAMPLES / "residual_package"


@needs_front_door
def test_a_csv_of_one_s_own(tmp_path: Path) -> None:
    from experiments.examples.own_csv import main as run

    home, cart, _ = run(tmp_path / "new")
    assert 0 < home < cart < 1  # on a phone one clicks in the cart's tab


@needs_front_door
def test_d3_in_a_loop_of_one_s_own() -> None:
    from experiments.examples.own_loop import main as run

    assert run(steps=160) < 0.6  # a constant has 0.6931


@needs_front_door
@pytest.mark.slow
def test_a_backbone_of_one_s_own_is_compared(prepared: Path, tmp_path: Path) -> None:
    from experiments.examples.own_backbone import main as run

    small = {"embedding_dim": 4, "field_hidden": 3, "width": 5, "gate_layers": (6,)}
    run(prepared, tmp_path / "out", seeds=1, epochs=1, batch_size=2048, **small)
    text = (tmp_path / "out/scenario-gates.md").read_text(encoding="utf-8")
    for method in ("MLP", "Shared-Bottom", "Scenario gates", "Scenario gates + D3"):
        assert f"| {method} | 1 |" in text


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package, as pip would install it."""
    from d3jax import registry

    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tmp_path / "site" / f"scenario_residual-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.syspath_prepend(PACKAGE)
    registry._points.cache_clear()
    yield
    registry._points.cache_clear()


@needs_front_door
@pytest.mark.usefixtures("installed")
def test_a_package_adds_a_backbone(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--backbone", "scenario_residual", "--head", "own", "--scenario-residual.layers", "8"]
    plain = SMALL_PLAIN[: SMALL_PLAIN.index("--bottom-layers")]
    main(["train", str(prepared), "--out", str(run), "--epochs", "1", *flags, *plain])
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["scenario_residual"] == {"layers": [8]}
    main(["train", "--resume", str(run)])
    main(["evaluate", str(run)])
    assert "overall" in capsys.readouterr().out
    main(["export", str(run), str(tmp_path / "model")])
    assert (tmp_path / "model").is_dir()


def test_the_package_is_short() -> None:
    files = [path for path in PACKAGE.iterdir() if path.suffix in (".py", ".toml")]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) <= 60
