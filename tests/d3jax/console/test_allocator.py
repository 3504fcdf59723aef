from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from d3jax.console import allocator
from d3jax.console.allocator import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from d3jax.console.allocator import keep_freed_memory
{call}
for _ in range(3):
    np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HUGE = r"""
import re
from pathlib import Path
from d3jax.console import allocator
{call}
kept = b"x" * 2**27  # An array of NumPy's asks for huge pages itself.
smaps = Path("/proc/self/smaps").read_text()
heap = re.split(r"\n(?=[0-9a-f]+-)", smaps)
for name in ("Rss", "AnonHugePages"):
    kilobytes = [re.search(name + ": +([0-9]+)", part)[1] for part in heap if "[heap]" in part]
    print(sum(map(int, kilobytes)) // 1024)
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux'")


def run(script: str, call: str) -> list[int]:
    """The numbers that a process of its own prints."""
    command = [sys.executable, "-c", script.format(call=call)]
    return [int(number) for number in subprocess.check_output(command).split()]


@linux_only
def test_what_is_freed_needs_no_fresh_pages() -> None:
    """Five arrays of 128 MB, one after the other."""
    assert run(FAULTS, "keep_freed_memory()")[0] < 0.1 * run(FAULTS, "")[0]


@linux_only
def test_what_is_kept_lies_in_huge_pages_and_nothing_more_is_used() -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this system has no huge pages")
    resident, huge = run(HUGE, "allocator.keep_freed_memory()")
    assert huge >= 64
    assert resident < 400


@linux_only
def test_a_system_that_counts_memory_before_it_is_used_is_asked_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    libc = SimpleNamespace(mallopt=lambda *_: 1, malloc=lambda size: asked.append("malloc"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(allocator, "_overcommit", lambda: "2")
    keep_freed_memory()
    assert asked == []


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()


@pytest.mark.parametrize(
    ("platforms", "plugins", "kept"),
    [("", [], True), ("", ["cuda12"], False), ("cpu", ["cuda12"], True), ("cuda,cpu", [], False)],
)
def test_arrays_on_an_accelerator_need_no_heap(
    platforms: str, plugins: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    libc = SimpleNamespace(mallopt=lambda *option: asked.append(option[0]))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(allocator, "_overcommit", lambda: "2")
    monkeypatch.setattr(allocator, "entry_points", lambda group: plugins)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    keep_freed_memory()
    assert bool(asked) == (kept and sys.platform == "linux")
