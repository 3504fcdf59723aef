"""The end of a command: a few lines, whatever happened, and a code of `exits`."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import d3jax
from d3jax.console.exits import FAILED, INTERRUPTED, PREEMPTED, TERMINATED, UNFORESEEN
from d3jax.console.signals import Terminated, raising
from d3jax.console.terminal import Console, styled
from d3jax.errors import D3jaxError, Preempted

_ROOMS = ("d3jax", "data_pipelines", "experiments")
DEBUG = "D3JAX_DEBUG"
"""The environment variable that shows tracebacks, as --debug does."""


@contextmanager
def ending(arguments: Sequence[str], console: Console) -> Iterator[None]:
    """Turns whatever ends the block early into a few lines and `SystemExit`."""
    with raising() as came:
        try:
            yield
            sys.stdout.flush()
        except SystemExit:
            raise
        except BrokenPipeError:
            # Whoever read the output has seen enough.
            _silence()
        except BaseException as error:
            code = tell(_cause(error, came), arguments, console)
            _flush_or_silence()
            sys.exit(code)


def _cause(error: BaseException, came: Sequence[int]) -> BaseException:
    """The signal that an error comes from, or the error: libraries make errors of signals."""
    if not came or isinstance(error, Preempted):
        return error
    return Terminated() if came[0] == signal.SIGTERM else KeyboardInterrupt()


def tell(error: BaseException, arguments: Sequence[str], console: Console) -> int:
    """Says what went wrong, or what is to be reported, and returns the exit code."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    if isinstance(error, Preempted):
        console.print(styled(str(error), "yellow"))
        return PREEMPTED
    if isinstance(error, D3jaxError):
        console.print(styled("error:", "bold red"), str(error))
        return FAILED
    if wants_traceback(arguments):
        for line in "".join(traceback.format_exception(error)).splitlines():
            console.print(line, highlight=False)
    if isinstance(error, OSError) and error.errno is not None:
        console.print(styled("error:", "bold red"), _system_error(error))
        return FAILED
    _report(error, arguments, console)
    return UNFORESEEN


def wants_traceback(arguments: Sequence[str]) -> bool:
    """Return whether --debug, or the environment, asks for a traceback."""
    return "--debug" in arguments or os.environ.get(DEBUG, "") not in ("", "0")


def without_debug(arguments: Sequence[str]) -> list[str]:
    """The arguments that a verb parses: only train has a --debug of its own."""
    own = next((text for text in arguments if not text.startswith("-")), None) == "train"
    return [text for text in arguments if own or text != "--debug"]


def _system_error(error: OSError) -> str:
    """Return in words the refusal of the system, such as a file that may not be read."""
    if error.filename is None:
        return f"{error.strerror}; is a disk full, or the standard output closed?"
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{name}: {error.strerror}; check the path, what it is, and who may read and write it"


def _report(error: BaseException, arguments: Sequence[str], console: Console) -> None:
    command = shlex.join(["d3jax", *arguments])
    words = str(error).strip() or "without a word"
    about = f"d3jax {d3jax.__version__}, Python {platform.python_version()}, {platform.platform()}"
    console.print(styled("unforeseen error:", "bold red"), f"{type(error).__name__}: {words}")
    console.print(f"while running: {command}", highlight=False)
    debug = wants_traceback(arguments)
    place, ours = _place(error)
    if not ours:
        more = "" if debug else "; --debug shows the way there"
        console.print(f"it comes from {place}, which is none of d3jax's{more}", highlight=False)
        return
    at = f", in {place}" if place else ""
    more = "" if debug else ", and what the same command says with --debug,"
    console.print(
        f"this is d3jax's fault{at}; please report these lines{more} where you got d3jax ({about})",
        highlight=False,
    )


def _place(error: BaseException) -> tuple[str, bool]:
    """Return in words the last line that is no library's, and whether it is one of ours."""
    root = Path(d3jax.__file__).resolve().parent.parent
    libraries = [Path(path).resolve() for path in sysconfig.get_paths().values()]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        ours = any(path.is_relative_to(root / room) for room in _ROOMS)
        library = path.name.startswith("<") or any(map(path.is_relative_to, libraries))
        if ours or not library:
            return f"{path.name}, line {frame.lineno} ({frame.name})", ours
    return "", True


def _flush_or_silence() -> None:
    """Writes what is left of the output, or keeps Python from complaining, later, that it can't."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence()


def _silence() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
