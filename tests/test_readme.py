"""What the README shows in Python runs as it is printed there."""

from __future__ import annotations

import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

README = Path(__file__).parents[1] / "README.md"


def run_block(mark: str, **given: Any) -> dict[str, Any]:
    """The names that are left by the one block which contains `mark`; `given` are there before."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [block for block in blocks if mark in block]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.py"
        path.write_text(block, encoding="utf-8")
        return runpy.run_path(str(path), given)


def test_d3_in_a_flax_model() -> None:
    model = run_block("D3Layer")["Click"](nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (5, 8, 16))
    logits, gradient = nnx.value_and_grad(lambda model: model(x).sum())(model)
    assert model(x).shape == (5,)
    np.testing.assert_allclose(logits, model(x).sum(), rtol=1e-5)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient["body"]))


def test_the_equations_alone(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_block("select_features(")
    assert names["selected"].shape == (32, 8, 16)
    printed = np.array(re.findall(r"-?\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out), float)
    # An entropy of eight fields, minus ln 8.
    assert printed.shape == (32,)
    assert ((printed <= 0) & (printed >= -np.log(8))).all()
