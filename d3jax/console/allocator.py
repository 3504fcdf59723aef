"""Freed memory is kept for the next step, which would otherwise get fresh pages from the system.

A CPU step of D3 at Ali-CCP's size frees and asks again for some gigabytes. By default glibc gives
large blocks back to the system at once, and millions of page faults a step follow. What is kept
lies in huge pages where the system has them, which saves about a sixth of a step's time again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's mallopt(3)."""

HUGE_PAGE = 2**21
"""Bytes, on x86-64 and most others."""


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed; does nothing where the C library is another, or where
    JAX has a plugin for an accelerator: its arrays lie there, and its compiler's many threads
    would wait for one heap.

    The process then never shrinks: its size is what it once needed.
    """
    if sys.platform != "linux" or _has_accelerator_plugin():
        return
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:
        return
    mallopt(TRIM_THRESHOLD, -1)
    mallopt(TOP_PAD, 2**28)
    mallopt(MMAP_MAX, 0)
    mallopt(ARENA_MAX, 1)
    _ask_for_huge_pages(libc)


def _has_accelerator_plugin() -> bool:
    """Return whether JAX, which must not be imported yet, might run on anything but the cores."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Grows the heap by half of the machine's memory, of which nothing is used before it is
    written to, and asks for huge pages there. Nothing happens where the system counts memory as
    used from the start, or has no such pages."""
    if _overcommit() == "2":
        return
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    libc.free(libc.malloc(memory // 2))
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith("[heap]"):
            start, end = (int(place, 16) for place in line.split()[0].split("-"))
            start = -(-start // HUGE_PAGE) * HUGE_PAGE
            libc.madvise(start, end - start, mmap.MADV_HUGEPAGE)


def _overcommit() -> str:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip()
    except OSError:
        return "2"
