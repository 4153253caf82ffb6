"""The worker checks every promise a part at a time, notes what it found, and stops the sales of a broken stock."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from domain.base import DatabaseAway
from domain.booking import SalesClosed
from infra.db.checks import LEASE, PromiseChecks
from infra.db.invariants import broken
from infra.db.promises import BEYOND, FIRST, PROMISES, Finding, Promise, Walk
from infra.db.unit import Database
from infra.verifier import LEASE_S, Verifier
from tests.db_world import a_sale, open_sale, run_sql
from tests.fake_processor import FakeProcessor
from tests.paying import Shop, running_shop
from tests.whole_story import Story, Storyteller

pytestmark = pytest.mark.anyio

PAST = "'2026-01-01T00:00:00.000000+00:00'"


@pytest.fixture(scope="module")
def storyteller() -> Storyteller:
    """Has told nothing yet."""
    return Storyteller()


@pytest.fixture
async def story(database: Database, storyteller: Storyteller) -> Story:
    """Every kind of booking."""
    return await storyteller.tell(database)


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """A shop that sells."""
    async with running_shop(database, FakeProcessor()) as shop:
        yield shop


class _FailsOnce(PromiseChecks):
    """The database goes away in the middle of the first part."""

    is_away = True

    async def findings(self, promise: Promise, first: str, beyond: str) -> Sequence[Finding]:
        if promise.name == "ticket_limit" and self.is_away:
            self.is_away = False
            raise DatabaseAway
        return await super().findings(promise, first, beyond)


def a_verifier(shop: Shop, worker: str = "w", *, slice_rows: int = 2) -> Verifier:
    """One worker's part, two bookings at a time."""
    checks = PromiseChecks(shop.database)
    return Verifier(shop.deps, checks, worker=worker, slice_rows=slice_rows, pause_s=0.01)


async def a_round(verifier: Verifier, shop: Shop) -> int:
    """Every promise is checked once more; in how many parts."""
    _, began_at = await PromiseChecks(shop.database).standings()
    for steps in range(1, 1_000):
        await verifier.step()
        if all(at is not None and at > began_at for at in (await checked(shop)).values()):
            return steps
    raise AssertionError("it never comes round")


async def counts(shop: Shop) -> dict[str, int]:
    """What is noted as broken."""
    standings, _ = await PromiseChecks(shop.database).standings()
    return {name: standing.broken for name, standing in standings.items() if standing.broken}


async def checked(shop: Shop) -> dict[str, datetime | None]:
    """When each promise was checked."""
    standings, _ = await PromiseChecks(shop.database).standings()
    return {
        promise.name: standings[promise.name].checked_at if promise.name in standings else None
        for promise in PROMISES
    }


@pytest.mark.parametrize("walk", [walk for walk in Walk if walk is not Walk.WHOLE])
@pytest.mark.parametrize("rows", [1, 2, 1_000])
async def test_parts_follow_each_other_to_the_end(
    story: Story, database: Database, walk: Walk, rows: int
) -> None:
    """Each begins where the last one ended; together they are everything."""
    checks, firsts = PromiseChecks(database), [FIRST]
    while firsts[-1] != BEYOND:
        firsts.append(await checks.end_of_part(walk, firsts[-1], rows=rows))
    assert firsts == sorted(set(firsts))
    # Two concerts, one of more than two seats; eight bookings; five buyers.
    parts = {Walk.CONCERTS: (2, 2, 1), Walk.BOOKINGS: (8, 4, 1), Walk.BUYERS: (5, 3, 1)}[walk]
    assert len(firsts) - 1 == parts[(1, 2, 1_000).index(rows)]


async def test_busy_concert_is_a_part_of_its_own(database: Database) -> None:
    """Many that sold nothing share one, and one that sold much ends it."""
    for number in range(6):
        await open_sale(database, a_sale(f"c{number}"))
    checks = PromiseChecks(database)
    assert await checks.end_of_part(Walk.CONCERTS, FIRST, rows=3) == "c3"
    await run_sql(database, "UPDATE sale_stock SET sold = 9 WHERE concert_id = 'c1'")
    assert await checks.end_of_part(Walk.CONCERTS, FIRST, rows=3) == "c2"
    assert await checks.end_of_part(Walk.CONCERTS, "c2", rows=3) == "c5"
    assert await checks.end_of_part(Walk.CONCERTS, "c5", rows=3) == BEYOND


