"""Thousands of people who watch one count over graphql-transport-ws, in a process of their own.

They note when a change was sent and when they had it. When it was sent is the kernel's word: on loopback a packet is
stamped (SO_TIMESTAMPNS) within the server's own call to send it, however late the watcher is scheduled.
"""

import gc
import json
import os
import re
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection

# socket(7); Python has no name for it.
SO_TIMESTAMPNS = 35
# At most so many are on their way in at once.
JOINING_MAX = 200
# Without anything new.
PATIENCE_S = 60.0
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
_VERSION = re.compile(rb'"version": ?(\d+)')
_UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-protocol: graphql-transport-ws\r\n\r\n"
)


@dataclass(frozen=True)
class Arrivals:
    """When one change was sent to each watcher and when each had it, in order; nanoseconds since the epoch."""

    sent_ns: list[int]
    heard_ns: list[int]


@contextmanager
def watching(port: int, query: str, variables: dict[str, object]) -> Iterator["Watchers"]:
    """A process for them. Nobody watches yet."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=_watch, args=(there, port, query, variables), name="watchers", daemon=True
    )
    process.start()
    there.close()
    try:
        yield Watchers(here)
    finally:
        here.close()
        process.join(PATIENCE_S)
        process.kill()


class Watchers:
    """Those who watch; what they are asked they answer when it has come to all of them."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.number = 0

    def join(self, number: int) -> None:
        """So many more are connected and acknowledged, and ask for nothing. Raises: TimeoutError, ConnectionError."""
        self.number += number
        self._asked("join", number)

    def watch(self) -> None:
        """Everybody watches: each has been told the count once. Raises: TimeoutError, ConnectionError."""
        self._asked("watch", self.number)

    def have(self, version: int) -> Arrivals:
        """Everybody has heard of that version. Raises: TimeoutError, ConnectionError."""
        return self._asked("have", version)

    def _asked(self, what: str, number: int) -> Arrivals:
        self._pipe.send((what, number))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Arrivals)
        return answer


# ---------------------------------------------------------------- in their own process
def _watch(pipe: Connection, port: int, query: str, variables: dict[str, object]) -> None:
    gc.disable()
    subscribe = {"id": "1", "type": "subscribe", "payload": {"query": query, "variables": variables}}
    room = _Room(pipe, port, json.dumps(subscribe).encode())
    try:
        room.serve()
    except EOFError:  # the measurement is over
        os._exit(0)
    except Exception as error:  # whoever waits must hear of it
        pipe.send(error)


@dataclass(eq=False)
class _Watcher:
    socket: socket.socket
    received: bytes = b""
    is_open: bool = False
    has_asked: bool = False
    # The newest that it has heard of; None until its first count.
    version: int | None = None


