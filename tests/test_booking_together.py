"""Bookings that share a commit: the same outcomes, rows and order as one after the other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import pytest
from sqlalchemy import select

from domain.base import BookingId, ConcertId, DomainError, NotFound, TicketTypeId
from domain.booking import Booking, Quantity, Sale, SoldOut, TicketLimit
from domain.events import Event
from domain.ports import Deps, WriteUnit
from domain.use_cases.booking import BookConcert, book_concert
from infra.db.tables import booking_events, buyers, idempotency_keys, outbox
from infra.db.unit import Database
from infra.failpoints import Action, Failpoints
from tests import together
from tests.db_world import a_sale, open_sale
from tests.fake_processor import FakeProcessor
from tests.paying import Shop, customer, running_shop

pytestmark = pytest.mark.anyio

PEOPLE = ("ada", "bob", "cleo", "dan", "eve")


@dataclass(frozen=True)
class Wish:
    """Who wants how many of which type, under which key."""

    who: str
    tickets: int = 1
    type_number: int = 0
    key: str | None = None


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """Booking over a real database."""
    async with running_shop(database, FakeProcessor()) as running:
        yield running


async def ask(deps: Deps, sale: Sale, wish: Wish) -> Booking | DomainError:
    """The booking or the refusal."""
    types = [*sale.stock, replace(sale.stock[0], ticket_type_id=TicketTypeId("nobody's"))]
    wanted = (Quantity(types[wish.type_number].ticket_type_id, wish.tickets),)
    command = BookConcert(sale.concert_id, wanted, wish.key)
    try:
        return await book_concert(deps, customer(wish.who), command)
    except DomainError as refusal:
        return refusal


async def all_at_once(shop: Shop, sale: Sale, wishes: Sequence[Wish]) -> list[Booking | DomainError]:
    """The first has a commit alone, which ends when all others wait: they share the second."""
    outcomes = await together.all_at_once(
        shop, "book", [partial(ask, sale=sale, wish=wish) for wish in wishes]
    )
    told: list[Booking | DomainError] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, DomainError):
            raise outcome
        told.append(outcome)
    return told


def seen(outcomes: Sequence[Booking | DomainError]) -> list[object]:
    """What a client can tell apart: ids by first appearance."""
    numbers: dict[BookingId, int] = {}
    return [
        (type(each).__name__, str(each))
        if isinstance(each, DomainError)
        else (numbers.setdefault(each.id, len(numbers)), each.user_id, each.ticket_quantity, each.version)
        for each in outcomes
    ]


async def history(shop: Shop, concert_id: ConcertId) -> list[tuple[str, int]]:
    """Whose booking took which version of the sale."""
    of_concert = booking_events.c.concert_id == concert_id
    async with shop.database.writers.transaction() as statements:
        rows = await statements.rows(
            select(booking_events).where(of_concert).order_by(booking_events.c.stock_version)
        )
    owners = await shop.database.reads.bookings([row.booking_id for row in rows])
    return [(owners[row.booking_id].user_id, row.stock_version) for row in rows]


async def stored(shop: Shop) -> tuple[list[tuple[object, ...]], list[int]]:
    """Keys with the kind of their outcome, and buyers' versions."""
    async with shop.database.writers.transaction() as statements:
        keys = await statements.rows(
            select(idempotency_keys).order_by(idempotency_keys.c.user_id, idempotency_keys.c.key)
        )
        versions = await statements.rows(select(buyers).order_by(buyers.c.user_id))
    return (
        [(row.user_id, row.key, row.reference is not None, row.refusal) for row in keys],
        [row.my_page_version for row in versions],
    )


def some_wishes(rng: Random) -> list[Wish]:
    """The first is granted, so that its commit can be waited for; keys come up again, with other wishes too."""
    keys = (None, "k1", "k2", "k3")
    wishes = [
        Wish(rng.choice(PEOPLE), rng.choice((0, 1, 1, 2, 3)), rng.choice((0, 0, 1, 1, 2)), rng.choice(keys))
        for _ in range(30)
    ]
    return [Wish("zoe"), *wishes]


