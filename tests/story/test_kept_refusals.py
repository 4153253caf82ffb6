"""Refusals under a key: kept where the request was at fault, and nowhere where only the moment was."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from infra.db.tables import bookings
from tests.client import (
    BOOK,
    CANCEL,
    CANCEL_CONCERT,
    PAY,
    REGISTER,
    UPDATE,
    Concert,
    Json,
    concert_input,
    ticket_type,
)
from tests.paying import PAST
from tests.story.conftest import NewWorld
from tests.story.crowd import told
from tests.story.keyed import Keyed, items
from tests.story.refusals import global_id, wrong_fields
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- kept
async def test_a_refused_booking_stays_refused_under_its_key(world: World) -> None:
    """Seats come back, the limit is raised, the window is opened again: only a new key is a new try."""
    concert = await world.admin.register(maxTicketsPerUser=2, ticketTypes=[ticket_type(capacity=2)])
    ann, eve = await world.api.new_buyer(), await world.api.new_buyer()
    taken = await eve.booked(concert, 2)
    sold_out = await ann.book(concert, key="sold out")
    limited = await eve.book(concert, key="limited")
    assert (sold_out["code"], sold_out["available"]) == ("SOLD_OUT", 0)
    assert (limited["code"], limited["remaining"]) == ("TICKET_LIMIT", 0)
    await eve.cancel(taken["id"])
    past = datetime.now(UTC) - timedelta(minutes=1)
    await change(world, concert, salesCloseAt=past.isoformat(), maxTicketsPerUser=6)
    closed = await ann.book(concert, key="closed")
    assert closed["code"] == "SALES_CLOSED"
    await change(world, concert, salesCloseAt=(past + timedelta(days=1)).isoformat())
    async with nothing_changes(world):
        assert await ann.book(concert, key="sold out") == sold_out
        assert await eve.book(concert, key="limited") == limited
        assert await ann.book(concert, key="closed") == closed
    assert (await ann.book(concert, key="new"))["__typename"] == "BookConcertSuccess"


async def test_a_wrong_input_stays_wrong_under_its_key(world: World) -> None:
    """It is told again in the same words, and the right input needs a new key."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    long = {"bookingId": booking["id"], "reason": "x" * 501}
    wrong = [
        Keyed(world.admin, REGISTER, concert_input(title=""), concert_input(), "title"),
        Keyed(
            world.admin,
            UPDATE,
            {"concertId": concert.id, "salesOpenAt": soon, "salesCloseAt": soon},
            {"concertId": concert.id},
            "salesCloseAt",
        ),
        Keyed(
            ann,
            BOOK,
            {"concertId": concert.id, "items": items(concert, 0)},
            {"concertId": concert.id, "items": items(concert, 1)},
            "items",
        ),
        Keyed(
            ann,
            PAY,
            {"bookingId": booking["id"], "paymentMethodId": " "},
            {"bookingId": booking["id"], "paymentMethodId": "pm_card_visa"},
            "paymentMethodId",
        ),
        Keyed(ann, CANCEL, long, long | {"reason": "ill"}, "reason"),
    ]
    refused = [await each.send() for each in wrong]
    assert [wrong_fields(each)[0][0] for each in refused] == [each.success for each in wrong]
    async with nothing_changes(world):
        assert [await each.send() for each in wrong] == refused
        assert told([await each.send_other() for each in wrong]) == {"IDEMPOTENCY_MISMATCH": 5}


async def test_what_was_not_found_stays_so_under_its_key(world: World) -> None:
    """Somebody else's booking, and what never was: the right one needs a new key."""
    concert = await world.admin.register()
    ann, eve = await world.api.new_buyer(), await world.api.new_buyer()
    mine, theirs = await ann.booked(concert), await eve.booked(concert)
    nothing = global_id("Concert")
    absent = [
        Keyed(world.admin, UPDATE, {"concertId": nothing}, {"concertId": concert.id}, ""),
        Keyed(world.admin, CANCEL_CONCERT, {"concertId": nothing}, {"concertId": concert.id}, ""),
        Keyed(
            ann,
            BOOK,
            {"concertId": nothing, "items": items(concert, 1)},
            {"concertId": concert.id, "items": items(concert, 1)},
            "",
        ),
        Keyed(
            ann,
            PAY,
            {"bookingId": theirs["id"], "paymentMethodId": "pm_card_visa"},
            {"bookingId": mine["id"], "paymentMethodId": "pm_card_visa"},
            "",
        ),
        Keyed(ann, CANCEL, {"bookingId": theirs["id"]}, {"bookingId": mine["id"]}, ""),
    ]
    assert told([await each.send() for each in absent]) == {"NOT_FOUND": 5}
    async with nothing_changes(world):
        assert told([await each.send() for each in absent]) == {"NOT_FOUND": 5}
        assert told([await each.send_other() for each in absent]) == {"IDEMPOTENCY_MISMATCH": 5}


