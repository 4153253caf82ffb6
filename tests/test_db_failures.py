"""The database's bad days: restarts, locks, queues and cancelled requests become the ports' errors and heal."""

import asyncio
import gc
import random
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext

import pytest
from sqlalchemy import text

from domain.base import (
    BadUserInput,
    ConcertId,
    DatabaseAway,
    Overloaded,
    TicketTypeId,
    Unavailable,
    UserId,
)
from infra.db.engine import DatabaseLimits
from infra.db.migrations import migrate
from infra.db.unit import Database
from tests.db_world import a_booking, a_concert, a_sale, hold, open_sale, run_sql, types_of
from tests.servers import PostgresServer, running_postgres

pytestmark = pytest.mark.anyio

SOON = DatabaseLimits(lock_s=0.2, statement_s=1.0, catalogue_lock_s=0.2, connect_s=1.0)


@asynccontextmanager
async def opened(
    url: str, limits: DatabaseLimits = SOON, *, left_out: frozenset[str] = frozenset()
) -> AsyncIterator[Database]:
    """The database, until the block ends."""
    database = Database(url, limits=limits, left_out=left_out)
    try:
        yield database
    finally:
        await database.close()


async def raise_version(database: Database, user: str = "ada") -> int:
    """The smallest write there is."""
    async with database.write() as unit:
        (version,) = await unit.bookings.raise_my_page_versions([UserId(user)])
        await unit.commit()
    return version


# ---------------------------------------------------------------- the queue
async def test_two_hundred_parallel_writers_all_get_through(database: Database) -> None:
    """They queue, in the order in which they came, and none of them fails."""
    done: list[int] = []

    async def write(number: int) -> None:
        await raise_version(database)
        done.append(number)

    await asyncio.gather(*(write(n) for n in range(200)))
    assert await database.reads.my_page_version(UserId("ada")) == 200
    assert len(done) == 200
    if database.writers.engine.dialect.name == "sqlite":
        assert done == list(range(200))


async def test_writer_that_waits_too_long_is_told_so(database_url: str) -> None:
    """A queue without end is refused, and what was in front goes on."""
    limits = DatabaseLimits(writers=1, readers=1, queue_s=0.1)
    async with opened(database_url, limits) as database:
        async with database.write() as unit:
            async with asyncio.timeout(5):
                with pytest.raises(Overloaded):
                    await raise_version(database)
            assert await unit.bookings.raise_my_page_versions([UserId("ada")]) == [1]
            await unit.commit()
        assert await raise_version(database) == 2


async def test_newcomers_do_not_overtake(database_url: str) -> None:
    """Who comes while others are served goes to the end of the queue, at whatever moment a connection is free."""
    async with opened(database_url, DatabaseLimits(writers=1)) as database:
        chance = random.Random(7)
        served: list[int] = []

        async def write(number: int) -> None:
            async with database.write() as unit:
                served.append(number)
                await unit.bookings.raise_my_page_versions([UserId("ada")])

        async with asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(write(number))
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
        assert served == list(range(200))


async def test_two_processes_take_turns_on_sqlite(sqlite_database_url: str) -> None:
    """Each reads and then writes; the second sees what the first did, and none fails."""
    async with (
        opened(sqlite_database_url, DatabaseLimits()) as one,
        opened(sqlite_database_url, DatabaseLimits()) as other,
    ):
        sale = await open_sale(one, a_sale(capacities=(100,)))

        async def book(database: Database, number: int) -> None:
            async with database.write() as unit:
                locked = await unit.sales.lock(sale.concert_id)
                assert locked is not None
                await hold(unit, locked, a_booking(locked, f"b{number}", user=f"u{number}"))
                await unit.commit()

        await asyncio.gather(*(book(one if n % 2 else other, n) for n in range(30)))
        assert (await one.reads.sales([sale.concert_id]))[sale.concert_id].stock[0].held == 30


async def test_cancelled_requests_leave_no_connection_behind(database_url: str) -> None:
    """A hundred writers cancelled at any moment: none of their work is half there, and the next one is served."""
    async with opened(database_url, DatabaseLimits(writers=2)) as database:
        chance = random.Random(7)
        sale = await open_sale(database, a_sale(capacities=(1_000,)))

        async def book(number: int) -> None:
            async with database.write() as unit:
                locked = await unit.sales.lock(sale.concert_id)
                assert locked is not None
                await hold(unit, locked, a_booking(locked, f"b{number}", user=f"u{number}"))
                await unit.commit()

        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(book(n)) for n in range(100)]
        for task in tasks:
            loop.call_later(chance.uniform(0, 0.6), task.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
        await book(1_000)
        stock = (await database.reads.sales([sale.concert_id]))[sale.concert_id].stock[0]
        async with database.readers.single() as statements:
            (row,) = await statements.rows(text("SELECT count(*) FROM bookings"))
        assert stock.held == row[0] >= 1 + sum(outcome is None for outcome in outcomes)


async def test_who_leaves_while_a_connection_is_made_leaves_none_open(sqlite_database_url: str) -> None:
    """At whichever moment: it is made to its end, and closed with the others."""
    for turns in range(0, 60, 2):
        database = Database(sqlite_database_url)
        leaving = asyncio.create_task(_read_something(database))
        for _ in range(turns):
            await asyncio.sleep(0.0001)
        await _assert_leaves_none_open(leaving, database)


async def test_who_leaves_while_a_connection_is_given_back_leaves_none_open(sqlite_database_url: str) -> None:
    """In whichever turn of the loop: it is given back to its end, and closed with the others."""
    for turns in range(12):
        database, may_end = Database(sqlite_database_url), asyncio.Event()
        leaving = asyncio.create_task(_read_until(database, may_end))
        await asyncio.sleep(0.05)
        may_end.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        await _assert_leaves_none_open(leaving, database)


async def _assert_leaves_none_open(leaving: asyncio.Task[None], database: Database) -> None:
    leaving.cancel()
    await asyncio.wait([leaving])
    await database.close()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(each.message) for each in seen] == []


