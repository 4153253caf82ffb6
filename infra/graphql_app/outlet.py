"""What goes out of one socket: at once while there is room, then one message per operation waits, for a while."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from infra.graphql_app import messages
from infra.graphql_app.errors import FormattedError


class Line(Protocol):
    """The server's end of one connection."""

    on_room: Callable[[], None] | None

    @property
    def has_room(self) -> bool:
        """Whether the transport holds little enough to be given more."""
        ...

    async def room(self) -> None:
        """Wait for room."""
        ...

    def write(self, text: bytes) -> None:
        """Hand a message to the transport, room or not. Nothing where the connection is closing."""
        ...


class Outlet:
    """Sends what the socket says. Calls `give_up` where the client has taken nothing for `send_timeout_s`."""

    __slots__ = ("_give_up", "_line", "_send_timeout_s", "_timer", "_waiting")

    def __init__(self, line: Line, give_up: Callable[[], None], *, send_timeout_s: float) -> None:
        self._line = line
        self._give_up = give_up
        self._send_timeout_s = send_timeout_s
        # In the order in which they began to wait.
        self._waiting: dict[Slot, None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        """Whether what is said now need not wait."""
        return self._line.has_room

    async def send(self, message: bytes) -> None:
        """It is with the transport, which had room. Raises: TimeoutError where that takes too long."""
        if not self._line.has_room:
            async with asyncio.timeout(self._send_timeout_s):
                await self._line.room()
        self._line.write(message)

    def write(self, message: bytes) -> None:
        """It is with the transport."""
        self._line.write(message)

    def wait(self, slot: "Slot") -> None:
        """What the slot has to say is sent when there is room."""
        if self._waiting is None:
            self._waiting = {}
            self._line.on_room = self._flush
        self._waiting[slot] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._send_timeout_s, self._give_up)

    def forget(self, slot: "Slot") -> None:
        """What the slot had to say is not sent any more."""
        if self._waiting is not None and slot in self._waiting:
            del self._waiting[slot]
            self._stop_unless_waiting()

    def close(self) -> None:
        """Nothing waits any more."""
        self._waiting = None
        self._line.on_room = None
        self._stop_unless_waiting()

    def _flush(self) -> None:
        """There is room again: the client has taken something."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._line.has_room:
            slot = next(iter(self._waiting))
            del self._waiting[slot]
            slot.flush()
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._send_timeout_s, self._give_up)

    def _stop_unless_waiting(self) -> None:
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Slot:
    """What one operation on a socket says, out of a stream that it shares: the newest state, in order.

    What can't be sent yet waits here: the newest payload, and the end.
    """

    __slots__ = ("_end", "_on_end", "_operation_id", "_outlet", "_payload", "_start", "_version")

    def __init__(self, outlet: Outlet, operation_id: str, *, on_end: Callable[[str, str], None]) -> None:
        self._outlet = outlet
        self._operation_id = operation_id
        self._on_end = on_end
        self._start = messages.next_start(operation_id)
        self._version = -1
        self._payload: bytes | None = None
        self._end: bytes | None = None

    def tell(self, payload: bytes, *, version: int) -> None:
        """Say it, unless something as new was said before."""
        if version <= self._version:
            return
        self._version = version
        if self._outlet.has_room:
            self._outlet.write(b"".join((self._start, payload, messages.NEXT_END)))
        else:
            self._payload = payload
            self._outlet.wait(self)

    def fail(self, errors: Sequence[FormattedError], *, code: str) -> None:
        """The last that is said: it ended with these errors."""
        self._finish(messages.error(self._operation_id, errors), code)

    def complete(self) -> None:
        """The last that is said: it is over."""
        self._finish(messages.complete(self._operation_id), "OK")

    def flush(self) -> None:
        """What waits is with the transport."""
        if self._payload is not None:
            self._outlet.write(b"".join((self._start, self._payload, messages.NEXT_END)))
        if self._end is not None:
            self._outlet.write(self._end)
        self._payload = self._end = None

    def _finish(self, end: bytes, code: str) -> None:
        # First, because the client may use the id again as soon as it has read the last message.
        self._on_end(self._operation_id, code)
        if self._outlet.has_room:
            self._outlet.write(end)
        else:
            self._end = end
            self._outlet.wait(self)