@pytest.mark.parametrize(
    ("wrong_id", "code"),
    [("zz", "INVALID_INPUT"), (global_id("User"), "NOT_FOUND")],
    ids=["unreadable", "foreign"],
)
async def test_a_wrong_id_stays_wrong_under_its_key(world: World, wrong_id: str, code: str) -> None:
    """An id that can't be read, and one of another type, are refused as all input is: for good under the key."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = {"bookingId": (await ann.booked(concert))["id"]}
    of_concert, pay = {"concertId": concert.id}, {"paymentMethodId": "pm_card_visa"}
    line, capacity = items(concert, 1)[0], {"ticketTypeId": concert.types[0], "capacity": 20}
    unread = {"ticketTypeId": wrong_id}
    wrong = [
        Keyed(world.admin, UPDATE, {"concertId": wrong_id}, of_concert, ""),
        Keyed(
            world.admin,
            UPDATE,
            of_concert | {"capacities": [capacity | unread]},
            of_concert | {"capacities": [capacity]},
            "",
        ),
        Keyed(world.admin, CANCEL_CONCERT, {"concertId": wrong_id}, of_concert, ""),
        Keyed(ann, BOOK, {"concertId": wrong_id, "items": [line]}, of_concert | {"items": [line]}, ""),
        Keyed(ann, BOOK, of_concert | {"items": [line | unread]}, of_concert | {"items": [line]}, ""),
        Keyed(ann, PAY, {"bookingId": wrong_id} | pay, booking | pay, ""),
        Keyed(ann, CANCEL, {"bookingId": wrong_id}, booking, ""),
    ]
    refused = [await each.send(f"k{number}") for number, each in enumerate(wrong)]
    assert told(refused) == {code: 7}
    async with nothing_changes(world):
        assert [await each.send(f"k{number}") for number, each in enumerate(wrong)] == refused
        others = [await each.send_other(f"k{number}") for number, each in enumerate(wrong)]
        assert told(others) == {"IDEMPOTENCY_MISMATCH": 7}
    first = wrong[-1]
    assert (await first.send_other("new"))["__typename"] == "CancelBookingSuccess"
    assert (await first.send("new"))["code"] == "IDEMPOTENCY_MISMATCH"


async def test_a_state_that_refused_once_refuses_again_under_its_key(world: World) -> None:
    """The refusal is kept, and the booking in it is shown as it is now."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    paid, cancelled, expired = [await ann.booked(concert) for _ in range(3)]
    await ann.pay(paid["id"])
    await ann.cancel(cancelled["id"])
    await let_hold_pass(world)
    await ann.until_booking(expired["id"], lambda now: now["status"] == "EXPIRED")
    calls: dict[str, Callable[[], Awaitable[Json]]] = {
        "ALREADY_PAID": lambda: ann.pay(paid["id"], key="a"),
        "ALREADY_CANCELLED": lambda: ann.cancel(cancelled["id"], key="b"),
        "HOLD_EXPIRED": lambda: ann.pay(expired["id"], key="c"),
    }
    for code, call in calls.items():
        refused = await call()
        assert (refused["__typename"], refused["code"]) == ("BookingStateProblem", code)
        assert not refused["retryable"]
    await ann.cancel(paid["id"])
    final = await ann.until_booking(paid["id"], lambda now: now["isFinal"])
    async with nothing_changes(world):
        assert [(await call())["code"] for call in calls.values()] == list(calls)
        assert (await ann.pay(paid["id"], key="a"))["booking"] == final
    assert (await ann.pay(paid["id"], key="new"))["code"] == "ALREADY_CANCELLED"