async def test_together_is_as_one_after_the_other(shop: Shop) -> None:
    """Outcomes, history, stock, keys and versions are the same for any wishes; the seed is in the failure's text."""
    seed = Random().randrange(10**6)
    rng = Random(seed)
    for number in range(6):
        wishes = some_wishes(rng)
        left = []
        for name, is_shared in (("a", True), ("b", False)):
            sale = await open_sale(shop.database, a_sale(f"{name}{number}", (6, 5), max_tickets_per_user=4))
            mine = [replace(wish, who=f"{wish.who}-{name}{number}") for wish in wishes]
            if is_shared:
                outcomes = await all_at_once(shop, sale, mine)
            else:
                outcomes = [await ask(shop.deps, sale, wish) for wish in mine]
            ended = await shop.sale(sale.concert_id)
            left.append(
                repr(
                    (
                        seen(outcomes),
                        await history(shop, sale.concert_id),
                        [(line.held, line.sold) for line in ended.stock],
                        ended.version,
                        [row for row in (await stored(shop))[0] if str(row[0]).endswith(f"{name}{number}")],
                    )
                ).replace(f"{name}{number}", "")
            )
        assert left[0] == left[1], f"seed {seed}"
    assert await shop.broken() == []


async def test_a_key_that_comes_twice_into_one_commit_books_once(shop: Shop) -> None:
    """The second hears of the first one's booking; the same key for something else is a mismatch."""
    sale = await shop.open_sale()
    twice = [
        Wish("zoe"),
        Wish("ada", 2, key="k"),
        Wish("ada", 2, key="k"),
        Wish("ada", 1, key="k"),
        Wish("bob"),
    ]
    _, first, second, mismatch, other = await all_at_once(shop, sale, twice)
    assert isinstance(first, Booking) and second == first
    assert isinstance(mismatch, DomainError) and mismatch.code == "IDEMPOTENCY_MISMATCH"
    assert isinstance(other, Booking)
    assert await shop.seats(sale.concert_id) == (6, 4, 0)


async def test_the_last_seats_go_to_who_came_first(shop: Shop) -> None:
    """Within a commit too: who comes later hears what is left, and a smaller wish behind a larger one is granted."""
    sale = await shop.open_sale(capacity=5)
    wishes = [Wish("zoe"), Wish("ada", 3), Wish("bob", 2), Wish("cleo", 1), Wish("dan", 1)]
    _, three, two, one, none = await all_at_once(shop, sale, wishes)
    assert isinstance(three, Booking) and isinstance(one, Booking)
    assert isinstance(two, SoldOut) and two.available == 1
    assert isinstance(none, SoldOut) and none.available == 0


async def test_nobody_gets_past_the_limit_within_a_commit(shop: Shop) -> None:
    """What the same person was granted in the same commit counts."""
    sale = await shop.open_sale(limit=3)
    wishes = [Wish("zoe"), Wish("ada", 2), Wish("ada", 2), Wish("ada", 1), Wish("ada", 1)]
    _, two, refused, one, none = await all_at_once(shop, sale, wishes)
    assert isinstance(two, Booking) and isinstance(one, Booking)
    assert isinstance(refused, TicketLimit) and refused.remaining == 1
    assert isinstance(none, TicketLimit) and none.remaining == 0


