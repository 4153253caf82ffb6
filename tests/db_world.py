"""Builders for what stands in the database: they set what matters and leave the rest ordinary."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Connection

from domain.base import (
    BookingId,
    ConcertId,
    Money,
    PaymentId,
    PaymentStatus,
    SessionId,
    TicketTypeId,
    UserId,
)
from domain.booking import (
    Booking,
    BookingItem,
    BookingStatus,
    Quantity,
    Sale,
    SaleClosed,
    StockLine,
)
from domain.concert import Concert, ConcertStatus, TicketType
from domain.payment import Payment
from domain.ports import IntentRecord, KeyScope
from domain.user import Session, User, UserRole
from infra.db.unit import Database, SqlWriteUnit

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
PRICE = Money(3_500, "EUR")


def a_user(name: str = "ada", *, email: str | None = None) -> User:
    """A customer."""
    return User(UserId(name), email or f"{name}@example.org", name.title(), UserRole.CUSTOMER, NOW)


def a_session(user: User, name: str = "s", *, expires_at: datetime | None = None) -> Session:
    """Somebody's log-in, of a day or until `expires_at`."""
    return Session(SessionId(name), user.id, NOW, expires_at or datetime.now(UTC) + timedelta(days=1))


def a_concert(name: str = "c", **changes: Any) -> Concert:
    """On sale since an hour, for another day."""
    now = datetime.now(UTC)
    concert = Concert(
        id=ConcertId(name),
        title="Night Trains",
        performer="The Sleepers",
        description="",
        venue="Paradiso",
        time_zone="Europe/Amsterdam",
        starts_at=now + timedelta(days=2),
        sales_open_at=now - timedelta(hours=1),
        sales_close_at=now + timedelta(days=1),
        max_tickets_per_user=6,
        status=ConcertStatus.SCHEDULED,
        created_at=NOW,
    )
    return replace(concert, **changes)


def types_of(concert: Concert, *capacities: int) -> list[TicketType]:
    """One ticket type per capacity; their ids sort against the order in which they are registered."""
    return [
        TicketType(TicketTypeId(f"{concert.id}-t{9 - n}"), concert.id, f"Type {n}", PRICE, capacity)
        for n, capacity in enumerate(capacities)
    ]


def a_sale(name: str = "c", capacities: tuple[int, ...] = (10,), **changes: Any) -> Sale:
    """The sale of `a_concert`."""
    concert = a_concert(name)
    sale = Sale(
        concert_id=concert.id,
        title=concert.title,
        venue=concert.venue,
        starts_at=concert.starts_at,
        sales_open_at=concert.sales_open_at,
        sales_close_at=concert.sales_close_at,
        max_tickets_per_user=concert.max_tickets_per_user,
        is_cancelled=False,
        version=1,
        stock=tuple(
            StockLine(kind.id, kind.name, kind.price, kind.capacity, held=0, sold=0)
            for kind in types_of(concert, *capacities)
        ),
    )
    return replace(sale, **changes)


def a_booking(sale: Sale, name: str = "b", *, user: str = "ada", tickets: int = 1, **changes: Any) -> Booking:
    """A hold on seats of the sale's first type."""
    line = sale.stock[0]
    booking = Booking(
        id=BookingId(name),
        user_id=UserId(user),
        concert_id=sale.concert_id,
        items=(BookingItem(line.ticket_type_id, line.name, tickets, line.price),),
        total=Money(tickets * line.price.amount_minor, line.price.currency),
        status=BookingStatus.AWAITING_PAYMENT,
        is_final=False,
        hold_until=NOW + timedelta(minutes=10),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=1,
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(booking, **changes)


def a_payment(booking: Booking, name: str = "p", **changes: Any) -> Payment:
    """An attempt to collect the booking's total, just sent."""
    payment = Payment(
        id=PaymentId(name),
        booking_id=booking.id,
        user_id=booking.user_id,
        amount=booking.total,
        status=PaymentStatus.PROCESSING,
        payment_method_id="pm_card_visa",
        intent_id=f"pi_{name}",
        decline_code=None,
        created_at=NOW,
        captured_at=None,
        refunded_at=None,
    )
    return replace(payment, **changes)


def an_intent(booking: Booking, name: str = "p", **changes: Any) -> IntentRecord:
    """The booking's live intent, known to the processor."""
    record = IntentRecord(
        payment_id=PaymentId(name),
        booking_id=booking.id,
        intent_id=f"pi_{name}",
        create_number=0,
        charge_id=None,
        is_closed=False,
        creating_until=None,
        creating_key=None,
    )
    return replace(record, **changes)


def a_key(key: str = "k", *, arguments_hash: str = "h") -> KeyScope:
    """A key of Ada's bookConcert."""
    return KeyScope(UserId("ada"), "bookConcert", key, arguments_hash)


def an_event(name: str = "c") -> SaleClosed:
    """The smallest event."""
    return SaleClosed(ConcertId(name))


async def open_sale(database: Database, sale: Sale) -> Sale:
    """The sale is there."""
    async with database.write() as unit:
        await unit.sales.add(sale)
        await unit.commit()
    return sale


async def hold(unit: SqlWriteUnit, sale: Sale, booking: Booking) -> Sale:
    """Write a booking and the stock that it takes, as `bookConcert` does; the sale as it is then."""
    wanted = tuple(Quantity(item.ticket_type_id, item.quantity) for item in booking.items)
    held = sale.with_held(wanted)
    await unit.bookings.add([booking])
    await unit.sales.save(sale, held)
    await unit.bookings.add_events([(None, booking, held.version)])
    await unit.bookings.raise_my_page_versions([booking.user_id])
    return held


async def put_booking(database: Database, booking: Booking) -> Booking:
    """The booking is there, whatever the stock says."""
    async with database.write() as unit:
        await unit.bookings.add([booking])
        await unit.bookings.raise_my_page_versions([booking.user_id])
        await unit.commit()
    return booking


async def run_sql(database: Database, sql: str, **parameters: object) -> None:
    """Do with the tables what the stores never would."""
    async with database.writers.transaction() as statements:
        await statements.change(text(sql).bindparams(**parameters))
        await statements.commit()


def is_postgres(database: Database) -> bool:
    """Whether it is on PostgreSQL."""
    return database.writers.engine.dialect.name == "postgresql"


@contextmanager
def recorded(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are executed meanwhile, with their parameters; transaction control left out."""
    seen: list[tuple[str, Any]] = []

    def hear(_: Connection, __: object, sql: str, parameters: Any, *___: object) -> None:
        if not sql.startswith(("BEGIN", "SET LOCAL", "SELECT set_config")):
            seen.append((sql, parameters))

    engines = {pool.engine.sync_engine for pool in database.pools}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", hear)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", hear)
