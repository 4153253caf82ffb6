"""Each index serves the query that `infra/db/tables/` says it serves, on both databases."""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from domain.base import ConcertId, PageQuery, UserId
from domain.booking import BookingStatus
from domain.concert import ConcertFilter, ConcertOrder
from domain.events import IntentAbandoned
from domain.ports import KeptOutcome
from infra.db.outbox import First
from infra.db.tables import metadata
from infra.db.unit import Database, SqlWriteUnit
from tests.databases import PostgresDatabases
from tests.db_world import (
    NOW,
    a_booking,
    a_key,
    a_payment,
    a_sale,
    a_session,
    a_user,
    an_intent,
    is_postgres,
    open_sale,
    put_booking,
    recorded,
    run_sql,
)

pytestmark = pytest.mark.anyio

Ask = Callable[[Database], Awaitable[object]]
BOOKING = a_booking(a_sale())
ADA, CONCERT = UserId("ada"), ConcertId("c")
AFTER_NOON = PageQuery(5, after=(NOW.isoformat(timespec="microseconds"), "c1"))


def in_unit(do: Callable[[SqlWriteUnit], Awaitable[object]]) -> Ask:
    """Ask it in a transaction of its own."""

    async def ask(database: Database) -> None:
        async with database.write() as unit:
            await do(unit)

    return ask


async def page(database: Database, order: ConcertOrder, query: PageQuery) -> None:
    """One page of the catalogue."""
    await database.reads.concert_page(query, where=ConcertFilter(), order=order)


async def log_in(database: Database) -> None:
    """Ada logs in."""
    async with database.write() as unit:
        await unit.users.add(a_user(), password_hash="x")
        await unit.users.add_session(a_session(a_user()), token_hash=b"x")


async def claim(database: Database, *, first: First) -> None:
    """A worker asks for work."""
    await database.outbox.claim(worker="w", lease_s=1, limit=5, kinds=[IntentAbandoned], first=first)


SERVED: list[tuple[str, Ask]] = [
    ("ix_sessions_user_id_expires_at", log_in),
    ("ix_concerts_starts_at_id", lambda d: page(d, ConcertOrder.STARTS_AT_ASC, AFTER_NOON)),
    ("ix_concerts_starts_at_id", lambda d: page(d, ConcertOrder.STARTS_AT_DESC, AFTER_NOON)),
    ("ix_concerts_title_id", lambda d: page(d, ConcertOrder.TITLE_ASC, PageQuery(5, after=("a", "c")))),
    ("ix_bookings_hold_until", in_unit(lambda u: u.bookings.due(NOW, limit=5))),
    ("ix_bookings_concert_id_user_id", in_unit(lambda u: u.bookings.live_ticket_quantities([ADA], CONCERT))),
    ("ix_bookings_concert_id_user_id", in_unit(lambda u: u.bookings.live_of(CONCERT, limit=5))),
    ("ix_bookings_refund", in_unit(lambda u: u.sales.unsettled(CONCERT))),
    ("ix_bookings_refund", in_unit(lambda u: u.sales.all_unsettled())),
    ("ix_sales_cancelled", in_unit(lambda u: u.sales.all_unsettled())),
    (
        "ix_bookings_user_id_created_at_id",
        lambda d: d.reads.my_page(ADA, AFTER_NOON, statuses=None),
    ),
    (
        "ix_bookings_user_id_status_created_at_id",
        lambda d: d.reads.my_page(ADA, AFTER_NOON, statuses=frozenset({BookingStatus.APPROVED})),
    ),
    ("ix_payments_booking_id_created_at_id", in_unit(lambda u: u.payments.of_booking(BOOKING.id))),
    ("ix_sales_halted", in_unit(lambda u: u.sales.halted())),
    ("ix_payments_failed_refund", in_unit(lambda u: u.payments.failed_refunds(limit=5))),
    ("uq_payment_intents_open", in_unit(lambda u: u.payments.open_intent(BOOKING.id))),
    ("uq_payment_intents_open", in_unit(lambda u: u.payments.with_open_intents([BOOKING.id]))),
    ("ix_payment_intents_look_at", in_unit(lambda u: u.payments.claim_open_intents(lease_s=1, limit=5))),
    ("ix_webhook_events_received_at", in_unit(lambda u: u.payments.reap_webhooks(before=NOW, limit=5))),
    ("ix_idempotency_keys_claimed_at", in_unit(lambda u: u.idempotency.reap(before=NOW, limit=5))),
    *(("ix_outbox_due_at_id", partial(claim, first=first)) for first in First),
    ("ix_outbox_created_at", lambda d: d.outbox.lag()),
]
# These refuse a second row; what else they serve is no query of a store.
GUARDS = {"uq_users_email", "uq_sessions_token_hash", "uq_payments_captured"}


