"""`d3jax --help` tells of every verb at once, whatever can be imported."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from d3jax import overview
from d3jax.cli import load_verb
from tests.d3jax.test_front_door import run_python


def test_every_verb_is_described_by_its_class() -> None:
    points = overview.find_verbs()
    assert {"prepare", "train", "evaluate", "predict", "export", "compare"} <= points.keys()
    for name, point in points.items():
        first = (load_verb(name, point).__doc__ or "").strip().partition("\n")[0]
        assert overview._purpose(point) == first != ""


def test_help_imports_no_library(tmp_path: Path) -> None:
    script = (
        "import runpy, sys; sys.argv = ['d3jax', '--help']\n"
        "try:\n"
        "    runpy.run_module('d3jax', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('code', end.code)\n"
        "print(*{'jax', 'numpy', 'tyro', 'rich', 'pyarrow'} & set(sys.modules))"
    )
    *shown, code, modules = run_python(script, tmp_path).split("\n")[:-1]
    assert any(line.startswith("  train     Train a model;") for line in shown)
    assert (code, modules) == ("code 0", "")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nowhere_at_all.verbs:Dance", "(can't be loaded: No module named 'nowhere_at_all')"),
        ("d3jax.nowhere:Dance", "(can't be loaded: no module named 'd3jax.nowhere')"),
        ("d3jax.verbs:Dance", "(see d3jax.verbs:Dance)"),
    ],
)
def test_a_verb_that_cannot_be_read_says_so(value: str, told: str) -> None:
    assert overview._purpose(EntryPoint("dance", value, overview.GROUP)) == told
