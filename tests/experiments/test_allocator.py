from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments.allocator import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from experiments.allocator import keep_freed_memory
{call}
for _ in range(3):
    np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Page faults of five arrays of 128 MB, one after the other, in a process of its own."""
    script = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(script, check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux'")
def test_what_is_freed_needs_no_fresh_pages() -> None:
    assert faults("keep_freed_memory()") < 0.1 * faults("")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