@pytest.fixture
def postgres_database_url(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """Never used before: which of two good indexes is cheaper depends on what the planner remembers of a table."""
    with postgres_databases.untouched() as url:
        yield url


@pytest.mark.parametrize(
    ("index", "ask"), SERVED, ids=[f"{index}-{n}" for n, (index, _) in enumerate(SERVED)]
)
async def test_index_serves_its_query(database: Database, index: str, ask: Ask) -> None:
    """The database's own plan for the very statement names it, sorting nothing that the index has sorted."""
    with recorded(database) as seen:
        await ask(database)
    plans = [await plan_of(database, *statement) for statement in list(seen)]
    assert any(index in plan and "TEMP B-TREE" not in plan and 'Sort"' not in plan for plan in plans), plans


async def test_rows_are_found_by_key_whatever_is_sent(database: Database) -> None:
    """Also in the plan that PostgreSQL makes once, while the tables are small, for all that comes later."""
    sale = await open_sale(database, a_sale())
    booking, payment = await put_booking(database, a_booking(sale)), a_payment(BOOKING)
    with recorded(database) as seen:
        async with database.write() as unit:
            await unit.payments.add(payment)
            await unit.payments.save((payment, replace(payment, decline_code="x")))
            await unit.payments.save_actions({payment.id: ("secret", None)})
            await unit.payments.put_intents(an_intent(booking))
            await unit.bookings.save([(booking, replace(booking, version=2))])
            await unit.sales.save(sale, sale.with_held(booking.quantities))
            await unit.bookings.raise_my_page_versions([ADA])
            await unit.idempotency.find_each([a_key()])
            await unit.idempotency.keep([KeptOutcome(a_key(), reference="b", refusal=None)])
            await unit.commit()
    statements = list(seen)
    assert len(statements) > 3
    for _ in range(2):
        for sql, parameters in statements:
            plan = await plan_of(database, sql, parameters, is_for_all=True)
            if is_postgres(database):
                assert all("Index Cond" in node for node in _reads(json.loads(plan))), plan
            else:
                assert "SCAN" not in plan
        if is_postgres(database):
            await run_sql(database, "ANALYZE")


def _reads(plan: Any) -> list[dict[str, Any]]:
    """The nodes of PostgreSQL's plan that read a table or an index."""
    below = [node for each in plan.get("Plans", []) for node in _reads(each)]
    is_read = plan["Node Type"].startswith(("Index", "Bitmap Index", "Seq"))
    return [plan, *below] if is_read else below


def test_every_index_is_listed() -> None:
    """A new index needs a query; one without a query is to be dropped."""
    named = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    assert named - {index for index, _ in SERVED} - GUARDS == set()


async def plan_of(database: Database, sql: str, parameters: Any, *, is_for_all: bool = False) -> str:
    """How the database would go about it, or about any other parameters; where it must not scan tables."""
    async with database.writers.transaction() as statements:
        connection = statements.connection
        if not statements.is_postgres:
            rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)).all()
            return " ".join(str(row[-1]) for row in rows)
        # With next to no rows a scan of the table is cheaper; this asks for the next best way.
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        await connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        if is_for_all:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            sent = ", ".join(["NULL"] * max(int(number) for number in re.findall(r"\$(\d+)", sql)))
            await driver.execute(f"SET LOCAL plan_cache_mode = force_generic_plan; PREPARE it AS {sql}")
            (planned,) = await driver.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE it({sent})")
            await driver.execute("DEALLOCATE it")
            return json.dumps(planned["Plan"])
        rows = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", parameters)).all()
        return json.dumps(rows[0][0])
