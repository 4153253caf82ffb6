"""Webhooks late, shuffled and repeated; late money that they bring, and how its buyer hears of it."""

import json
import time
from collections.abc import Awaitable, Callable
from itertools import permutations
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from domain.use_cases.booking import expire_due
from infra.db.tables import webhook_events
from infra.settings import WorkerPlace
from tests.client import WATCH_BOOKING, WATCH_MINE, Api, Concert, Json
from tests.story.conftest import NewWorld
from tests.story.crowd import assert_promises_hold
from tests.story.test_bad_days import deliver, let_hold_pass, seats
from tests.story.world import World

pytestmark = pytest.mark.anyio

THREE_DAYS_S = 3 * 86_400
AUTHENTICATED = "pm_card_authenticationRequired"


def event(kind: str, entry: Json, *, age_s: int = 0) -> bytes:
    """An event about an intent or its charge, created so long ago; it is signed when it is sent."""
    subject: Json = {"id": entry["payment_intent"], "object": "payment_intent", "metadata": entry["metadata"]}
    if kind.startswith("charge."):
        subject = {"id": "ch_1", "object": "charge", "payment_intent": entry["payment_intent"]}
    facts = {"id": f"evt_{uuid4().hex}", "type": kind, "created": int(time.time()) - age_s}
    return json.dumps(facts | {"object": "event", "data": {"object": subject}}).encode()


async def paid_in_silence(world: World, ann: Api, concert: Concert) -> tuple[Json, Json]:
    """A booking that was paid on the bank's page, which nobody here has heard of, and its entry at the processor."""
    await world.processor.control(webhook_url="")
    before = await world.processor.ledger()
    booking = await ann.booked(concert)
    asked = await ann.pay(booking["id"], AUTHENTICATED)
    assert asked["__typename"] == "PaymentActionRequired"
    await world.processor.http.get(asked["redirectUrl"])
    (entry,) = (await world.processor.ledger())[len(before) :]
    assert entry["status"] == "succeeded"
    return asked["booking"], entry


# ---------------------------------------------------------------- late money
async def nothing(world: World, concert: Concert) -> None:
    """The seats are free."""


async def seats_are_taken(world: World, concert: Concert) -> None:
    """By somebody else."""
    await (await world.api.new_buyer()).booked(concert)


@pytest.mark.parametrize(
    ("meanwhile", "status", "paid"),
    [(nothing, "APPROVED", "CAPTURED"), (seats_are_taken, "EXPIRED", "REFUNDED")],
    ids=["free seats", "taken seats"],
)
async def test_late_money_is_answered_200_and_its_buyer_is_told(
    new_world: NewWorld, meanwhile: Callable[[World, Concert], Awaitable[None]], status: str, paid: str
) -> None:
    """The webhook comes after the hold has expired: the streams say what came of it, and so does my page."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        concert = await world.admin.register(ticketTypes=[seats(1)])
        ann = await world.api.new_buyer()
        booking, entry = await paid_in_silence(world, ann, concert)
        await let_hold_pass(world)
        assert await expire_due(world.frontrow.deps) == 1
        await meanwhile(world, concert)
        is_told = is_paid_as(paid)
        async with (
            ann.watching(WATCH_BOOKING, id=booking["id"]) as one,
            ann.watching(WATCH_MINE) as mine,
        ):
            expired = await one.next()
            assert (expired["status"], expired["isFinal"]) == ("EXPIRED", False)
            assert await deliver(world, event("payment_intent.succeeded", entry)) == 200
            async with world.frontrow.worker.running():
                for stream in (one, mine):
                    assert (await stream.until(is_told))[-1]["status"] == status
                await world.outbox_is_empty()
        (row,) = await ann.my_rows()
        assert (row["status"], row["paymentStatus"]) == (status, paid)
        await money_went_back(world, is_back=paid == "REFUNDED")


async def test_money_after_a_cancellation_is_answered_200_and_goes_back(new_world: NewWorld) -> None:
    """The buyer hears that it is on its way and that it is back, on the booking's stream and on my page."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        ann = await world.api.new_buyer()
        concert = await world.admin.register()
        booking, entry = await paid_in_silence(world, ann, concert)
        assert (await ann.cancel(booking["id"]))["__typename"] == "CancelBookingSuccess"
        async with ann.watching(WATCH_BOOKING, id=booking["id"]) as stream:
            assert (await stream.next())["isFinal"] is False
            for _ in range(2):
                assert await deliver(world, event("payment_intent.succeeded", entry)) == 200
            async with world.frontrow.worker.running():
                heard = await stream.until(is_paid_as("REFUNDED"))
                await world.outbox_is_empty()
        assert {now["status"] for now in heard} == {"CANCELLED"} and heard[-1]["isFinal"]
        (row,) = await ann.my_rows()
        assert (row["status"], row["paymentStatus"]) == ("CANCELLED", "REFUNDED")
        assert await ann.seats(concert) == (10, 0, 0)
        await money_went_back(world, is_back=True)


def is_paid_as(status: str) -> Callable[[Json], bool]:
    """Whether the payment stands so."""
    return lambda now: bool(now["paymentStatus"] == status)


async def money_went_back(world: World, *, is_back: bool) -> None:
    """All of it or nothing."""
    (entry,) = await world.processor.captured()
    assert entry["amount_refunded"] == (entry["amount"] if is_back else 0)
    await assert_promises_hold(world)


# ---------------------------------------------------------------- in any order
async def test_no_order_of_webhooks_makes_a_difference(new_world: NewWorld) -> None:
    """Three events of one payment in each of six orders, each sent twice: every booking is APPROVED, once."""
    kinds = ("payment_intent.requires_action", "payment_intent.succeeded", "charge.succeeded")
    async with new_world(worker=WorkerPlace.OFF) as world:
        concert = await world.admin.register(maxTicketsPerUser=10)
        ann = await world.api.new_buyer()
        for order in permutations(kinds):
            booking, entry = await paid_in_silence(world, ann, concert)
            for body in [event(kind, entry) for kind in order]:
                assert [await deliver(world, body), await deliver(world, body)] == [200, 200]
            now = await ann.booking(booking["id"])
            assert (now["status"], now["version"]) == ("APPROVED", booking["version"] + 1), order
        assert await stored(world) == 18
        assert await ann.seats(concert) == (4, 0, 6)
        await assert_promises_hold(world)


async def test_a_webhook_that_is_three_days_late_changes_nothing(new_world: NewWorld) -> None:
    """Paid, cancelled and refunded meanwhile; the event is old and its signature is not, so it is heard, once."""
    async with new_world() as world:
        ann = await world.api.new_buyer()
        concert = await world.admin.register()
        booking = await ann.booked(concert)
        await ann.pay(booking["id"])
        await ann.cancel(booking["id"])
        final = await ann.until_booking(booking["id"], lambda now: now["payment"]["status"] == "REFUNDED")
        await world.processor.control(webhook_url="")
        await world.outbox_is_empty()
        (entry,) = await world.processor.captured()
        before = await stored(world)
        for kind in ("payment_intent.succeeded", "payment_intent.payment_failed", "charge.refunded"):
            body = event(kind, entry, age_s=THREE_DAYS_S)
            assert await deliver(world, body, at=time.time() - 290) == 200
            assert await deliver(world, body) == 200
        assert await stored(world) == before + 3
        assert await ann.booking(booking["id"]) == final
        await money_went_back(world, is_back=True)


async def stored(world: World) -> int:
    """How many events are remembered."""
    async with world.frontrow.database.readers.single() as statements:
        (row,) = await statements.rows(select(func.count()).select_from(webhook_events))
    return int(row[0])
