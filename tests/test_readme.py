"""What the README shows in Python runs as it is printed there, and what it names is there."""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.cli import find_verbs, main
from data_pipelines.sources import find_sources

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EVIDENCE = ROOT / "experiments/results/README.md"

FRONT_DOOR = True
"""Whether `import d3jax` gives what README and the examples use: the one switch for their tests."""

needs_front_door = pytest.mark.skipif(not FRONT_DOOR, reason="import d3jax has no front door yet")


def run_block(mark: str, folder: Path) -> dict[str, Any]:
    """Return the names that are left by the one Python block which contains `mark`."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [block] = [block for block in blocks if mark in block]
    path = folder / "block.py"
    path.write_text(block, encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clicks`, made by README's own command from a file with README's columns."""
    folder = tmp_path_factory.mktemp("readme")
    draw = np.random.default_rng(0)
    rows = [
        f"u{draw.integers(40)},i{draw.integers(20)},{draw.choice(['home', 'cart'])},"
        f"{draw.choice(['phone', 'tv'])},{draw.integers(2)}"
        for _ in range(3000)
    ]
    (folder / "clicks.csv").write_text("\n".join(["user,item,tab,device,click", *rows]))
    [command] = re.findall(r"^d3jax (prepare table clicks\.csv .*?[^\\])\n", README, re.M | re.S)
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(command.replace("\\\n", " ").split())
    finally:
        os.chdir(before)
    return folder


def test_the_command_for_a_csv_makes_a_prepared_directory(clicks: Path) -> None:
    main(["check", str(clicks / "clicks")])


def test_a_line_is_not_longer_than_the_code_s() -> None:
    for text in (README, EVIDENCE.read_text(encoding="utf-8")):
        long = [line for line in text.splitlines() if len(line) > 105 and line[0] not in "|<"]
        assert long == []


def test_files_folders_and_pictures_that_are_named_are_there() -> None:
    named = re.findall(r'(?:\]\(|src=")([^)"]+)', README)
    named += [name for name in re.findall(r"`([\w./]+/[\w./]*)`", README) if name[0].islower()]
    found = [name for name in named if _find(name)]
    assert len(named) > 15
    missing = set(named) - set(found)
    assert [name for name in missing if FRONT_DOOR or not name.startswith("adapters/")] == []
    pictures = re.findall(r"\]\(([^)]+\.png)\)", EVIDENCE.read_text(encoding="utf-8"))
    assert len(pictures) > 4
    assert all((EVIDENCE.parent / picture).is_file() for picture in pictures)


def _find(name: str) -> bool:
    """Return whether there is such a path, in the checkout or in a room."""
    rooms = (ROOT, ROOT / "d3jax", ROOT / "data_pipelines", ROOT / "experiments")
    return any((room / name).exists() for room in rooms) or name.startswith("runs/")


def test_verbs_data_sets_and_benchmarks_that_are_named_are_there() -> None:
    text = README + EVIDENCE.read_text(encoding="utf-8")
    verbs = set(re.findall(r"(?:^|`|; do |&& )d3jax ([a-z]+)", text, re.MULTILINE))
    assert len(verbs) > 6
    assert verbs <= find_verbs().keys()
    assert set(re.findall(r"prepare ([a-z0-9-]+) ", text)) <= find_sources().keys()
    modules = set(re.findall(r"python -m (experiments\.[\w.]+)", text))
    assert len(modules) > 6
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


@needs_front_door
@pytest.mark.trains
def test_the_first_block_trains_and_serves(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clicks)
    names = run_block("run.export(", clicks)
    assert names["clicks"].shape == (2,)
    assert names["gate"].shape == (2, 2)
    np.testing.assert_allclose(names["attention"].sum(1), 1, rtol=1e-5)


@needs_front_door
@pytest.mark.trains
def test_d3_in_a_model_of_one_s_own(tmp_path: Path) -> None:
    names = run_block("def loss(params", tmp_path)
    keys = jax.random.split(jax.random.key(1), 3)
    x, hidden = jax.random.normal(keys[0], (5, 8, 16)), jax.random.normal(keys[1], (5, 64))
    label = jnp.array([0.0, 1.0, 0.0, 1.0, 1.0])
    value, gradient = jax.value_and_grad(names["loss"])(names["params"], x, hidden, label)
    assert value > 0
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@needs_front_door
@pytest.mark.trains
def test_parts_are_trained(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clicks)
    names = run_block("d3jax.fit(", clicks)
    assert names["run"].evaluate("test").overall.auc > 0