async def test_many_cost_as_many_statements_as_two(shop: Shop) -> None:
    """One lock, one write of the stock, one insert per table; events of each, and the count in the last alone."""
    sale = await shop.open_sale(capacity=100)
    told: list[Event] = []
    shop.database._on_commit = told.extend
    counts = []
    for size in (2, 20):
        failpoints = Failpoints()
        wishes = [Wish(f"{size}-{n}", key="k") for n in range(size + 1)]
        before = shop.deps
        shop.deps = failpoints.around(before)
        told.clear()
        await all_at_once(shop, sale, wishes)
        shop.deps = before
        counts.append(dict(failpoints.seen))
        assert [getattr(event, "sale", None) is not None for event in told] == [
            True,
            *[False] * (size - 1),
            True,
        ]
    assert counts[0] == counts[1]
    async with shop.database.writers.transaction() as statements:
        rows = await statements.rows(select(outbox.c.id).where(outbox.c.kind == "BookingChanged"))
    assert len(rows) == 3 + 21


async def test_an_unknown_concert_is_everybodys_own_refusal(shop: Shop) -> None:
    """Nothing is sold, and each key has its refusal."""
    sale = replace(a_sale("nowhere"), concert_id=ConcertId("nowhere"))
    refused = [await ask(shop.deps, sale, Wish("ada", key="k")) for _ in range(2)]
    assert [type(each) for each in refused] == [NotFound, NotFound]
    assert (await stored(shop))[0][0][:3] == ("ada", "k", False)


async def test_a_batch_that_fails_is_done_one_by_one(shop: Shop) -> None:
    """Whoever breaks it hears of it alone, and the others have their seats."""
    sale = await shop.open_sale()
    new_id = shop.deps.randomness.new_id

    given: list[str] = []

    class Ids:
        """The third is the second again, in one commit only."""

        def new_id(self) -> str:
            """An id, fresh but for one."""
            given.append(given[1] if len(given) == 2 else new_id())
            return given[-1]

    shop.deps = replace(shop.deps, randomness=Ids())  # type: ignore[arg-type]
    outcomes = await all_at_once(shop, sale, [Wish("zoe"), Wish("ada"), Wish("bob"), Wish("cleo")])
    assert all(isinstance(each, Booking) for each in outcomes)
    assert await shop.seats(sale.concert_id) == (6, 4, 0)
    assert [who for who, _ in await history(shop, sale.concert_id)] == ["zoe", "ada", "bob", "cleo"]


async def test_a_repetition_that_fails_books_nobody_again(shop: Shop) -> None:
    """The first ones are committed by then: only who repeated a key hears of the failure."""
    sale = await shop.open_sale()
    transactions = 0

    @asynccontextmanager
    async def write(name: str, /, *, module: str = "booking") -> AsyncIterator[WriteUnit]:
        nonlocal transactions
        transactions += name == "book"
        if transactions == 3:
            raise RuntimeError("broken")
        async with shop.database.write(name, module=module) as unit:
            yield unit

    shop.deps = replace(shop.deps, write=write)
    with pytest.raises(RuntimeError, match="broken"):
        await all_at_once(shop, sale, [Wish("zoe"), Wish("bob"), Wish("ada", key="k"), Wish("ada", key="k")])
    assert await shop.seats(sale.concert_id) == (7, 3, 0)


async def test_a_key_that_another_process_used_meanwhile_is_heard_of(shop: Shop) -> None:
    """Its transaction commits between our look and our write: ours begins anew and hears its outcome."""
    sale = await shop.open_sale()
    other = await shop.open_sale()
    reached = asyncio.Event()
    failpoints = Failpoints(lambda _: reached.set())
    deps = failpoints.around(shop.deps)
    failpoints.arm("book.bookings.add", Action.PAUSE)
    mine = asyncio.create_task(ask(deps, sale, Wish("ada", key="k")))
    await reached.wait()
    if shop.database.writers.engine.dialect.name == "sqlite":
        failpoints.resume()  # it has one writer, so nobody can be faster
        assert isinstance(await mine, Booking)
        return
    theirs = await ask(shop.deps, other, Wish("ada", key="k"))
    failpoints.resume()
    refusal = await mine
    assert isinstance(theirs, Booking)
    assert isinstance(refusal, DomainError) and refusal.code == "IDEMPOTENCY_MISMATCH"
    assert await shop.seats(sale.concert_id) == (10, 0, 0)
