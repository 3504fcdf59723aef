"""Strangers at the door of a run's first process: none is let in, none keeps a true peer out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from d3jax.hosts import lines
from d3jax.hosts.lines import LONGEST, greet, open_server, receive

TOKEN = "0123456789abcdef" * 2
LOOPBACK = "127.0.0.1"

Welcomed = dict[int, socket.socket]


class Door:
    """A server that receives processes 1 and 2 in a thread, and how long that takes."""

    def __init__(self, seconds: float, stack: ExitStack) -> None:
        server = open_server([LOOPBACK])
        assert server is not None
        self.server, self.welcomed = (
            stack.enter_context(closing(server)),
            dict[int, socket.socket](),
        )
        self.port = server.getsockname()[1]
        self.took = 0.0
        self._seconds, self._stack = seconds, stack
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        stack.callback(self._thread.join)

    def _receive(self) -> None:
        began = time.monotonic()
        self.welcomed = receive(self.server, TOKEN, (1, 2), self._seconds)
        self.took = time.monotonic() - began

    def knock(self, said: bytes = b"") -> socket.socket:
        line = self._stack.enter_context(socket.create_connection((LOOPBACK, self.port), 5.0))
        line.sendall(said)
        return line

    def peer(self, number: int) -> socket.socket:
        line = greet([LOOPBACK], self.port, TOKEN, number, 5.0)
        assert line is not None
        return self._stack.enter_context(closing(line))

    def close(self) -> Welcomed:
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        for line in self.welcomed.values():
            self._stack.callback(line.close)
        return self.welcomed


@pytest.fixture
def door() -> Iterator[Callable[[float], Door]]:
    with ExitStack() as stack:
        yield lambda seconds: Door(seconds, stack)


def is_refused(line: socket.socket, within: float) -> bool:
    line.settimeout(within)
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def assert_joined(ours: socket.socket, theirs: socket.socket) -> None:
    ours.sendall(b"done 1\n")
    theirs.settimeout(5.0)
    assert theirs.recv(16) == b"done 1\n"
    theirs.sendall(b"failing 0\n")
    ours.settimeout(5.0)
    assert ours.recv(16) == b"failing 0\n"


def test_true_peers_are_let_in_at_once_and_keep_all_that_is_said(
    door: Callable[[float], Door],
) -> None:
    run = door(10.0)
    first, second = run.peer(1), run.peer(2)
    welcomed = run.close()
    assert run.took < 2.0
    assert_joined(first, welcomed[1])
    assert_joined(second, welcomed[2])


STRANGERS = {
    "garbage": b"\xff\xfe\x00GET / HTTP/1.1\n",
    "an empty line": b"\n",
    "a token cut short": TOKEN[:-1].encode() + b" 1\n",
    "a token gone on": TOKEN.encode() + b"0 1\n",
    "another token": b"f" * 32 + b" 1\n",
    "a token that is no ASCII": "é".encode() * 16 + b" 1\n",
    "no number": TOKEN.encode() + b"\n",
    "no number after a blank": TOKEN.encode() + b" \n",
    "process 0": TOKEN.encode() + b" 0\n",
    "a process too many": TOKEN.encode() + b" 3\n",
    "a negative process": TOKEN.encode() + b" -1\n",
    "a number in other words": TOKEN.encode() + b" 01\n",
    "a number in other digits": TOKEN.encode() + " ١".encode() + b"\n",
    "no number at all": TOKEN.encode() + b" one\n",
    "two numbers": TOKEN.encode() + b" 1 2\n",
    "more after the greeting": TOKEN.encode() + b" 1\ndone 1\n",
    "endless bytes": b"x" * 200_000,
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_refused_at_once_whatever_it_sends(
    stranger: str, door: Callable[[float], Door]
) -> None:
    run = door(10.0)
    try:
        line = run.knock(STRANGERS[stranger])
    except ConnectionError:
        assert len(STRANGERS[stranger]) > LONGEST
    else:
        assert is_refused(line, 1.5)
    peers = run.peer(1), run.peer(2)
    welcomed = run.close()
    assert run.took < 3.0
    for number, line in enumerate(peers, start=1):
        assert_joined(line, welcomed[number])


@pytest.mark.parametrize("said", [b"", TOKEN.encode(), TOKEN.encode() + b" 1"])
def test_one_that_says_nothing_more_is_refused_in_time(
    said: bytes, door: Callable[[float], Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 0.3)
    run = door(2.0)
    line = run.knock(said)
    assert is_refused(line, 1.5)
    assert run.close() == {}
    assert 1.9 < run.took < 4.0


def test_one_that_drips_is_refused_in_time(
    door: Callable[[float], Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 0.3)
    run = door(10.0)
    line, began = run.knock(), time.monotonic()
    drops = 0
    with suppress(ConnectionError):
        while drops < 100:
            line.sendall(b"x")
            drops += 1
            time.sleep(0.05)
    assert drops < 40
    assert time.monotonic() - began < 3.0
    for number in (1, 2):
        run.peer(number)
    assert run.close().keys() == {1, 2}


def test_many_silent_strangers_hold_no_peer_up(door: Callable[[float], Door]) -> None:
    """More than may wait at a time, none of which gives up by itself."""
    run = door(10.0)
    for _ in range(lines.MOST + 40):
        run.knock()
    peers = run.peer(1), run.peer(2)
    welcomed = run.close()
    assert run.took < lines.PATIENCE + 3.0
    for number, line in enumerate(peers, start=1):
        assert_joined(line, welcomed[number])


def test_a_repeated_number_does_not_displace_the_first(door: Callable[[float], Door]) -> None:
    run = door(10.0)
    first = run.peer(1)
    assert is_refused(run.knock(f"{TOKEN} 1\n".encode()), 1.5)
    assert greet([LOOPBACK], run.port, TOKEN, 1, 0.2) is None
    run.peer(2)
    assert_joined(first, run.close()[1])


def test_a_peer_that_gave_up_is_not_taken_for_present(door: Callable[[float], Door]) -> None:
    server = open_server([LOOPBACK])
    assert server is not None
    with closing(server), closing(socket.create_connection(server.getsockname())) as gone:
        gone.sendall(f"{TOKEN} 1\n".encode())
        gone.close()
        assert receive(server, TOKEN, (1,), 0.3) == {}


def test_a_peer_comes_again_until_it_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up for a newer guest, or before the server listens."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(socket.create_server((LOOPBACK, 0))))
        found: list[socket.socket | None] = []
        port = server.getsockname()[1]
        peer = threading.Thread(
            target=lambda: found.append(greet([LOOPBACK], port, TOKEN, 1, 10.0))
        )
        peer.start()
        for _ in range(3):
            server.accept()[0].close()
        welcomed = receive(server, TOKEN, (1,), 10.0)
        peer.join()
        assert found[0] is not None
        assert_joined(stack.enter_context(closing(found[0])), welcomed[1])
        stack.callback(welcomed[1].close)


def test_a_peer_is_not_held_up_by_a_server_that_is_none() -> None:
    """One that accepts and says nothing, or something else."""
    with closing(socket.create_server((LOOPBACK, 0))) as silent:
        began = time.monotonic()
        assert greet([LOOPBACK], silent.getsockname()[1], TOKEN, 1, 0.5) is None
        assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.2", "127.0.0.1"], "127.0.0.2"),
        (["", "no.such.host.invalid", "192.0.2.1", "127.0.0.3"], "127.0.0.3"),
        (["0.0.0.0", "[::]", "127.0.0.1"], "127.0.0.1"),
    ],
)
def test_the_server_listens_on_one_interface_alone(hosts: list[str], address: str) -> None:
    server = open_server(hosts)
    assert server is not None
    with closing(server):
        assert server.getsockname()[0] == address
        other = "127.0.0.9"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, server.getsockname()[1]), 1.0)


def test_without_an_interface_there_is_no_server() -> None:
    assert open_server(["", "0.0.0.0", "192.0.2.1"]) is None