@dataclass
class _Room:
    pipe: Connection
    port: int
    subscribe: bytes
    watchers: dict[int, _Watcher] = field(default_factory=dict)
    sent_ns: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    heard_ns: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    to_join: int = 0
    to_subscribe: list[_Watcher] = field(default_factory=list)
    # On their way in, or waiting for their first count.
    joining: int = 0
    # The question that is open, and the version it is about. Each question is answered once.
    asked: str | None = None
    awaited: int = 0
    failed: Exception | None = None
    deadline_s: float = 0.0

    def serve(self) -> None:
        """Until the pipe is closed. Pings are answered at any time."""
        poller = select.epoll()
        poller.register(self.pipe.fileno(), select.EPOLLIN)
        while True:
            for descriptor, _ in poller.poll(-1 if self.asked is None else 0.05):
                if descriptor == self.pipe.fileno():
                    self.take(*self.pipe.recv())
                else:
                    self.read(poller, descriptor)
            self.let_in(poller)
            self.answer()

    def take(self, what: str, number: int) -> None:
        """A question of the measurement."""
        self.asked = what
        self.deadline_s = time.monotonic() + PATIENCE_S
        match what:
            case "join":
                self.to_join = number
            case "watch":
                self.to_subscribe = [each for each in self.watchers.values() if not each.has_asked]
            case _:
                self.awaited = number

    def let_in(self, poller: select.epoll) -> None:
        """As many as may be on their way at once."""
        while self.to_join and self.joining < JOINING_MAX:
            self.to_join -= 1
            self.joining += 1
            watcher = self.connect()
            self.watchers[watcher.socket.fileno()] = watcher
            poller.register(watcher.socket.fileno(), select.EPOLLIN)
        while self.to_subscribe and self.joining < JOINING_MAX:
            self.joining += 1
            watcher = self.to_subscribe.pop()
            watcher.has_asked = True
            watcher.socket.sendall(_frame(TEXT, self.subscribe))

    def answer(self) -> None:
        """Tell that it is done, or that it won't be."""
        if self.asked is None:
            return
        if self.failed is None and time.monotonic() > self.deadline_s:
            heard = len(self.heard_ns[self.awaited])
            self.failed = TimeoutError(
                f"{heard} of {len(self.watchers)} heard, {self.joining} on their way in"
            )
        if self.failed is not None:
            self.reply(self.failed)
        elif self.asked == "have":
            if len(self.heard_ns[self.awaited]) == len(self.watchers):
                sent_ns, heard_ns = self.sent_ns.pop(self.awaited), self.heard_ns.pop(self.awaited)
                self.reply(Arrivals(sorted(sent_ns), sorted(heard_ns)))
        elif self.to_join + len(self.to_subscribe) + self.joining == 0:
            self.reply(Arrivals([], []))

    def reply(self, answer: Arrivals | Exception) -> None:
        """What was asked is answered."""
        self.pipe.send(answer)
        self.asked = None

    def connect(self) -> _Watcher:
        """Somebody who asks to come in."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_UPGRADE)
        return _Watcher(connection)

    def read(self, poller: select.epoll, descriptor: int) -> None:
        """What the server has sent to one of them."""
        watcher = self.watchers[descriptor]
        try:
            received, stamps, _, _ = watcher.socket.recvmsg(65_536, 64)
        except ConnectionError:
            received, stamps = b"", []
        if not received:
            poller.unregister(descriptor)
            self.failed = self.failed or ConnectionError("a watcher's connection was closed")
            return
        heard_ns = time.time_ns()
        sent_ns = _nanoseconds(stamps)
        watcher.received += received
        while (message := _next_frame(watcher)) is not None:
            self.hear(watcher, *message, sent_ns=sent_ns, heard_ns=heard_ns)

    def hear(
        self, watcher: _Watcher, kind: int, payload: bytes, *, sent_ns: int | None, heard_ns: int
    ) -> None:
        """One message of the protocol."""
        if kind == PING:
            watcher.socket.sendall(_frame(PONG, payload))
        elif kind == CLOSE:
            self.failed = self.failed or ConnectionError(
                f"closed by the server: {payload[2:]!r} {payload[:2].hex()}"
            )
        elif kind == TEXT and b'"next"' in payload and watcher.version is not None:
            found = _VERSION.search(payload)
            assert found is not None and sent_ns is not None, payload
            version = int(found[1])
            if version > watcher.version:  # else it was told again, and is news to nobody
                watcher.version = version
                self.sent_ns[version].append(sent_ns)
                self.heard_ns[version].append(heard_ns)
        else:
            self.come_in(watcher, json.loads(payload))

    def come_in(self, watcher: _Watcher, message: dict[str, object]) -> None:
        """What is said until the first count is there, which is looked at as a whole."""
        match message:
            case {"type": "connection_ack"}:
                self.arrived()
            case {"type": "ping"}:
                watcher.socket.sendall(_frame(TEXT, b'{"type":"pong"}'))
            case {
                "type": "next",
                "payload": {"data": {"ticketCount": {"available": int(), "version": int() as version}}},
            }:
                watcher.version = version
                self.arrived()
            case _:
                self.failed = self.failed or ConnectionError(f"instead of a count: {message}")

    def arrived(self) -> None:
        """One less is on the way."""
        self.joining -= 1
        self.deadline_s = time.monotonic() + PATIENCE_S


def _next_frame(watcher: _Watcher) -> tuple[int, bytes] | None:
    """Opcode and payload of the next whole frame (RFC 6455, section 5.2), the answer to the upgrade left behind."""
    received = watcher.received
    if not watcher.is_open:
        head, is_whole, rest = received.partition(b"\r\n\r\n")
        if not is_whole:
            return None
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"no websocket: {head!r}")
        watcher.is_open, received = True, rest
        watcher.socket.sendall(_frame(TEXT, b'{"type":"connection_init"}'))
    start, length = 2, received[1] if len(received) > 1 else 0
    if length == 126:
        start, length = 4, int.from_bytes(received[2:4])
    elif length == 127:
        start, length = 10, int.from_bytes(received[2:10])
    if len(received) < max(2, start + length):
        watcher.received = received
        return None
    watcher.received = received[start + length :]
    return received[0] & 0xF, received[start : start + length]


def _frame(kind: int, payload: bytes) -> bytes:
    """A client's frame. Its mask is all zeros, so that the payload stays as it is."""
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2)
    return bytes([0x80 | kind]) + size + bytes(4) + payload


def _nanoseconds(stamps: list[tuple[int, int, bytes]]) -> int | None:
    """The kernel begins a little after it is first told to: the first packets may have none."""
    for level, kind, value in stamps:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", value[:16])
            return int(seconds) * 10**9 + int(nanoseconds)
    return None
