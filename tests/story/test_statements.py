"""What a request costs the database: the same number of SQL statements for 5 rows as for 50, pinned.

Who asks is not counted, because that is remembered for a moment; nor are BEGIN and COMMIT.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from infra.read_model import rebuild
from tests.client import BOOK, BOOKING, COUNT, MY_PAGE, PAY, Api, Concert, ticket_type
from tests.db_world import recorded
from tests.story.conftest import NewWorld
from tests.story.world import World

pytestmark = pytest.mark.anyio

ROWS = 50
FEW = 5

CONCERTS = f"""query($first: Int) {{ concerts(first: $first) {{ edges {{ node {{
  title ticketTypes {{ name }} ticketCount {{ ...C }} }} }} }} }} {COUNT}"""
ALL_OF_A_BOOKING = f"""fragment All on Booking {{
  ...B concert {{ title }} items {{ ticketType {{ name }} }} }} {BOOKING}"""


@dataclass
class Shop:
    """A world without a worker, where somebody holds one paid booking of each of many concerts."""

    world: World
    buyer: Api
    concerts: list[Concert]
    bookings: list[str]

    async def fill_read_model(self) -> None:
        """It says what the database says now."""
        assert await rebuild(self.world.frontrow.read_model, self.world.frontrow.source)

    async def statements(self, query: str, *, by: Api | None = None, **variables: object) -> list[str]:
        """What the database is asked for one request, which must succeed."""
        with recorded(self.world.frontrow.database) as seen:
            answer = (await (by or self.buyer).post(query, **variables)).json()
        assert "errors" not in answer, answer
        return [sql for sql, _ in seen if "sessions.token_hash" not in sql]


@asynccontextmanager
async def running_shop(new_world: NewWorld, *, concerts: int = ROWS) -> AsyncIterator[Shop]:
    """Nothing asks the database but what the test sends."""
    # Documents with 50 aliases are for tests.
    limits: dict[str, Any] = {"max_query_aliases": 1_000, "max_query_tokens": 100_000}
    async with new_world(worker="off", **limits) as world:
        await world.processor.control(webhook_url=None)  # it would be asking beside us
        buyer = await world.api.new_buyer()
        types = [ticket_type(), ticket_type("Balcony")]
        shown = [await world.admin.register(ticketTypes=types) for _ in range(concerts)]
        bookings = [(await buyer.booked(concert))["id"] for concert in shown]
        await asyncio.gather(*(buyer.pay(booking_id) for booking_id in bookings))
        yield Shop(world, buyer, shown, bookings)


async def test_a_page_costs_the_same_however_long_it_is(new_world: NewWorld) -> None:
    """Concerts with types and counts, my page, and bookings with all that hangs on them: 5 rows or 50."""
    async with running_shop(new_world) as shop:
        for rows in (FEW, ROWS):
            # The page, its ticket types, its counts.
            assert await _concerts(shop, rows) == 3
            # How new the page must be; the page, its items, how many there are.
            assert await _my_page(shop, rows) == 4
            # Bookings, items, payments, concerts, ticket types.
            assert await _bookings(shop, "booking", rows) == 5
            assert await _bookings(shop, "node", rows) == 5
        await shop.fill_read_model()
        for rows in (FEW, ROWS):
            assert await _concerts(shop, rows) == 2
            assert await _my_page(shop, rows) == 1
            assert await _bookings(shop, "booking", rows) == 5


async def test_booking_and_paying_cost_the_same_however_much_was_booked(new_world: NewWorld) -> None:
    """PostgreSQL is sent what is written in one statement or two, and asked for the time where SQLite is not."""
    async with running_shop(new_world, concerts=1) as shop:
        is_postgres = shop.world.settings.redis_url is not None
        concert = await shop.world.admin.register(
            maxTicketsPerUser=100, ticketTypes=[ticket_type(capacity=100)]
        )
        for _ in range(2):
            items = [{"ticketTypeId": concert.types[0], "quantity": 1}]
            booking = await shop.statements(BOOK, input={"concertId": concert.id, "items": items})
            assert len(booking) == (5 if is_postgres else 10)
            held = await shop.buyer.booked(concert)
            wanted = {"bookingId": held["id"], "paymentMethodId": "pm_card_visa"}
            paying = await shop.statements(PAY, input=wanted)
            assert len(paying) == (26 if is_postgres else 33)
            for _ in range(20):
                await shop.buyer.booked(concert)


async def _concerts(shop: Shop, rows: int) -> int:
    return len(await shop.statements(CONCERTS, by=shop.world.api, first=rows))


async def _my_page(shop: Shop, rows: int) -> int:
    return len(await shop.statements(MY_PAGE, first=rows))


async def _bookings(shop: Shop, field: str, rows: int) -> int:
    asked = " ".join(
        f'b{n}: {field}(id: "{booking_id}") {{ ...All }}' for n, booking_id in enumerate(shop.bookings[:rows])
    )
    return len(await shop.statements(f"{{ {asked} }} {ALL_OF_A_BOOKING}"))
