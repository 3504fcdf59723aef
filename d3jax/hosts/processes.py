"""One run in several processes: how they meet, stop together and part."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, NoReturn

import tyro

from d3jax.console.endings import tell
from d3jax.console.terminal import Console
from d3jax.errors import ConfigError, Preempted

HEARTBEAT = 30
"""Seconds after which JAX gives a silent process up, where `Watch` doesn't notice before."""
MEETING = 300
"""Seconds within which all processes must have started."""
NOTICE = 15.0
"""Seconds of waiting for them that need no explanation."""


@dataclass(frozen=True)
class Processes:
    """Several processes that train together."""

    distributed: bool = False
    """Train in several processes, one a host."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """The address at which the others find process 0."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """The number of processes."""
    process: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """The number of this one, from 0."""

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.processes, self.process)]
        if any(given) and not (all(given) and self.distributed):
            raise ConfigError(
                "--coordinator, --processes and --process go together, with --distributed; "
                "give all four, or --distributed alone on a cluster that JAX knows"
            )
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ConfigError(f"coordinator is {self.coordinator!r}; it must be HOST:PORT")
        if not 0 <= (self.process or 0) < (self.processes or 1):
            raise ConfigError(
                f"process is {self.process}; it must be at least 0 and below processes, "
                f"which is {self.processes}"
            )


@contextmanager
def together(processes: Processes, console: Console) -> Iterator[None]:
    """Meets the other processes before the block, and parts from them after it.

    An error ends this process inside: on their way out JAX and Python would wait for the others,
    which wait in a collective for this one.
    """
    if not processes.distributed:
        yield
        return
    import jax

    from d3jax.hosts.watch import Watch

    _meet(processes, console)
    watch = Watch(console, _hosts(processes))
    try:
        yield
    except Preempted:
        _part(watch.done)
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            watch.follow()
        _leave(watch.fail, tell(error, sys.argv[1:], console))
    _part(watch.done)


@contextmanager
def agreed_stop() -> Iterator[Callable[[int], bool]]:
    """Yields a question that all processes answer with yes at one step, after a signal to one.

    JAX takes SIGTERM and agrees on the step; the first Ctrl-C is passed on to it.
    """
    from jax.experimental import multihost_utils

    def pass_on(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield multihost_utils.reached_preemption_sync_point
    finally:
        signal.signal(signal.SIGINT, before)


def _meet(processes: Processes, console: Console) -> None:
    """JAX aborts, with a C++ stack, when the others don't come; so say first what is waited for."""
    import jax

    place = processes.coordinator or "the address that the cluster gave"
    waiting = threading.Timer(
        NOTICE,
        console.print,
        [f"waiting for the other processes at {place}; JAX gives up after {MEETING} s"],
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.processes,
            processes.process,
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        raise ConfigError(
            f"--distributed found no cluster around it ({error}); say where the processes meet "
            "by --coordinator, --processes and --process"
        ) from error
    finally:
        waiting.cancel()


def _hosts(processes: Processes) -> list[str]:
    """Names under which others may reach this host."""
    named = [] if processes.coordinator is None else [processes.coordinator.rpartition(":")[0]]
    return [*named, socket.getfqdn(), socket.gethostname()]


def _part(say: Callable[[], None]) -> None:
    import jax

    say()
    jax.distributed.shutdown()


def _leave(say: Callable[[], None], code: int) -> NoReturn:
    say()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