async def _read_until(database: Database, may_end: asyncio.Event) -> None:
    async with database.readers.transaction():
        await may_end.wait()


async def _read_something(database: Database) -> None:
    async with database.readers.transaction() as statements:
        await statements.rows(text("SELECT 1"))


async def test_sqlite_locked_by_another_process_is_away(sqlite_database_url: str) -> None:
    """After the busy time-out, not for ever; readers are not disturbed, and it heals."""
    async with opened(sqlite_database_url) as database, opened(sqlite_database_url) as other:
        async with other.write() as unit:
            await unit.bookings.raise_my_page_versions([UserId("eve")])
            with pytest.raises(DatabaseAway):
                await raise_version(database)
            assert await database.reads.my_page_version(UserId("eve")) == 0
            await unit.commit()
        assert await raise_version(database, "eve") == 2


async def test_sqlite_is_as_durable_as_it_can_be(sqlite_database_url: str) -> None:
    """WAL, every commit synced, foreign keys kept, readers unable to write."""
    async with opened(sqlite_database_url) as database:
        found = {}
        for name, pool in (("writer", database.writers), ("reader", database.readers)):
            async with pool.transaction() as statements:
                for pragma in ("journal_mode", "synchronous", "foreign_keys", "query_only"):
                    (row,) = await statements.rows(text(f"PRAGMA {pragma}"))
                    found[name, pragma] = row[0]
    assert [found["writer", pragma] for pragma in ("journal_mode", "synchronous", "foreign_keys")] == [
        "wal",
        2,
        1,
    ]
    assert (found["writer", "query_only"], found["reader", "query_only"]) == (0, 1)


@pytest.mark.parametrize("unstorable", ["a\x00b", "\ud800"])
async def test_text_that_no_row_can_hold_is_bad_input(database: Database, unstorable: str) -> None:
    """PostgreSQL refuses NUL, both refuse half a surrogate pair, read or written: that is the caller's mistake."""
    may_pass = unstorable == "a\x00b" and database.readers.engine.dialect.name == "sqlite"
    for ask in (_look_for, _write):
        with nullcontext() if may_pass else pytest.raises(BadUserInput):
            await ask(database, unstorable)


async def _look_for(database: Database, text: str) -> None:
    assert await database.reads.concerts([ConcertId(text)]) == {}


async def _write(database: Database, text: str) -> None:
    async with database.write() as unit:
        await unit.payments.add_webhooks([text])


# ---------------------------------------------------------------- the catalogue down
async def test_selling_goes_on_without_the_catalogues_tables(database_url: str) -> None:
    """Gone: what needs them is Unavailable, a sale is booked and read as ever."""
    async with opened(database_url) as database:
        await run_sql(database, "DROP TABLE ticket_types")
        await run_sql(database, "DROP TABLE concerts")
        await assert_only_the_catalogue_is_down(database)


async def test_selling_goes_on_while_the_catalogues_tables_are_locked(postgres_database_url: str) -> None:
    """Locked for long: the same, soon, and for any number of callers; afterwards all is well."""
    async with opened(postgres_database_url) as database, opened(postgres_database_url) as locker:
        async with locker.writers.transaction() as statements:
            await statements.change(text("LOCK TABLE concerts, ticket_types IN ACCESS EXCLUSIVE MODE"))
            await assert_only_the_catalogue_is_down(database)
        assert await database.reads.concerts([ConcertId("c")]) == {}


async def test_catalogue_that_is_left_out_is_unavailable(database_url: str) -> None:
    """As `serve --without concert` has it."""
    async with opened(database_url, left_out=frozenset({"concert"})) as database:
        await assert_only_the_catalogue_is_down(database)


async def assert_only_the_catalogue_is_down(database: Database) -> None:
    """Fifty readers and a writer of the catalogue hear Unavailable within two seconds; selling works meanwhile."""
    concert = a_concert()
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(_is_unavailable(database)) for _ in range(50)]
        sale = await open_sale(database, a_sale())
        async with database.write() as unit:
            locked = await unit.sales.lock(sale.concert_id)
            assert locked is not None
            await hold(unit, locked, a_booking(locked))
            await unit.commit()
        assert (await database.reads.sales([sale.concert_id]))[sale.concert_id].stock[0].held == 1
        with pytest.raises(Unavailable):
            async with database.write() as unit:
                await unit.concerts.add(concert, types_of(concert, 1))
    assert all(reader.result() for reader in readers)