async def test_a_concerts_refusal_is_kept_too(world: World) -> None:
    """A capacity that was too small stays so, and a cancelled concert's change stays refused."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert, 3)
    small = {"concertId": concert.id, "capacities": [{"ticketTypeId": concert.types[0], "capacity": 2}]}
    shrink = Keyed(world.admin, UPDATE, small, small, "")
    refused = await shrink.send()
    assert (refused["code"], refused["taken"]) == ("CAPACITY_TAKEN", 3)
    await ann.cancel(booking["id"])
    async with nothing_changes(world):
        assert await shrink.send() == refused
    assert (await shrink.send("new"))["__typename"] == "UpdateConcertSuccess"
    await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
    late = await shrink.send("late")
    assert (late["__typename"], late["code"]) == ("ConcertStateProblem", "CONCERT_CANCELLED")
    assert (await shrink.send("new"))["__typename"] == "UpdateConcertSuccess"
    assert await shrink.send("late") == late


async def test_a_decline_is_kept_and_another_key_may_pay(world: World) -> None:
    """The declined key goes on saying so after the booking was paid with another card."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    method = "pm_card_visa_chargeDeclined"
    declined = await ann.pay(booking["id"], method, key="k")
    paid = await ann.pay(booking["id"], key="new")
    again = await ann.pay(booking["id"], method, key="k")
    assert (again["__typename"], again["declineCode"]) == ("PaymentDeclinedProblem", declined["declineCode"])
    assert again["booking"] == paid["booking"]
    assert len(await world.processor.captured()) == 1


# ---------------------------------------------------------------- what may be asked again
async def test_a_key_refused_before_the_window_opens_works_afterwards(world: World) -> None:
    """SALES_NOT_OPEN is stored nowhere and says how long to wait."""
    opens = datetime.now(UTC) + timedelta(hours=1)
    concert = await world.admin.register(salesOpenAt=opens.isoformat())
    ann = await world.api.new_buyer()
    async with nothing_changes(world):
        early = await ann.book(concert, key="k")
    assert (early["code"], early["retryable"]) == ("SALES_NOT_OPEN", True)
    assert 3_500_000 < early["retryAfterMs"] <= 3_600_000
    await change(world, concert, salesOpenAt=(opens - timedelta(hours=2)).isoformat())
    booked = await ann.book(concert, key="k")
    assert booked["__typename"] == "BookConcertSuccess"
    assert (await ann.book(concert, key="k"))["booking"]["id"] == booked["booking"]["id"]


async def test_a_key_refused_during_another_payment_works_afterwards(new_world: NewWorld) -> None:
    """PAYMENT_IN_PROGRESS is stored nowhere; once the first card is declined the same key pays."""
    async with new_world(payment_timeout_ms=10_000) as world:
        ann = await world.api.new_buyer()
        booking = await ann.booked(await world.admin.register())
        await world.processor.control(latency_ms=[400, 400])
        first = asyncio.create_task(ann.pay(booking["id"], "pm_card_visa_chargeDeclined", key="first"))

        async def second() -> Json:
            return await ann.pay(booking["id"], key="second")

        await ann.until_booking(booking["id"], lambda now: now["status"] == "PAYMENT_PENDING")
        refused = await second()
        assert (refused["code"], refused["retryable"]) == ("PAYMENT_IN_PROGRESS", True)
        assert refused["retryAfterMs"] > 0
        await world.processor.control(latency_ms=[0, 0])
        assert (await first)["code"] == "PAYMENT_DECLINED"
        assert (await second())["__typename"] == "PayBookingSuccess"


# ---------------------------------------------------------------- helpers
async def change(world: World, concert: Concert, **facts: object) -> None:
    """updateConcert, which works."""
    result = await world.admin.ask(UPDATE, input={"concertId": concert.id, **facts})
    assert result["__typename"] == "UpdateConcertSuccess", result


async def let_hold_pass(world: World) -> None:
    """Every hold's time is over."""
    async with world.frontrow.database.writers.transaction() as statements:
        await statements.change(update(bookings).values(hold_until=PAST))
        await statements.commit()
