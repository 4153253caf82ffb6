"""What waits in a socket that has no room: one message per operation, in order, for a while."""

import asyncio
from collections.abc import Callable

import pytest

from infra.graphql_app.outlet import Outlet, Slot

pytestmark = pytest.mark.anyio

LIMIT_S = 10.0


class FakeLine:
    """A transport with room for so many messages."""

    def __init__(self, *, room_for: int) -> None:
        self.room_for = room_for
        self.written: list[bytes] = []
        self.on_room: Callable[[], None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether more may be written."""
        return len(self.written) < self.room_for

    async def room(self) -> None:
        """Never."""
        await asyncio.Event().wait()

    def write(self, text: bytes) -> None:
        """Room or not."""
        self.written.append(text)

    def take(self, *, room_for: int) -> list[bytes]:
        """What was written has been read, and there is room for so many."""
        taken, self.written, self.room_for = self.written, [], room_for
        assert self.on_room is not None
        self.on_room()
        return taken


class Desk:
    """An outlet with slots."""

    def __init__(self, *, room_for: int, send_timeout_s: float = LIMIT_S) -> None:
        self.line = FakeLine(room_for=room_for)
        self.given_up = asyncio.Event()
        self.ended: list[tuple[str, str]] = []
        self.outlet = Outlet(self.line, self.given_up.set, send_timeout_s=send_timeout_s)

    def slot(self, operation_id: str) -> Slot:
        """For one more operation."""
        return Slot(self.outlet, operation_id, on_end=lambda *end: self.ended.append(end))


def said(operation_id: str, payload: bytes) -> bytes:
    """A `next` message."""
    return b'{"type":"next","id":"%b","payload":%b}' % (operation_id.encode(), payload)


async def test_the_newest_waits_for_each_operation_in_the_order_they_began_to_wait() -> None:
    """And goes out as there is room: no more than that, and nothing twice."""
    desk = Desk(room_for=0)
    first, second = desk.slot("1"), desk.slot("2")
    for version in (1, 2, 3):
        second.tell(b"%d" % version, version=version)
        first.tell(b"%d" % version, version=version)
    assert desk.line.take(room_for=1) == []
    assert desk.line.take(room_for=1) == [said("2", b"3")]
    assert desk.line.take(room_for=1) == [said("1", b"3")]
    assert desk.line.written == []
    first.tell(b"4", version=4)
    assert desk.line.written == [said("1", b"4")]
    desk.outlet.close()


async def test_an_end_waits_behind_the_newest_and_frees_the_id_at_once() -> None:
    """What was sent before is not sent again with it."""
    desk = Desk(room_for=0)
    completed, failed = desk.slot("1"), desk.slot("2")
    for slot in (completed, failed):
        slot.tell(b"1", version=1)
    assert desk.line.take(room_for=2) == []
    assert desk.line.written == [said("1", b"1"), said("2", b"1")]
    completed.tell(b"2", version=2)
    completed.complete()
    failed.fail([], code="INTERNAL")
    assert desk.ended == [("1", "OK"), ("2", "INTERNAL")]
    desk.line.take(room_for=10)
    assert desk.line.written == [
        said("1", b"2"),
        b'{"type":"complete","id":"1"}',
        b'{"type":"error","id":"2","payload":[]}',
    ]


async def test_what_an_operation_had_to_say_is_forgotten_with_it() -> None:
    """The others go on waiting, and nobody is given up for the sake of what is forgotten."""
    desk = Desk(room_for=0, send_timeout_s=0.05)
    gone, staying = desk.slot("1"), desk.slot("2")
    gone.tell(b"1", version=1)
    desk.outlet.forget(gone)
    await asyncio.sleep(0.1)
    assert not desk.given_up.is_set()
    staying.tell(b"1", version=1)
    desk.outlet.forget(gone)
    desk.line.take(room_for=10)
    assert desk.line.written == [said("2", b"1")]


async def test_who_takes_nothing_is_given_up() -> None:
    """Also after it has taken a part; not after the outlet was closed, nor when all of it was taken."""
    for room_for, is_given_up in ((1, True), (2, False)):
        desk = Desk(room_for=0, send_timeout_s=0.05)
        for slot in (desk.slot("1"), desk.slot("2")):
            slot.tell(b"1", version=1)
        desk.line.take(room_for=room_for)
        await asyncio.sleep(0.1)
        assert desk.given_up.is_set() is is_given_up
    closed = Desk(room_for=0, send_timeout_s=0.05)
    closed.slot("1").tell(b"1", version=1)
    closed.outlet.close()
    await asyncio.sleep(0.1)
    assert not closed.given_up.is_set()


async def test_a_message_of_its_own_waits_only_so_long() -> None:
    """With room it does not wait at all."""
    desk = Desk(room_for=1, send_timeout_s=0.05)
    await desk.outlet.send(b"1")
    with pytest.raises(TimeoutError):
        await desk.outlet.send(b"2")
    assert desk.line.written == [b"1"]
