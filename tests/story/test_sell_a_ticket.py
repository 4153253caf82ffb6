"""The main story: register, book, pay, approve, watch, cancel, refund."""

import pytest

from tests.client import WATCH_BOOKING, WATCH_COUNT, WATCH_MINE, ticket_type
from tests.story.world import World

pytestmark = pytest.mark.anyio


async def test_a_ticket_is_sold_and_given_back(world: World) -> None:
    """Every step moves the count, my page shows it at once, and the money follows."""
    concert = await world.admin.register(
        ticketTypes=[ticket_type(), ticket_type("Balcony", price_minor=8_900)]
    )
    ann = await world.api.new_buyer()
    items = [
        {"ticketTypeId": concert.types[0], "quantity": 2},
        {"ticketTypeId": concert.types[1], "quantity": 1},
    ]
    booked = (await ann.book_items(concert.id, items))["booking"]
    assert (booked["status"], booked["total"]["amountMinor"]) == ("AWAITING_PAYMENT", 2 * 3_500 + 8_900)
    assert booked["payBy"] is not None and booked["payment"] is None
    assert await ann.seats(concert) == (17, 3, 0)
    (row,) = await ann.my_rows()
    assert (row["bookingId"], row["status"], row["ticketQuantity"]) == (booked["id"], "AWAITING_PAYMENT", 3)

    paid = await ann.pay(booked["id"])
    assert (paid["__typename"], paid["booking"]["status"]) == ("PayBookingSuccess", "APPROVED")
    assert paid["booking"]["payment"]["status"] == "CAPTURED" and paid["booking"]["payBy"] is None
    assert await ann.seats(concert) == (17, 0, 3)
    (row,) = await ann.my_rows()
    assert (row["status"], row["paymentStatus"], row["isFinal"]) == ("APPROVED", "CAPTURED", False)

    cancelled = await ann.cancel(booked["id"])
    assert (cancelled["__typename"], cancelled["booking"]["status"]) == ("CancelBookingSuccess", "CANCELLED")
    assert await ann.seats(concert) == (20, 0, 0)
    final = await ann.until_booking(booked["id"], lambda booking: booking["isFinal"])
    assert final["payment"]["status"] == "REFUNDED"
    (entry,) = await world.processor.captured()
    assert entry["amount"] == entry["amount_refunded"] == 2 * 3_500 + 8_900


async def test_everyone_watching_sees_each_state(world: World) -> None:
    """A snapshot first, then every later state; the booking's stream ends once it is final."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    async with (
        world.api.watching(WATCH_COUNT, id=concert.id) as counts,
        ann.watching(WATCH_MINE) as mine,
    ):
        assert (await counts.next())["available"] == 10
        booking = await ann.booked(concert, 2)
        seen = await counts.until(lambda now: now["held"] == 2)
        assert seen[-1]["available"] == 8
        assert (await mine.next())["bookingId"] == booking["id"]
        async with ann.watching(WATCH_BOOKING, id=booking["id"]) as stream:
            first = await stream.next()
            assert (first["status"], first["version"]) == ("AWAITING_PAYMENT", booking["version"])
            await ann.pay(booking["id"])
            approved = await stream.until(lambda now: now["status"] == "APPROVED")
            assert approved[-1]["booking"]["status"] == "APPROVED"
            await ann.cancel(booking["id"])
            ended = await stream.until(lambda now: now["isFinal"])
            assert ended[-1]["paymentStatus"] == "REFUNDED"
            versions = [now["version"] for now in [first, *approved, *ended]]
            assert versions == sorted(set(versions))
            assert (await stream.message())["type"] == "complete"
        seen = await counts.until(lambda now: now["available"] == 10)
        assert all(now["available"] + now["held"] + now["sold"] == 10 for now in seen)


async def test_a_declined_card_can_be_replaced(world: World) -> None:
    """A decline is no outage: the seats stay held, and another card works under a new key."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    declined = await ann.pay(booking["id"], "pm_card_visa_chargeDeclined", key="k1")
    assert (declined["__typename"], declined["code"]) == ("PaymentDeclinedProblem", "PAYMENT_DECLINED")
    assert declined["booking"]["status"] == "AWAITING_PAYMENT" and declined["declineCode"]
    assert (await ann.pay(booking["id"], "pm_card_visa_chargeDeclined", key="k1"))["declineCode"]
    paid = await ann.pay(booking["id"], key="k2")
    assert paid["__typename"] == "PayBookingSuccess"
    assert len(await world.processor.captured()) == 1


async def test_a_card_that_wants_authentication_gets_its_page(world: World) -> None:
    """The page behind redirectUrl completes the payment, and the webhook or the poll approves the booking."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    asked = await ann.pay(booking["id"], "pm_card_authenticationRequired", key="k1")
    assert asked["__typename"] == "PaymentActionRequired" and asked["clientSecret"]
    assert asked["booking"]["payment"]["status"] == "REQUIRES_ACTION"
    again = await ann.pay(booking["id"], "pm_card_authenticationRequired", key="k2")
    assert again["redirectUrl"] == asked["redirectUrl"]
    assert (await world.processor.http.get(asked["redirectUrl"])).status_code == 200
    approved = await ann.until_booking(booking["id"], lambda now: now["status"] == "APPROVED")
    assert approved["payment"]["status"] == "CAPTURED"
    assert (await ann.pay(booking["id"], "pm_card_authenticationRequired", key="k1"))[
        "__typename"
    ] == "PayBookingSuccess"
    assert len(await world.processor.captured()) == 1
