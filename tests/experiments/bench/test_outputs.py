"""A benchmark that can't write what it finds doesn't start."""

from __future__ import annotations

from pathlib import Path

import pytest

from d3jax.errors import ConfigError
from experiments.bench import accelerator, growth, peers
from experiments.bench.accelerator import AcceleratorBench
from experiments.bench.growth import Growth
from experiments.bench.outputs import check_outputs
from experiments.bench.peers import PeersBench


def test_a_file_in_a_directory_is_fine(tmp_path: Path) -> None:
    check_outputs(None, tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_not(tmp_path: Path) -> None:
    for run in (
        lambda: peers.main(PeersBench(("tiny",), out=tmp_path)),
        lambda: peers.main(PeersBench(("tiny",), picture=tmp_path)),
        lambda: growth.main(Growth(out=tmp_path)),
        lambda: accelerator.main(AcceleratorBench(workload="tiny", out=tmp_path)),
    ):
        with pytest.raises(ConfigError, match=f"^{tmp_path} is a directory; name a file in it$"):
            run()


def test_nor_is_a_file_in_a_directory_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "no" / "out.json"
    with pytest.raises(ConfigError) as error:
        check_outputs(path)
    assert str(error.value) == f"{path} can't be written: there is no directory {path.parent}"