async def _is_unavailable(database: Database) -> bool:
    try:
        await database.reads.ticket_types([TicketTypeId("t")])
        await database.reads.concerts([ConcertId("c")])
    except Unavailable as error:
        return error.module == "concert"
    return False


# ---------------------------------------------------------------- PostgreSQL down
async def test_lock_that_is_not_given_is_away(postgres_database_url: str) -> None:
    """A writer that waits for a row too long gives up, whole."""
    async with opened(postgres_database_url) as database:
        async with database.write() as unit:
            await unit.bookings.raise_my_page_versions([UserId("ada")])
            with pytest.raises(DatabaseAway):
                await raise_version(database)
            await unit.commit()
        assert await raise_version(database) == 2


async def test_deadlock_is_away_for_one_of_the_two(postgres_database_url: str) -> None:
    """PostgreSQL ends one of two writers that wait for each other; the other one gets through."""
    limits = DatabaseLimits(lock_s=20)
    async with opened(postgres_database_url, limits) as database:
        both_hold = asyncio.Barrier(2)

        async def write(*users: str) -> bool:
            try:
                async with database.write() as unit:
                    await unit.bookings.raise_my_page_versions([UserId(users[0])])
                    await both_hold.wait()
                    await unit.bookings.raise_my_page_versions([UserId(users[1])])
                    await unit.commit()
            except DatabaseAway:
                return False
            return True

        outcomes = await asyncio.gather(write("ada", "eve"), write("eve", "ada"))
        assert sorted(outcomes) == [False, True]
        assert await database.reads.my_page_version(UserId("ada")) == 1


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    with running_postgres() as server:
        server.create_database("frontrow")
        asyncio.run(migrate(server.url("frontrow")))
        yield server


async def fill_pools(database: Database, count: int) -> None:
    """That many connections are open and idle in each of the pools."""
    barrier = asyncio.Barrier(2 * count)

    async def use(number: int) -> None:
        pool = database.writers if number % 2 else database.readers
        async with pool.transaction() as statements:
            await statements.rows(text("SELECT 1"))
            await barrier.wait()

    await asyncio.gather(*(use(n) for n in range(2 * count)))


async def test_restarted_server_is_not_noticed_by_who_comes_later(own_postgres: PostgresServer) -> None:
    """Idle connections that died are replaced before they are used; who was at work hears DatabaseAway."""
    async with opened(own_postgres.url("frontrow")) as database:
        await fill_pools(database, 5)
        with pytest.raises(DatabaseAway):
            async with database.write() as unit:
                await unit.bookings.raise_my_page_versions([UserId("ada")])
                await asyncio.to_thread(own_postgres.restart)
                await unit.commit()
        assert await asyncio.gather(*(raise_version(database, f"u{n}") for n in range(5))) == [1] * 5
        assert await database.reads.my_page_version(UserId("ada")) == 0


async def test_stopped_server_is_away_until_it_is_back(own_postgres: PostgresServer) -> None:
    """Killed under a statement and not there afterwards: DatabaseAway each time, then all is well."""
    async with opened(own_postgres.url("frontrow"), DatabaseLimits()) as database:
        await fill_pools(database, 3)

        async def linger() -> None:
            async with database.writers.transaction() as statements:
                await statements.rows(text("SELECT pg_sleep(9)"))

        lingering = asyncio.create_task(linger())
        await _until_running(database, "pg_sleep")
        await asyncio.to_thread(own_postgres.kill)
        with pytest.raises(DatabaseAway):
            await lingering
        for _ in range(3):
            with pytest.raises(DatabaseAway):
                await raise_version(database)
            with pytest.raises(DatabaseAway):
                await database.reads.now()
        await asyncio.to_thread(own_postgres.start)
        assert await asyncio.gather(*(raise_version(database, f"u{n}") for n in range(5))) == [1] * 5


async def test_frozen_server_is_away_in_time(own_postgres: PostgresServer) -> None:
    """One that keeps its connections and says nothing is given up, new and old ones; thawed, it serves again."""
    limits = DatabaseLimits(writers=1, readers=1, statement_s=0.5, connect_s=0.5)
    async with opened(own_postgres.url("frontrow"), limits) as database:
        await fill_pools(database, 1)
        own_postgres.pause()
        try:
            for ask in (raise_version(database), database.reads.now(), raise_version(database)):
                async with asyncio.timeout(8):
                    with pytest.raises(DatabaseAway):
                        await ask
        finally:
            own_postgres.resume()
        assert await raise_version(database) == 1
        await database.reads.now()


async def _until_running(database: Database, what: str) -> None:
    async with asyncio.timeout(10), database.readers.single() as statements:
        query = text("SELECT 1 FROM pg_stat_activity WHERE query LIKE :it AND pid <> pg_backend_pid()")
        # PostgreSQL knows, and has no Event to wait for.
        while not await statements.rows(query.bindparams(it=f"%{what}%")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
