"""Reads: pages that neither skip nor repeat, a fixed number of statements each, every index in use."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.exc import DBAPIError

from domain.base import BadUserInput, BookingId, ConcertId, DatabaseAway, Page, PageKey, PageQuery, UserId
from domain.booking import BookingStatus
from domain.concert import Concert, ConcertFilter, ConcertOrder, ConcertStatus, concert_page_key
from domain.my_page import MyBooking, my_page_key
from infra.db.tables import bookings
from infra.db.unit import Database
from tests.db_world import (
    NOW,
    a_booking,
    a_concert,
    a_sale,
    a_session,
    a_user,
    open_sale,
    put_booking,
    recorded,
    types_of,
)

pytestmark = pytest.mark.anyio

ALL = ConcertFilter()


async def add_concerts(database: Database, *concerts: Concert) -> None:
    """They are in the catalogue, with two ticket types each."""
    async with database.write() as unit:
        for concert in concerts:
            await unit.concerts.add(concert, types_of(concert, 10, 20))
        await unit.commit()


def eleven_concerts() -> list[Concert]:
    """Some start together, some have one title; capital letters, accents and signs among them."""
    start = datetime.now(UTC) + timedelta(days=2)
    titles = ["Zoo", "abba", "Abba", "Ängste", "Abba", "10 %", "a_b", "ab", "Zoo", "Éa", "x"]
    return [
        a_concert(f"c{n}", title=title, starts_at=start + timedelta(hours=n // 3))
        for n, title in enumerate(titles)
    ]


# ---------------------------------------------------------------- pages
@pytest.mark.parametrize("order", ConcertOrder)
@pytest.mark.parametrize("limit", [1, 3, 11, 20])
async def test_pages_of_concerts_follow_each_other(
    database: Database, order: ConcertOrder, limit: int
) -> None:
    """Forwards and backwards every concert comes once, in one order on both databases."""
    concerts = eleven_concerts()
    await add_concerts(database, *concerts)
    expected = sorted(
        concerts, key=lambda c: concert_page_key(c, order), reverse=order is ConcertOrder.STARTS_AT_DESC
    )
    forwards: list[Concert] = []
    after: PageKey | None = None
    while True:
        page = await database.reads.concert_page(PageQuery(limit, after=after), where=ALL, order=order)
        forwards += page.rows
        assert page.has_previous == (after is not None)
        if not page.has_next:
            break
        after = concert_page_key(page.rows[-1], order)
    assert forwards == expected
    backwards: list[Concert] = []
    before: PageKey | None = None
    while True:
        query = PageQuery(limit, before=before, is_from_end=True)
        page = await database.reads.concert_page(query, where=ALL, order=order)
        backwards = [*page.rows, *backwards]
        assert page.has_next == (before is not None)
        if not page.has_previous:
            break
        before = concert_page_key(page.rows[0], order)
    assert backwards == expected


async def test_page_between_two_keys(database: Database) -> None:
    """Both ends given: only what lies between, and there is more on either side."""
    concerts = eleven_concerts()
    await add_concerts(database, *concerts)
    keys = [concert_page_key(concert, ConcertOrder.STARTS_AT_ASC) for concert in concerts]
    query = PageQuery(20, after=keys[2], before=keys[5])
    page = await database.reads.concert_page(query, where=ALL, order=ConcertOrder.STARTS_AT_ASC)
    assert page == Page(tuple(concerts[3:5]), has_next=True, has_previous=True)


@pytest.mark.parametrize("key", ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "\x00"])
async def test_key_of_another_list_is_refused(database: Database, key: str) -> None:
    """A cursor that was made up is the caller's mistake, not a fault."""
    with pytest.raises(BadUserInput):
        await database.reads.concert_page(
            PageQuery(5, after=(key, "c1")), where=ALL, order=ConcertOrder.STARTS_AT_ASC
        )


