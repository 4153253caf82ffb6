"""Reading what a run left, and looking at the stock meanwhile, all over connections of its own."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import Row, case, func, select

from domain.base import DomainError
from domain.booking import BookingStatus
from infra.app import Frontrow
from infra.db.statements import Statements
from infra.db.tables import (
    booking_events,
    booking_items,
    bookings,
    idempotency_keys,
    outbox,
    payments,
    sale_stock,
    sales,
)
from infra.db.unit import Database
from infra.read_model import differences
from tests.client import until
from tests.fake_processor import FakeProcessor
from tests.faults.evidence import BookingRow, EventRow, Final, KeyRow, LedgerRow, PaymentRow, SaleRow
from tests.faults.history import Lines, Opening, Sample, StockRow
from tests.faults.model import HOLDING

SAMPLE_EVERY_S = 0.05
QUIET_NAP_S = 0.1
_HOLDING = sorted(status.value for status in HOLDING)
_SOLD = BookingStatus.APPROVED.value


async def differences_in_the_end(frontrow: Frontrow) -> list[str]:
    """Where the read model differs from the database, once it has had time to be filled again."""

    async def wrong() -> list[str]:
        try:
            return [line async for line in differences(frontrow.read_model, frontrow.source)]
        except ConnectionError as error:  # not known yet
            return [str(error)]

    return await until(wrong, lambda lines: lines == [])


async def opening_of(database: Database, concert_id: str) -> Opening:
    """The sale before anybody bought of it. Raises: AssertionError where somebody did."""
    async with database.patient_readers.transaction() as statements:
        stock = await _stock(statements, [concert_id])
        row = await statements.row(select(sales).where(sales.c.concert_id == concert_id))
    assert row is not None, f"there is no sale {concert_id}"
    lines = stock[concert_id]
    assert all(line.held == line.sold == 0 for line in lines), "somebody bought already"
    capacities = tuple((line.ticket_type_id, line.capacity) for line in lines)
    return Opening(concert_id, row.version, row.max_tickets_per_user, capacities)


async def read_final(database: Database) -> Final:
    """All there is of sales, bookings, payments and keys, in one snapshot."""
    async with database.patient_readers.transaction() as statements:
        sale_rows = await statements.rows(select(sales).order_by(sales.c.concert_id))
        stock = await _stock(statements, [row.concert_id for row in sale_rows])
        items: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for row in await statements.rows(
            select(booking_items).order_by(booking_items.c.booking_id, booking_items.c.position)
        ):
            items[row.booking_id].append((row.ticket_type_id, row.quantity))
        booking_rows = await statements.rows(select(bookings).order_by(bookings.c.id))
        event_rows = await statements.rows(
            select(booking_events).order_by(booking_events.c.booking_id, booking_events.c.version)
        )
        payment_rows = await statements.rows(
            select(payments).order_by(payments.c.booking_id, payments.c.created_at, payments.c.id)
        )
        key_rows = await statements.rows(select(idempotency_keys))
        (waiting,) = await statements.rows(select(func.count()).select_from(outbox))
    return Final(
        sales=tuple(
            SaleRow(
                row.concert_id,
                row.version,
                bool(row.is_cancelled),
                row.max_tickets_per_user,
                stock[row.concert_id],
            )
            for row in sale_rows
        ),
        bookings=tuple(_booking_row(row, tuple(items[row.id])) for row in booking_rows),
        events=tuple(
            EventRow(
                row.booking_id,
                row.version,
                row.was,
                row.status,
                row.payment_status,
                row.concert_id,
                row.stock_version,
                row.occurred_at.timestamp(),
            )
            for row in event_rows
        ),
        payments=tuple(
            PaymentRow(row.id, row.booking_id, row.amount_minor, row.currency, row.status, row.intent_id)
            for row in payment_rows
        ),
        keys=tuple(
            KeyRow(row.user_id, row.mutation, row.key, row.reference, row.refusal) for row in key_rows
        ),
        waiting=waiting[0],
    )


def _booking_row(row: Row[*tuple[Any, ...]], items: Lines) -> BookingRow:
    return BookingRow(
        booking_id=row.id,
        user_id=row.user_id,
        concert_id=row.concert_id,
        status=row.status,
        version=row.version,
        items=items,
        total_minor=row.total_minor,
        currency=row.currency,
        hold_until_s=row.hold_until.timestamp(),
    )


@asynccontextmanager
async def sampled(
    database_url: str,
    concert_ids: Collection[str],
    *,
    every_s: float = SAMPLE_EVERY_S,
    sums_every: int = 1,
) -> AsyncIterator[list[Sample]]:
    """Looks at the stock of these until the block ends, in a list that grows: at least one at the beginning.

    Every `sums_every`-th look counts the bookings too, in the same snapshot: that is dear where there are many.
    While the database is away there are none.
    """
    database, wanted, is_over = Database(database_url), sorted(concert_ids), asyncio.Event()
    samples = await look(database, wanted, has_sums=True)

    async def look_on() -> None:
        count = 0
        while not is_over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await is_over.wait()
            count += 1
            with suppress(DomainError):  # away, or busy: the next look is soon
                samples.extend(await look(database, wanted, has_sums=count % sums_every == 0))

    looking = asyncio.create_task(look_on(), name="looks at the stock")
    try:
        yield samples
    finally:
        # Not cancelled but told: a statement that is cut off would leave its connection open.
        is_over.set()
        try:
            await looking
        finally:
            await database.close()


async def look(database: Database, concert_ids: Sequence[str], *, has_sums: bool) -> list[Sample]:
    """The stock of those of these that exist, with the sums over their bookings where asked for."""
    began_s = time.monotonic()
    async with database.readers.transaction() as statements:
        rows = await statements.rows(select(sales).where(statements.one_of(sales.c.concert_id, concert_ids)))
        stock = await _stock(statements, concert_ids, has_sums=has_sums)
    ended_s = time.monotonic()
    return [Sample(row.concert_id, began_s, ended_s, row.version, stock[row.concert_id]) for row in rows]


async def _stock(
    statements: Statements, concert_ids: Sequence[str], *, has_sums: bool = False
) -> dict[str, tuple[StockRow, ...]]:
    counted = await _counted(statements, concert_ids) if has_sums else {}
    found: defaultdict[str, list[StockRow]] = defaultdict(list)
    for row in await statements.rows(
        select(sale_stock)
        .where(statements.one_of(sale_stock.c.concert_id, concert_ids))
        .order_by(sale_stock.c.concert_id, sale_stock.c.position)
    ):
        held, sold = counted.get(row.ticket_type_id, (0, 0)) if has_sums else (None, None)
        found[row.concert_id].append(
            StockRow(row.ticket_type_id, row.capacity, row.held, row.sold, held, sold)
        )
    return {concert_id: tuple(lines) for concert_id, lines in found.items()}


async def _counted(statements: Statements, concert_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    def tickets(statuses: Sequence[str]) -> Any:
        return func.coalesce(
            func.sum(case((bookings.c.status.in_(statuses), booking_items.c.quantity), else_=0)), 0
        )

    rows = await statements.rows(
        select(booking_items.c.ticket_type_id, tickets(_HOLDING), tickets([_SOLD]))
        .join(bookings, bookings.c.id == booking_items.c.booking_id)
        .where(
            statements.one_of(bookings.c.concert_id, concert_ids), bookings.c.status.in_([*_HOLDING, _SOLD])
        )
        .group_by(booking_items.c.ticket_type_id)
    )
    return {row[0]: (int(row[1]), int(row[2])) for row in rows}


async def until_quiet(database: Database, *, patience_s: float = 60.0) -> float:
    """Nothing waits to be told, settled or refunded; how many seconds that took.

    Raises: TimeoutError with what is still under way.
    """
    began_s = time.monotonic()
    while True:
        try:
            busy = await _busy(database)
        except DomainError as error:
            busy = {"the database": str(error)}
        if not busy:
            return time.monotonic() - began_s
        if time.monotonic() - began_s > patience_s:
            raise TimeoutError(f"after {patience_s} s there still is {busy}")
        await asyncio.sleep(QUIET_NAP_S)


async def _busy(database: Database) -> Mapping[str, object]:
    async with database.patient_readers.transaction() as statements:
        waiting = await statements.rows(select(outbox.c.kind, func.count()).group_by(outbox.c.kind))
        pending = await statements.rows(
            select(bookings.c.id).where(bookings.c.status == "PAYMENT_PENDING").limit(5)
        )
        unsettled = await statements.rows(
            select(payments.c.id, payments.c.status)
            .where(payments.c.status.in_(["PROCESSING", "UNKNOWN", "REFUND_PENDING"]))
            .limit(5)
        )
    found = {
        "events": {row[0]: row[1] for row in waiting},
        "bookings": [row.id for row in pending],
        "payments": {row.id: row.status for row in unsettled},
    }
    return {name: value for name, value in found.items() if value}


def ledger_of(entries: Sequence[Mapping[str, Any]]) -> list[LedgerRow]:
    """The sandbox's ledger, as `GET /_ledger` answers it."""
    return [
        LedgerRow(
            intent_id=entry["payment_intent"],
            booking_id=entry["metadata"].get("booking_id"),
            amount_minor=entry["amount"],
            currency=entry["currency"].upper(),
            status=entry["status"],
            refunded_minor=entry["amount_refunded"],
        )
        for entry in entries
    ]


def ledger_of_fake(processor: FakeProcessor) -> list[LedgerRow]:
    """The ledger of the processor at the port."""
    return [
        LedgerRow(
            intent_id=entry.intent.id,
            booking_id=entry.booking_id,
            amount_minor=entry.amount.amount_minor,
            currency=entry.amount.currency,
            status=entry.intent.status.value,
            refunded_minor=entry.amount.amount_minor
            if entry.intent.is_disputed
            else entry.intent.refunded_minor,
            refunds=entry.refunds,
        )
        for entry in processor.entries.values()
    ]
