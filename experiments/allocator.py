"""Freed memory is kept for the next step, which would otherwise get fresh pages from the system.

A CPU step of D3 at Ali-CCP's size frees and asks again for some gigabytes. By default glibc gives
large blocks back to the system at once, and millions of page faults a step follow.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed; does nothing where the C library is another.

    The process then never shrinks: its size is what it once needed.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(TRIM_THRESHOLD, -1)
    mallopt(TOP_PAD, 2**28)
    mallopt(MMAP_MAX, 0)
    mallopt(ARENA_MAX, 1)
