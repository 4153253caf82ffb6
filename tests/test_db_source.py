"""The write side from end to end: everything once, in batches of any size, and digested as Python digests it."""

from datetime import timedelta
from typing import Any

import pytest

from domain.base import ConcertId, Money, PaymentId, PaymentStatus, UserId
from domain.booking import Booking, BookingItem, BookingStatus
from infra.db.source import WriteSideSource
from infra.db.unit import Database
from infra.read_model import BuyerDigest
from infra.read_model.documents import digest_of, line_of
from tests.db_world import NOW, a_booking, a_sale, open_sale, put_booking

pytestmark = pytest.mark.anyio

LATER = NOW.replace(microsecond=0) + timedelta(hours=1)
# Every kind of value: with and without microseconds, something and nothing, signs that JSON escapes and those it
# must not.
KINDS: list[dict[str, Any]] = [
    {},
    {
        "created_at": LATER,
        "hold_until": LATER + timedelta(microseconds=1),
        "updated_at": LATER + timedelta(1),
    },
    {"status": BookingStatus.PAYMENT_DEFERRED, "is_extended": True, "retry_pay_at": LATER},
    {
        "status": BookingStatus.CANCELLED,
        "is_final": True,
        "is_graced": True,
        "payment_id": PaymentId("p"),
        "payment_status": PaymentStatus.DECLINED,
        "decline_code": 'a "b" \\ / \x01\x1f\x7f\t\n <é> \u2028 🎸',
        "version": 12,
    },
]


async def a_world(database: Database) -> list[Booking]:
    """Ada's bookings, and Eve's, who bought two kinds of tickets; a sale that sold nothing."""
    sale = await open_sale(database, a_sale("c1", capacities=(10, 10)))
    await open_sale(database, a_sale("c2"))
    floor, box = sale.stock
    kept = [a_booking(sale, f"b{n}", **kind) for n, kind in enumerate(KINDS)]
    items = (
        BookingItem(floor.ticket_type_id, floor.name, 2, floor.price),
        BookingItem(box.ticket_type_id, 'Box "Ä" \\ 1\n', 1, Money(0, floor.price.currency)),
    )
    kept.append(a_booking(sale, "eves", user="eve", items=items))
    for booking in kept:
        await put_booking(database, booking)
    return kept


@pytest.mark.parametrize("size", [1, 100])
async def test_source_hands_out_everything_once(database: Database, size: int) -> None:
    """Every sale, and every buyer with version and bookings, in batches of any size."""
    kept = await a_world(database)
    source = WriteSideSource(database, sales_per_batch=size, buyers_per_batch=size)
    assert [sale.concert_id async for batch in source.sales() for sale in batch] == ["c1", "c2"]
    buyers = [buyer async for batch in source.buyers() for buyer in batch]
    assert [(buyer.user_id, buyer.version) for buyer in buyers] == [("ada", 4), ("eve", 1)]
    bookings = [booking for buyer in buyers for booking in sorted(buyer.bookings, key=lambda each: each.id)]
    assert bookings == kept
    assert await source.buyers_of([UserId("eve"), UserId("none")]) == buyers[1:]


@pytest.mark.parametrize("size", [1, 100])
async def test_digests_are_those_of_the_bookings(database: Database, size: int) -> None:
    """Whatever is in them, also where the database writes the text that is digested."""
    kept = await a_world(database)
    source = WriteSideSource(database, digests_per_batch=size)
    lines = [line_of(booking) for booking in kept]
    assert [digest async for batch in source.digests() for digest in batch] == [
        BuyerDigest(UserId("ada"), digest_of(4, lines[:4])),
        BuyerDigest(UserId("eve"), digest_of(1, lines[4:])),
    ]


async def test_source_tells_what_it_does_not_know(database: Database) -> None:
    """Of sales and of buyers, in the order asked."""
    await a_world(database)
    source = WriteSideSource(database)
    sales = [ConcertId("x"), ConcertId("c2"), ConcertId("c")]
    assert await source.unknown_sales(sales) == ["x", "c"]
    assert await source.unknown_buyers([UserId("eve"), UserId("bob"), UserId("ad")]) == ["bob", "ad"]
