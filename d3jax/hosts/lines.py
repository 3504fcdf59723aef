"""Lines between the processes of a run: who may have one, and what a stranger can do.

A true process greets with the run's token and its number as soon as it is connected, and waits to
be welcomed. All others are refused within a short time and a few bytes, side by side, so that
none of them keeps a true process waiting or takes its place.
"""

from __future__ import annotations

import hmac
import ipaddress
import selectors
import socket
import time
from collections.abc import Iterable, Sequence

WELCOME = b"welcome\n"

PATIENCE = 2.0
"""Seconds within which a greeting must be complete; a true one comes as one packet."""

LONGEST = 64
"""Bytes that no greeting exceeds."""

MOST = 128
"""Greetings awaited at a time. The oldest is given up for a new one: a true process comes again."""


def open_server(hosts: Iterable[str]) -> socket.socket | None:
    """Listens on the first interface of this host that one of the names stands for, on no other.

    None when there is none; a name such as 0.0.0.0, which stands for all of them, is passed over.
    """
    for host in filter(None, hosts):
        try:
            found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
        except OSError:
            continue
        for family, _, _, _, address in found:
            if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
                continue
            try:
                return socket.create_server(address, family=family, backlog=MOST)
            except OSError:
                continue
    return None


def receive(
    server: socket.socket, token: str, peers: Iterable[int], seconds: float
) -> dict[int, socket.socket]:
    """The lines of the `peers`, each of which knows the token; those that come within the time."""
    return _Reception(server, token, peers).run(time.monotonic() + seconds)


def greet(
    hosts: Sequence[str], port: int, token: str, number: int, seconds: float
) -> socket.socket | None:
    """A line to the server under one of its names, once it is welcome; None when the time is up."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for host in hosts:
            try:
                line = socket.create_connection((host, port), timeout=left / 2)
            except OSError:
                continue
            if _is_welcome(line, f"{token} {number}\n".encode(), until):
                line.settimeout(None)
                return line
            line.close()
        time.sleep(0.05)
    return None


def _is_welcome(line: socket.socket, greeting: bytes, until: float) -> bool:
    said = b""
    try:
        line.sendall(greeting)
        while len(said) < len(WELCOME):
            line.settimeout(max(until - time.monotonic(), 0.001))
            more = line.recv(len(WELCOME) - len(said))
            said += more
            if not more:
                break
    except OSError:
        return False
    return said == WELCOME


class _Reception:
    """Guests that have yet to greet, by their sockets, and the lines of those that did."""

    def __init__(self, server: socket.socket, token: str, peers: Iterable[int]) -> None:
        self._server, self._token = server, token.encode()
        self._expected = {str(number).encode(): number for number in peers}
        self._lines: dict[int, socket.socket] = {}
        self._said: dict[socket.socket, bytes] = {}
        self._until: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, until: float) -> dict[int, socket.socket]:
        """Receives until all have come or the time is up."""
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        with self._selector:
            while self._expected and (now := time.monotonic()) < until:
                for guest in [each for each, limit in self._until.items() if limit <= now]:
                    self._dismiss(guest)
                ends = min([until, *self._until.values()])
                ready = [key.fileobj for key, _ in self._selector.select(max(0.0, ends - now))]
                # Whoever has said something is heard before a new guest may take its place.
                for guest in [each for each in self._said if each in ready]:
                    self._hear(guest)
                if self._server in ready:
                    self._admit()
            for guest in list(self._said):
                self._dismiss(guest)
        return self._lines

    def _admit(self) -> None:
        try:
            guest, _ = self._server.accept()
        except OSError:
            return time.sleep(0.01)  # Such as too many open files, which a guest's end may mend.
        if len(self._said) >= MOST:
            self._dismiss(next(iter(self._said)))
        guest.setblocking(False)
        self._selector.register(guest, selectors.EVENT_READ)
        self._said[guest] = b""
        self._until[guest] = time.monotonic() + PATIENCE

    def _hear(self, guest: socket.socket) -> None:
        """Takes in what a guest says; welcomes it once that is a greeting, and nothing after it."""
        try:
            while more := guest.recv(LONGEST):
                self._said[guest] += more
                if len(self._said[guest]) > LONGEST:
                    break
        except BlockingIOError:
            if self._said[guest].endswith(b"\n"):
                return self._answer(guest)
            return
        except OSError:
            pass
        self._dismiss(guest)

    def _answer(self, guest: socket.socket) -> None:
        token, _, number = self._said[guest].removesuffix(b"\n").partition(b" ")
        if not hmac.compare_digest(token, self._token) or number not in self._expected:
            return self._dismiss(guest)
        try:
            guest.sendall(WELCOME)
        except OSError:
            return self._dismiss(guest)
        self._forget(guest)
        guest.setblocking(True)
        self._lines[self._expected.pop(number)] = guest

    def _dismiss(self, guest: socket.socket) -> None:
        self._forget(guest)
        guest.close()

    def _forget(self, guest: socket.socket) -> None:
        self._selector.unregister(guest)
        del self._said[guest], self._until[guest]
