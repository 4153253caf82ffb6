"""The answer is lost after the COMMIT: whoever asks again with the same key has what the first request did.

Issue 3, promises 4 and 8: every mutation that takes a key, and the processor's webhooks.
"""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra.db.invariants import broken
from infra.db.tables import webhook_events
from infra.failpoints import Action, Failpoints
from infra.settings import Settings, WorkerPlace
from tests.client import until
from tests.faults.fork_server import ForkServer
from tests.faults.house import House, insist, running_house, until_true
from tests.story.keyed import Keyed
from tests.story.test_keys import (
    a_booking,
    a_cancelled_booking,
    a_cancelled_concert,
    a_payment,
    a_registration,
    an_update,
)
from tests.story.unchanged import nothing_changes
from tests.story.world import World, running_world

pytestmark = pytest.mark.anyio

# The one transaction of each mutation, after which all of it is there and nobody knows.
WHOLE = {
    "register_concert": a_registration,
    "update_concert": an_update,
    "cancel_concert": a_cancelled_concert,
    "book": a_booking,
    "cancel": a_cancelled_booking,
    "settle": a_payment,
}
# Those of a payment after which it is under way, and what is told until it is given up: the turn is taken, the attempt
# is sent.
HALF = {"pay.begin": "IN_PROGRESS", "pay.send": "PaymentPending"}


@pytest.fixture
def failpoints() -> Failpoints:
    """The points of the one application of a test."""
    return Failpoints()


class Lossy:
    """Starts a world whose worker works only when it is told to."""

    def __init__(self, database_url: str, redis_url: str, failpoints: Failpoints) -> None:
        self._urls: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url}
        self._failpoints = failpoints

    def world(self, *, payment_timeout_ms: int) -> AbstractAsyncContextManager[World]:
        """Until the block ends; an attempt that nobody confirmed is given up after half a second."""
        settings = Settings(
            **self._urls,
            demo=False,
            worker=WorkerPlace.OFF,
            payment_timeout_ms=payment_timeout_ms,
            payment_settle_after_s=0.5,
        )
        return running_world(settings, failpoints=self._failpoints)


@pytest.fixture
def lossy(postgres_database_url: str, redis_url: str, failpoints: Failpoints) -> Lossy:
    """On PostgreSQL and Redis."""
    return Lossy(postgres_database_url, redis_url, failpoints)


async def lost(keyed: Keyed) -> None:
    """Asked once; the database is away before the answer."""
    error = await keyed.who.error(keyed.query, input=keyed.input | {"idempotencyKey": "k"})
    assert error["extensions"]["code"] == "RETRYABLE" and error["extensions"]["retryAfterMs"] > 0


async def test_what_was_committed_is_answered_to_whoever_asks_again(
    lossy: Lossy, failpoints: Failpoints
) -> None:
    """Each mutation with its answer lost after the COMMIT: asked again it succeeds, and not a row changes any more."""
    async with lossy.world(payment_timeout_ms=20_000) as world:
        await world.processor.control(webhook_url="")  # it would settle beside us
        for transaction, make in WHOLE.items():
            keyed = await make(world)
            failpoints.arm(f"{transaction}.commit.answered", Action.ERROR)
            await lost(keyed)
            async with world.frontrow.worker.running():
                await world.outbox_is_empty()
            async with nothing_changes(world):
                again = await keyed.send()
                assert again["__typename"] == keyed.success, transaction
                assert await keyed.send() == again
        assert len(await world.processor.captured()) == 1
        assert [text async for text in broken(world.frontrow.database)] == []


@pytest.mark.parametrize("transaction", HALF)
async def test_a_payment_half_begun_is_taken_up_by_whoever_asks_again(
    lossy: Lossy, failpoints: Failpoints, transaction: str
) -> None:
    """In progress or pending until what was begun is given up; then the same key pays, and money is taken once."""
    async with lossy.world(payment_timeout_ms=2_000) as world:
        keyed = await a_payment(world)
        failpoints.arm(f"{transaction}.commit.answered", Action.ERROR)
        await lost(keyed)
        first = await keyed.send()
        assert (first.get("code") or first["__typename"]) == HALF[transaction]
        async with world.frontrow.worker.running():
            paid = await until(keyed.send, lambda answer: answer["__typename"] == keyed.success)
            await world.outbox_is_empty()
        async with nothing_changes(world):
            assert await keyed.send() == paid
        assert len(await world.processor.captured()) == 1
        assert [text async for text in broken(world.frontrow.database)] == []


@pytest.mark.parametrize("point", ["settle.commit", "settle.commit.answered"])
async def test_a_webhook_is_heard_once_though_the_process_dies(
    fork_server: ForkServer, postgres_database_url: str, redis_url: str, tmp_path: Path, point: str
) -> None:
    """Killed just before or just after it committed what a webhook told; the processor sends it again."""
    async with running_house(
        fork_server,
        database_url=postgres_database_url,
        redis_url=redis_url,
        log=tmp_path / "log",
        worker="off",  # nobody but the webhook tells
    ) as house:
        admin = await house.admin()
        ann = await house.api.new_buyer()
        booking = await ann.booked(await admin.register())
        asked = await ann.pay(booking["id"], "pm_card_authenticationRequired")
        await until_true(lambda: _are_heard(house, 1))  # that it waits for the buyer
        house.child.arm(point, Action.KILL)
        await house.http.get(asked["redirectUrl"])
        await until_true(lambda: _are_heard(house, 2))
        approved = await insist(lambda: ann.booking(booking["id"]))
        assert (house.deaths, approved["status"]) == (1, "APPROVED")
        assert approved["version"] == asked["booking"]["version"] + 1
        assert [text async for text in broken(house.database)] == []


async def _are_heard(house: House, number: int) -> bool:
    """So many events are stored."""
    async with house.database.readers.single() as statements:
        return len(await statements.rows(select(webhook_events))) == number
