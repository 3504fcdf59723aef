"""Notices at once that another process of the run has ended.

A collective waits without an error for a process that is gone, until JAX's heartbeat aborts all
others with a C++ stack. So every process keeps a line open to process 0: the operating system
closes it when a process ends, however that happens.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, TextIO

import jax

from d3jax.console.exits import FAILED
from d3jax.console.terminal import Console, styled
from d3jax.hosts.agreement import gather_bytes
from d3jax.hosts.lines import greet, open_server, receive

GRACE = 3.0
"""Seconds for a process to print an error of its own, when another says that it has one."""
CONNECT = 10.0
"""Seconds for the lines to be opened."""


class Watch:
    """The lines of this process: one to every other from process 0, one to process 0 from others.

    A last word is "done 1" or "failing 1" from process 1 itself; process 0 passes it on, or
    "ended 1" when the line broke without one. `hosts` are names under which the others may reach
    process 0, which listens under the first that is its own. Where none works, as behind a
    firewall, JAX's heartbeat is all there is.
    """

    def __init__(self, console: Console, hosts: Sequence[str]) -> None:
        self._console = console
        self._process = jax.process_index()
        self._others = jax.process_count() - 1
        self._lines: dict[int, socket.socket] = {}
        self._listeners: list[threading.Thread] = []
        self._failing = threading.Event()
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._last_words = threading.Lock()
        if self._process == 0:
            self._serve(hosts)
        else:
            self._connect()

    def done(self) -> None:
        """Says that this process ends as it should."""
        self._tell("done")

    def fail(self) -> None:
        """Says that this process is about to end with an error, which it has printed.

        Process 0 lets the others go first, for JAX aborts those that outlive it.
        """
        self._failing.set()
        self._tell("failing")
        until = time.monotonic() + 2 * GRACE
        for listener in self._listeners if self._process == 0 else []:
            listener.join(max(0.0, until - time.monotonic()))

    def follow(self) -> None:
        """Ends this process as another has ended, where one has: a collective that fails then is
        no error of this one."""
        with suppress(queue.Empty):
            self._leave(self._ended.get(timeout=GRACE))

    def _serve(self, hosts: Sequence[str]) -> None:
        server = open_server(hosts)
        if server is None:
            gather_bytes(b"")
            return
        with server:
            token = secrets.token_hex(16)
            address, port = server.getsockname()[:2]
            gather_bytes("\n".join((token, str(port), address, *hosts)).encode())
            lines = receive(server, token, range(1, self._others + 1), CONNECT)
        for process, line in lines.items():
            self._follow(process, line)

    def _connect(self) -> None:
        told = gather_bytes(b"")[0].decode()
        if told:
            token, port, *hosts = told.split("\n")
            line = greet(hosts, int(port), token, self._process, CONNECT)
            if line is not None:
                self._follow(0, line)

    def _follow(self, process: int, line: socket.socket) -> None:
        self._lines[process] = line
        words = line.makefile("r", encoding="utf-8")
        listener = threading.Thread(target=self._listen, args=(process, words), daemon=True)
        self._listeners.append(listener)
        listener.start()

    def _listen(self, process: int, words: TextIO) -> None:
        """Waits for the last word of a process, and ends this one unless all is well."""
        try:
            word = words.readline().strip()
        except OSError:
            word = ""
        state, who = (word or f"ended {process}").split()
        if state == "done" or self._failing.is_set():
            return
        self._ended.put(int(who))
        if self._process == 0:
            self._tell(state, who)
        if state == "failing" and self._failing.wait(GRACE):
            return  # This process has an error of its own, which it has printed.
        self._leave(int(who))

    def _tell(self, state: str, who: str | None = None) -> None:
        for line in self._lines.values():
            try:
                line.sendall(f"{state} {self._process if who is None else who}\n".encode())
            except OSError:
                continue

    def _leave(self, who: int) -> NoReturn:
        """The main thread waits in a collective, out of reach of exceptions."""
        with self._last_words:
            self._console.print(
                styled("error:", "bold red"),
                f"process {who} of this run ended, so process "
                f"{self._process} stops too; see the last words of process {who}. Resume the "
                "run to go on from its newest checkpoint",
            )
            self._console.show_cursor()
            sys.stdout.flush()
            os._exit(FAILED)
