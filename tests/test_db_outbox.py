"""The outbox: nothing is lost, nothing is worked on by two, what fails waits alone."""

import asyncio
from datetime import timedelta
from itertools import chain

import pytest
from sqlalchemy import update

from domain.booking import SaleChanged, SaleClosed
from domain.events import Event, IntentAbandoned
from infra.db.outbox import OutboxRow
from infra.db.tables import outbox
from infra.db.unit import Database
from tests.db_world import a_booking, a_sale, an_event, run_sql

pytestmark = pytest.mark.anyio

KINDS: tuple[type[Event], ...] = (SaleClosed, SaleChanged)


async def put(database: Database, *events: Event) -> None:
    """They are committed together."""
    async with database.write() as unit:
        for event in events:
            await unit.outbox.add(event)
        await unit.commit()


async def claim(database: Database, *, lease_s: float = 60, limit: int = 100) -> list[OutboxRow]:
    """What is due now."""
    return await database.outbox.claim(worker="w", lease_s=lease_s, limit=limit, kinds=KINDS)


def names(rows: list[OutboxRow]) -> list[str]:
    """The concerts that they are about."""
    return [row.event.concert_id for row in rows if isinstance(row.event, SaleClosed)]


async def test_events_come_whole_and_oldest_first(database: Database) -> None:
    """Each as it was put in, with its age, up to the limit; what is done is forgotten."""
    sale = a_sale(capacities=(3, 4))
    for event in (an_event("c1"), SaleChanged(sale), an_event("c2")):
        await put(database, event)
    first = await claim(database, limit=2)
    assert [row.event for row in first] == [an_event("c1"), SaleChanged(sale)]
    assert [row.attempts for row in first] == [1, 1]
    depth, oldest_s = await database.outbox.lag()
    assert depth == 3 and 0 < oldest_s < 60
    await database.outbox.done([row.id for row in first])
    await database.outbox.done([row.id for row in first])
    await database.outbox.done([])
    assert names(await claim(database)) == ["c2"]
    assert (await database.outbox.lag())[0] == 1


async def test_only_the_kinds_asked_for_are_claimed(database: Database) -> None:
    """A lane leaves the others' events alone."""
    booking = a_booking(a_sale())
    await put(database, IntentAbandoned(booking.id), an_event("c1"))
    assert names(await claim(database)) == ["c1"]
    chores = await database.outbox.claim(worker="w", lease_s=60, limit=9, kinds=[IntentAbandoned])
    assert [row.event for row in chores] == [IntentAbandoned(booking.id)]


async def test_parallel_workers_share_the_events(database: Database) -> None:
    """Six workers take ten each of fifty: every event once."""
    await put(database, *(an_event(f"c{n}") for n in range(50)))
    claims = await asyncio.gather(*(claim(database, limit=10) for _ in range(6)))
    assert sorted(names(list(chain.from_iterable(claims)))) == sorted(f"c{n}" for n in range(50))


async def test_transaction_that_commits_late_is_found(database_url: str) -> None:
    """An event with a smaller id and an older time than those already told is told when it becomes visible.

    On SQLite writers queue, so that nothing can commit late; there the order is simply kept.
    """
    database = Database(database_url)
    is_postgres = database_url.startswith("postgresql")
    async with database.write() as late:
        await late.outbox.add(an_event("late"))
        if is_postgres:
            await put(database, an_event("early"))
            told = await claim(database)
            assert names(told) == ["early"]
            await database.outbox.done([row.id for row in told])
        await late.commit()
    assert names(await claim(database)) == ["late"]
    await database.close()


async def test_lease_that_ran_out_is_claimed_anew(database: Database) -> None:
    """A worker that died loses its events to the next one, who sees that it is the second attempt."""
    await put(database, an_event("c1"))
    assert names(await claim(database, lease_s=60)) == ["c1"]
    assert await claim(database) == []
    await end_leases(database)
    (row,) = await claim(database)
    assert row.attempts == 2


async def test_failed_event_backs_off_alone(database: Database) -> None:
    """The others go on; it comes back when its time has come, with its error kept."""
    await put(database, an_event("bad"), an_event("good"))
    bad, good = await claim(database)
    await database.outbox.failed(bad.id, error="x" * 5_000, retry_after_s=60)
    await database.outbox.failed(good.id, error="once", retry_after_s=0)
    (again,) = await claim(database)
    assert again.id == good.id and again.attempts == 2


async def test_unreadable_event_is_set_aside(database: Database) -> None:
    """A row of another release's making holds nobody up and is not lost."""
    await put(database, an_event("c1"), an_event("c2"), an_event("c3"))
    await run_sql(database, "UPDATE outbox SET payload = '{}' WHERE payload LIKE '%c1%'")
    assert names(await claim(database)) == ["c2", "c3"]
    assert (await database.outbox.lag())[0] == 3
    assert await claim(database) == []


async def end_leases(database: Database) -> None:
    """Every lease is over."""
    async with database.writers.transaction() as statements:
        past = await statements.now() - timedelta(seconds=1)
        await statements.change(update(outbox).values(due_at=past))
        await statements.commit()
