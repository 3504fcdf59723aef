"""Ctrl-C and SIGTERM, from the first moment of a process to its last.

Where a loop trains, either asks it to save and stop. Elsewhere the command ends as with an error,
so that what is half made is cleared away. Another Ctrl-C ends the process at once, whatever it
does, as a kill would.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from d3jax.console.exits import INTERRUPTED, TERMINATED
from d3jax.errors import Preempted

_SHOW_CURSOR = b"\x1b[?25h"
_HEARD = b"\nstopping after this step, which saves the run; Ctrl-C once more ends it at once\n"
_SOON, _AGAIN = 0.05, 1.0
"""Seconds until an exception is raised that couldn't be yet, or that a library swallowed."""


class Terminated(BaseException):
    """SIGTERM came while nothing waited for it."""


def leave_at_once() -> None:
    """From now on either signal ends the process, without a word."""
    signal.signal(signal.SIGINT, lambda *_: _leave(INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: _leave(TERMINATED))


@contextmanager
def raising() -> Iterator[list[int]]:
    """Within, Ctrl-C raises `KeyboardInterrupt` and SIGTERM `Terminated`.

    Not while a module is imported, which may end in a crash, and again where a library swallowed
    the exception. Yields the signals that came: libraries may also make an error of their own of
    it. Only the main thread gets signals; elsewhere nothing changes.
    """
    came: list[int] = []
    raised: list[BaseException] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            came.append(number)
        if signal.SIGINT in came:
            _now_on_ctrl_c()
        if not (raised and _unwinding(raised)):
            raise_if_safe(frame)

    def raise_if_safe(frame: FrameType | None) -> None:
        safe = not _importing(frame)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN if safe else _SOON)
        if safe:
            raised.append(Terminated() if came[0] == signal.SIGTERM else KeyboardInterrupt())
            raise raised[-1]

    def unraisable(args: sys.UnraisableHookArgs, /) -> None:
        if args.exc_value not in raised:
            sys.__unraisablehook__(args)

    with _handling(stop, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        before, sys.unraisablehook = sys.unraisablehook, unraisable
        try:
            yield came
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = before


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unwinding(raised: Sequence[BaseException]) -> bool:
    """Return whether an exception is on its way out, and the blocks it leaves clear away."""
    error = sys.exception()
    while error is not None:
        if error in raised:
            return True
        error = error.__context__
    return False


@contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a question that SIGTERM, or the first Ctrl-C, answers with yes."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            _tell(_HEARD)
        asked.append(number)
        if number == signal.SIGINT:
            _now_on_ctrl_c()

    with _handling(ask, signal.SIGTERM, signal.SIGINT):
        yield lambda step: bool(asked)


@contextmanager
def interrupts() -> Iterator[Callable[[int], bool]]:
    """Yields a question that Ctrl-C answers with yes, in a program or a notebook of the user's.

    There Ctrl-C is a `KeyboardInterrupt`, and so it is here: when what was asked has saved and
    raised `Preempted`, else when the block ends, and at once the second time. SIGTERM asks too,
    where it would end the process. A signal that the program handles itself is left to it.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    with _handling(ask, *ours):
        try:
            yield lambda step: bool(asked)
        except Preempted as error:
            if signal.SIGINT not in asked:
                raise
            raise KeyboardInterrupt(str(error)) from None
    if signal.SIGINT in asked:
        raise KeyboardInterrupt


def leave_on_second_ctrl_c() -> None:
    """From now on the process ends with the second Ctrl-C, also where Python waits for others.

    A handler would have to wait for the compiler, say; a thread doesn't.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        count = 0
        while count < 2:
            count += os.read(reading, 1) == bytes([signal.SIGINT])
        _leave(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _now_on_ctrl_c() -> None:
    signal.signal(signal.SIGINT, lambda *_: _leave(INTERRUPTED))


def _tell(text: bytes) -> None:
    """Writes on standard error from within a signal's handler."""
    with suppress(OSError):
        os.write(2, text)


def _leave(code: int) -> None:
    """Ends the process; what a progress bar did to the cursor is undone."""
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os._exit(code)
