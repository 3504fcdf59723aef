"""The torch models compute what d3jax does, with d3jax's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from experiments.bench import jax_side
from experiments.bench.children import Request
from experiments.bench.variants import Family, variants

torch_side = pytest.importorskip("experiments.bench.torch_side", exc_type=ImportError)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_agreement(family: Family, sparse: bool, tmp_path: Path) -> None:
    listed = variants(family)
    basis = Request("reference", listed[0], "tiny", 128, 0.1, 5, folder=str(tmp_path))
    jax_side.handle(basis)
    variant = next(v for v in listed if v.side == "torch" and v.sparse == sparse)
    request = replace(basis, action="check", variant=variant)
    assert torch_side.handle(request) == {"differs": []}
    with np.load(tmp_path / "weights.npz") as arrays:
        weights = dict(arrays)
    weights["embedding.table"][0] += 0.1
    np.savez(tmp_path / "weights.npz", **weights)
    assert torch_side.handle(request)["differs"]