async def test_all_that_verify_finds_is_noted(story: Story, database: Database, shop: Shop) -> None:
    """Part by part the same as in one look; what was repaired is forgotten with the next round."""
    verifier = a_verifier(shop)
    assert await a_round(verifier, shop) == 10
    assert await counts(shop) == {}
    await story.harm(
        "UPDATE bookings SET is_final = NOT is_final, max_tickets_per_user = 1",
        "UPDATE buyers SET my_page_version = 99",
        f"UPDATE outbox SET created_at = {PAST}",
    )
    titles = {promise.title: promise.name for promise in PROMISES}
    said = [line async for line in broken(database)]
    expected = {name: sum(line.startswith(f"{title}: ") for line in said) for title, name in titles.items()}
    await a_round(verifier, shop)
    assert await counts(shop) == {name: count for name, count in expected.items() if count}
    assert len(await counts(shop)) == 4
    await story.harm("UPDATE bookings SET is_final = NOT is_final")
    await a_round(verifier, shop)
    assert "final_is_final" not in await counts(shop)


async def test_what_is_found_is_noted_at_once_and_logged_once(story: Story, shop: Shop) -> None:
    """Not only when the round is over, and not again with every round."""
    verifier = a_verifier(shop, slice_rows=1)
    await a_round(verifier, shop)
    await story.harm("UPDATE sale_stock SET sold = 1 WHERE ticket_type_id = 'c-t8'")
    with capture_logs() as logs:
        await verifier.step()
        assert await counts(shop) == {"stock_sums": 1}
        await a_round(verifier, shop)
        await a_round(verifier, shop)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("promise.broken", "error"),
        ("sales.halted", "error"),
    ]
    assert logs[1]["concert_id"] == "c"
    assert logs[1]["faults"] == ["ticket type c-t8 of concert c: held 0, sold 1; bookings hold 0, own 0"]


async def test_broken_stock_stops_only_its_own_concert(shop: Shop) -> None:
    """The others sell on, and so does it once somebody said so."""
    one, other = await shop.open_sale(), await shop.open_sale()
    await shop.book(one)
    await run_sql(shop.database, "UPDATE sale_stock SET held = 2 WHERE concert_id = 'c0001'")
    await a_round(a_verifier(shop), shop)
    with pytest.raises(SalesClosed, match="stopped"):
        await shop.book(one)
    await shop.book(other)


async def test_stock_that_moves_meanwhile_is_never_broken(shop: Shop) -> None:
    """People book, pay and cancel all the while: nothing is found and nothing is stopped."""
    sale = await shop.open_sale(capacity=1_000, limit=1_000)
    verifier = a_verifier(shop)

    async def buy(who: str) -> None:
        for _ in range(10):
            booking = await shop.book(sale, who)
            await shop.pay(booking)
            await shop.cancel(booking)

    buying = asyncio.gather(*(buy(name) for name in ("ada", "bob", "eve")))
    while not buying.done():
        await verifier.step()
    await buying
    await a_round(verifier, shop)
    assert await counts(shop) == {}
    assert (await shop.sale(sale.concert_id)).halted_at is None


async def test_one_worker_checks_and_the_next_goes_on_after_its_lease(shop: Shop) -> None:
    """Whoever has the lease keeps it by asking again; another one waits for its end."""
    checks = PromiseChecks(shop.database)
    assert await checks.lease("one", lease_s=LEASE_S)
    assert not await checks.lease("other", lease_s=LEASE_S)
    assert await checks.lease("one", lease_s=LEASE_S)
    await a_verifier(shop, "other").step()
    assert await checked(shop) == {promise.name: None for promise in PROMISES}
    await run_sql(shop.database, f"UPDATE leases SET until = {PAST} WHERE name = '{LEASE}'")
    await a_round(a_verifier(shop, "other"), shop)
    assert not await checks.lease("one", lease_s=LEASE_S)


async def test_part_that_could_not_be_checked_is_next_again(story: Story, shop: Shop) -> None:
    """Nothing is left out and nothing is counted twice where the database fails in the middle of a part."""
    await story.harm("UPDATE sale_stock SET sold = 1 WHERE ticket_type_id = 'c-t8'")
    checks = _FailsOnce(shop.database)
    verifier = Verifier(shop.deps, checks, worker="w", slice_rows=1_000, pause_s=0.01)
    with pytest.raises(DatabaseAway):
        await verifier.step()
    await a_round(verifier, shop)
    assert await counts(shop) == {"stock_sums": 1}


async def test_standings_tell_when_all_was_checked(shop: Shop) -> None:
    """By the database's clock, promise by promise."""
    await a_round(a_verifier(shop), shop)
    standings, now = await PromiseChecks(shop.database).standings()
    assert set(standings) == {promise.name for promise in PROMISES}
    for standing in standings.values():
        assert standing.checked_at is not None
        assert timedelta(0) <= now - standing.checked_at < timedelta(minutes=1)