@pytest.mark.parametrize(
    ("search", "found"),
    [
        (None, ["c1", "c2", "c3"]),
        ("NIGHT", ["c1"]),
        ("night hall", []),
        ("  night\tparadiso ", ["c1"]),
        ("ÄRZTE", ["c2"]),
        ("straße", ["c3"]),
        ("STRASSE", ["c3"]),
        ("100%", ["c3"]),
        ("0%0", []),
        ("a_b", ["c2"]),
        ("_", ["c2"]),
        ("\\", []),
    ],
)
async def test_search_finds_every_word_in_any_case(
    database: Database, search: str | None, found: list[str]
) -> None:
    """All words, each in title, performer or venue, whole Unicode, nothing in them a wildcard."""
    await add_concerts(
        database,
        a_concert("c1"),
        a_concert("c2", title="Die Ärzte", performer="a_b", venue="Hall"),
        a_concert("c3", title="100% Straße", performer="aXb", venue="Hall"),
    )
    where = ConcertFilter(search=search)
    page = await database.reads.concert_page(PageQuery(9), where=where, order=ConcertOrder.STARTS_AT_ASC)
    assert sorted(concert.id for concert in page.rows) == found
    assert await database.reads.concert_total(where) == len(found)


async def test_filter_by_start_and_by_what_is_on_sale(database: Database) -> None:
    """Starts strictly between the bounds; on sale means not cancelled and the window open now."""
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    await add_concerts(
        database,
        a_concert("open", starts_at=now + 5 * hour),
        a_concert("cancelled", starts_at=now + 6 * hour, status=ConcertStatus.CANCELLED),
        a_concert("early", starts_at=now + 7 * hour, sales_open_at=now + hour),
        a_concert("late", starts_at=now + 8 * hour, sales_open_at=now - 2 * hour, sales_close_at=now - hour),
    )

    async def found(where: ConcertFilter) -> list[str]:
        page = await database.reads.concert_page(PageQuery(9), where=where, order=ConcertOrder.STARTS_AT_ASC)
        assert await database.reads.concert_total(where) == len(page.rows)
        return [concert.id for concert in page.rows]

    assert await found(ConcertFilter(on_sale=True)) == ["open"]
    assert await found(ConcertFilter(on_sale=False)) == ["cancelled", "early", "late"]
    between = ConcertFilter(starts_after=now + 5 * hour, starts_before=now + 8 * hour)
    assert await found(between) == ["cancelled", "early"]


