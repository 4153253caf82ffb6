"""Who is signed in is asked once in a while, and never believed for longer than that."""

import asyncio
from dataclasses import dataclass, field

import pytest

from domain.base import SessionId
from domain.user import Viewer
from infra.sign_ins import RememberedSignIns
from tests.paying import customer

pytestmark = pytest.mark.anyio


@dataclass
class Desk:
    """Reads that are counted, with a clock of their own."""

    viewers: dict[bytes, Viewer] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    now_s: float = 100.0
    may_answer: asyncio.Event | None = None

    async def read(self, token_hash: bytes) -> Viewer | None:
        """As it is when it is asked, told when it may be."""
        self.asked.append(token_hash)
        found = self.viewers.get(token_hash)
        if self.may_answer is not None:
            await self.may_answer.wait()
        return found

    def sign_ins(self, *, remembered_max: int = 10) -> RememberedSignIns:
        """Remembered for two seconds."""
        return RememberedSignIns(
            self.read, remembered_s=2.0, remembered_max=remembered_max, clock_s=lambda: self.now_s
        )


def viewer(name: str, *, left_s: float = 600.0) -> Viewer:
    """Signed in for so long."""
    known = customer(name)
    return Viewer(known.user, known.session, left_s)


async def test_a_token_is_looked_up_once_in_two_seconds() -> None:
    """What is left of the session shrinks meanwhile; then it is asked anew."""
    desk = Desk({b"a": viewer("ada")})
    sign_ins = desk.sign_ins()
    assert await sign_ins.viewer(b"a") == viewer("ada")
    desk.now_s += 1.5
    assert await sign_ins.viewer(b"a") == viewer("ada", left_s=598.5)
    assert desk.asked == [b"a"]
    desk.viewers.clear()
    desk.now_s += 0.5
    assert await sign_ins.viewer(b"a") is None
    assert desk.asked == [b"a", b"a"]


async def test_who_is_unknown_is_asked_for_every_time() -> None:
    """Somebody who signs up a moment later is signed in at once."""
    desk = Desk()
    sign_ins = desk.sign_ins()
    assert await sign_ins.viewer(b"a") is None
    desk.viewers[b"a"] = viewer("ada")
    assert await sign_ins.viewer(b"a") == viewer("ada")


async def test_a_session_that_ended_here_is_forgotten_at_once() -> None:
    """Also one that was just being read; the others are remembered."""
    desk = Desk({b"a": viewer("ada"), b"b": viewer("bob")})
    sign_ins = desk.sign_ins()
    await sign_ins.viewer(b"a")
    await sign_ins.viewer(b"b")
    del desk.viewers[b"a"]
    sign_ins.forget(SessionId("ada"))
    sign_ins.forget(SessionId("ada"))
    assert await sign_ins.viewer(b"a") is None
    assert await sign_ins.viewer(b"b") == viewer("bob")
    assert desk.asked == [b"a", b"b", b"a"]


async def test_a_read_that_a_log_out_overtook_is_not_remembered() -> None:
    """It saw the session as it was; the next one asks again."""
    desk = Desk({b"a": viewer("ada")}, may_answer=asyncio.Event())
    sign_ins = desk.sign_ins()
    early = asyncio.create_task(sign_ins.viewer(b"a"))
    await asyncio.sleep(0)
    del desk.viewers[b"a"]
    sign_ins.forget(SessionId("ada"))
    assert desk.may_answer is not None
    desk.may_answer.set()
    assert await early == viewer("ada")
    assert await sign_ins.viewer(b"a") is None


async def test_a_session_that_runs_out_meanwhile_is_over() -> None:
    """Remembered or not."""
    desk = Desk({b"a": viewer("ada", left_s=1.0)})
    sign_ins = desk.sign_ins()
    assert await sign_ins.viewer(b"a") is not None
    desk.now_s += 1.0
    assert await sign_ins.viewer(b"a") is None
    assert desk.asked == [b"a"]


async def test_no_more_are_remembered_than_may() -> None:
    """Whoever was read first goes first."""
    desk = Desk({name.encode(): viewer(name) for name in "abcd"})
    sign_ins = desk.sign_ins(remembered_max=3)
    for name in (b"a", b"b", b"c", b"d", b"b", b"a"):
        await sign_ins.viewer(name)
    assert desk.asked == [b"a", b"b", b"c", b"d", b"a"]
