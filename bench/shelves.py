"""Databases of a chosen size, whole in every respect: what `frontrow verify` checks is true of them."""

import asyncio
from collections.abc import Awaitable, Callable

from bench.shop import Ticket, connect, sign_in, viewer_of
from domain.base import ConcertId, TicketTypeId
from domain.booking import Quantity
from domain.ports import Deps
from domain.use_cases.booking import BookConcert, book_concert
from infra.app import composed
from infra.db.migrations import migrate
from infra.settings import Settings
from tests.faults.million import fill_postgres

# Those whose page is read; each has so many bookings in every database.
READERS = 50
EACH_HAS = 10
# Seats for everybody who comes, and starts that differ, before the catalogue is made from the sales.
ROOM = """
UPDATE sale_stock SET capacity = capacity + 10000000 WHERE concert_id = (SELECT min(concert_id) FROM sales);
UPDATE sales SET starts_at = starts_at + ('x' || left(concert_id, 8))::bit(32)::integer % 1440 * interval '1 min';
"""
CATALOGUE = r"""
INSERT INTO concerts (id, title, performer, description, venue, time_zone, starts_at, sales_open_at, sales_close_at,
  max_tickets_per_user, status, created_at, search_text)
SELECT concert_id, title, 'The Signal Keepers', '', venue, 'Europe/Amsterdam', starts_at, sales_open_at,
  sales_close_at, max_tickets_per_user, 'SCHEDULED', sales_open_at,
  lower(title) || E'\nthe signal keepers\n' || lower(venue)
FROM sales;
INSERT INTO ticket_types (id, concert_id, position, name, price_minor, currency, capacity)
SELECT ticket_type_id, concert_id, position, name, price_minor, currency, capacity FROM sale_stock;
"""
SALES = """
INSERT INTO sales (concert_id, title, venue, starts_at, sales_open_at, sales_close_at, max_tickets_per_user,
  is_cancelled, version)
SELECT lpad(to_hex(n), 8, '0') || '-0000-7000-8000-00000000c000', 'Concert ' || n, 'Paradiso',
  now() + interval '9 days', now() - interval '9 days', now() + interval '9 days', 40, false, 1
FROM generate_series(0, {concerts} - 1) AS n;
INSERT INTO sale_stock (ticket_type_id, concert_id, position, name, price_minor, currency, capacity, held, sold)
SELECT left(concert_id, 8) || '-0000-7000-8000-0000000c0000', concert_id, 0, 'Standing', 3500, 'EUR', 100, 0, 0
FROM sales;
"""
HOT = "SELECT concert_id, ticket_type_id FROM sale_stock ORDER BY concert_id, position LIMIT 1"

Fill = Callable[[str], Awaitable[None]]


def of_bookings(bookings: int) -> Fill:
    """10,000 concerts with so many bookings, a twentieth of them of the first concert."""

    async def fill(url: str) -> None:
        await fill_postgres(url, bookings)

    return fill


def of_concerts(concerts: int) -> Fill:
    """So many concerts that nobody has booked."""

    async def fill(url: str) -> None:
        await migrate(url)
        await _execute(url, SALES.format(concerts=concerts))

    return fill


async def filled(url: str, fill: Fill, *, buyers: int) -> Ticket:
    """All of it, a catalogue and people who are signed in; the first concert sells, to the readers first."""
    await fill(url)
    await _execute(url, ROOM)
    await _execute(url, CATALOGUE)
    await sign_in(url, buyers)
    connection = await connect(url)
    try:
        row = await connection.fetchrow(HOT)
        ticket = Ticket(ConcertId(row["concert_id"]), TicketTypeId(row["ticket_type_id"]))
        async with composed(Settings(database_url=url, demo=False)) as frontrow:
            for _ in range(EACH_HAS):
                await asyncio.gather(*(_book(frontrow.deps, number, ticket) for number in range(READERS)))
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    return ticket


async def _book(deps: Deps, number: int, ticket: Ticket) -> None:
    wanted = BookConcert(ticket.concert_id, (Quantity(ticket.ticket_type_id, 1),))
    await book_concert(deps, viewer_of(number), wanted)


async def _execute(url: str, sql: str) -> None:
    connection = await connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