# ---------------------------------------------------------------- my page
async def a_buyers_world(database: Database) -> list[MyBooking]:
    """Ada's five bookings of two concerts, newest first, and one of Eve's."""
    sales = [await open_sale(database, a_sale(name)) for name in ("c1", "c2")]
    rows = []
    for n, status in enumerate(("EXPIRED", "APPROVED", "CANCELLED", "APPROVED", "PAYMENT_PENDING")):
        sale = sales[n % 2]
        moment = NOW + timedelta(seconds=n // 2)
        booking = await put_booking(
            database,
            a_booking(
                sale,
                f"b{n}",
                status=BookingStatus(status),
                is_final=status in {"EXPIRED", "CANCELLED"},
                created_at=moment,
                updated_at=moment,
            ),
        )
        rows.append(MyBooking(booking, sale.facts))
    await put_booking(database, a_booking(sales[0], "eves", user="eve"))
    return sorted(rows, key=my_page_key, reverse=True)


async def test_my_page_shows_the_buyers_bookings_newest_first(database: Database) -> None:
    """Page by page in both directions, with the total and the version of the same moment."""
    rows = await a_buyers_world(database)
    ada = UserId("ada")
    first = await database.reads.my_page(ada, PageQuery(2), statuses=None)
    assert (first.version, first.total) == (5, 5)
    assert first.page == Page(tuple(rows[:2]), has_next=True, has_previous=False)
    second = PageQuery(3, after=my_page_key(rows[1]))
    assert (await database.reads.my_page(ada, second, statuses=None)).page == Page(
        tuple(rows[2:]), has_next=False, has_previous=True
    )
    last = await database.reads.my_page(ada, PageQuery(2, is_from_end=True), statuses=None)
    assert last.page == Page(tuple(rows[3:]), has_next=False, has_previous=True)
    approved = await database.reads.my_page(
        ada, PageQuery(9), statuses=frozenset({BookingStatus.APPROVED, BookingStatus.EXPIRED})
    )
    assert (approved.total, [row.booking.id for row in approved.page.rows]) == (3, ["b3", "b1", "b0"])
    nobody = await database.reads.my_page(UserId("none"), PageQuery(9), statuses=frozenset())
    assert (nobody.version, nobody.total, nobody.page.rows) == (0, 0, ())


async def test_my_changes_are_the_unfinished_or_the_recent(database: Database) -> None:
    """Without a time all that are not final, with one all changed since then; oldest change first."""
    rows = {row.booking.id: row for row in await a_buyers_world(database)}
    changes = database.reads.my_changes
    unfinished = await changes(UserId("ada"), since=None, limit=9)
    assert [row.booking.id for row in unfinished] == ["b1", "b3", "b4"]
    assert unfinished[0] == rows[BookingId("b1")]
    recent = await changes(UserId("ada"), since=NOW + timedelta(seconds=1), limit=2)
    assert [row.booking.id for row in recent] == ["b2", "b3"]
    assert await database.reads.my_bookings([BookingId("b2"), BookingId("none")]) == {
        BookingId("b2"): rows[BookingId("b2")]
    }


async def test_reader_sees_one_moment_and_writes_nothing(database: Database) -> None:
    """What is committed between two statements of one read is not seen by the second; a write is refused."""
    sale = await open_sale(database, a_sale())
    counted = select(func.count()).select_from(bookings)
    async with database.readers.transaction() as statements:
        before = await statements.rows(counted)
        await put_booking(database, a_booking(sale))
        assert await statements.rows(counted) == before
    for pool in (database.readers, database.patient_readers):
        with pytest.raises((DBAPIError, DatabaseAway)):
            async with pool.transaction() as statements:
                await statements.change(delete(bookings))
                await statements.commit()
    assert len(await database.reads.bookings([BookingId("b")])) == 1


async def test_the_concert_of_a_booking_is_told_without_the_rest(database: Database) -> None:
    """Of those bookings that exist."""
    for name in ("c1", "c2"):
        sale = await open_sale(database, a_sale(name))
        await put_booking(database, a_booking(sale, f"b-{name}"))
    asked = [BookingId("b-c1"), BookingId("b-c2"), BookingId("none")]
    assert await database.reads.booked_concerts(asked) == {"b-c1": "c1", "b-c2": "c2"}


# ---------------------------------------------------------------- cost
Read = Callable[[Database], Awaitable[Any]]
IDS = [ConcertId(f"c{n}") for n in range(3)]
COSTS: list[tuple[str, int, Read]] = [
    ("viewer", 1, lambda d: d.reads.viewer(b"x")),
    ("live_sessions", 1, lambda d: d.reads.live_sessions([a_session(a_user()).id])),
    ("users", 1, lambda d: d.reads.users([UserId("ada"), UserId("eve")])),
    ("concerts", 1, lambda d: d.reads.concerts(IDS)),
    (
        "concert_page",
        1,
        lambda d: d.reads.concert_page(PageQuery(9), where=ALL, order=ConcertOrder.TITLE_ASC),
    ),
    ("concert_total", 1, lambda d: d.reads.concert_total(ALL)),
    ("ticket_types_of", 1, lambda d: d.reads.ticket_types_of(IDS)),
    ("sales", 1, lambda d: d.reads.sales(IDS)),
    ("bookings", 2, lambda d: d.reads.bookings([BookingId(f"b{n}") for n in range(5)])),
    ("booked_concerts", 1, lambda d: d.reads.booked_concerts([BookingId(f"b{n}") for n in range(5)])),
    ("my_bookings", 2, lambda d: d.reads.my_bookings([BookingId(f"b{n}") for n in range(5)])),
    ("my_page_version", 1, lambda d: d.reads.my_page_version(UserId("ada"))),
    ("my_page", 3, lambda d: d.reads.my_page(UserId("ada"), PageQuery(9), statuses=None)),
    ("my_changes", 2, lambda d: d.reads.my_changes(UserId("ada"), since=None, limit=9)),
]


@pytest.mark.parametrize(("statements", "read"), [cost[1:] for cost in COSTS], ids=[c[0] for c in COSTS])
async def test_read_costs_a_fixed_number_of_statements(
    database: Database, statements: int, read: Read
) -> None:
    """However many rows it answers with."""
    await a_buyers_world(database)
    await add_concerts(database, *(a_concert(concert_id) for concert_id in IDS))
    with recorded(database) as seen:
        await read(database)
    assert len(seen) == statements, seen
