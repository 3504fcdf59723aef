"""The first run finds no compiled programs, the second those of the first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import cold_start
from experiments.bench.cold_start import first_steps, seconds

PRETENDER = """
import os, sys, time
from pathlib import Path
cache = Path(os.environ["XDG_CACHE_HOME"])
time.sleep(0.0 if cache.exists() else 1.0)
cache.mkdir(exist_ok=True)
assert sys.argv[1:3] == ["data", "--out"]
Path(sys.argv[3]).mkdir()
"""


def test_only_the_first_of_two_runs_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "FIRST_STEP", [sys.executable, "-c", PRETENDER])
    cold, warm = first_steps(["data"], 2)
    assert len(cold) == len(warm) == 2
    assert min(cold) >= 1.0
    assert all(later < earlier for earlier, later in zip(cold, warm, strict=True))


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        seconds([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
