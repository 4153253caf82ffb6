"""Sales and bookings: open, change and close a sale; book, cancel and expire.

Every change of a booking is recorded by `record`: the row by compare-and-set, its history, the stock if it moved,
the buyer's my-page version and one outbox row that carries whole states.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from domain.base import (
    PAYMENT_MAX_MINOR,
    BookingId,
    Checker,
    ConcertId,
    Money,
    NotFound,
    PaymentStatus,
)
from domain.booking import (
    ITEMS_MAX,
    LIVE,
    PAYABLE,
    QUANTITY_MAX,
    Action,
    Booking,
    BookingChanged,
    BookingItem,
    BookingStatus,
    CapacityTaken,
    Quantities,
    Sale,
    SaleChanged,
    SaleClosed,
    StockLine,
    TicketLimit,
    check_cancellable,
    check_seats,
    check_window,
)
from domain.events import IntentAbandoned, RefundRequested
from domain.payment import Payment
from domain.ports import Deps, WriteUnit
from domain.use_cases.keys import once, scope_of
from domain.user import Viewer

REASON_MAX_LENGTH = 500
# How many bookings of one concert share a transaction when many of them end at once.
BATCH = 100


@dataclass(frozen=True, slots=True)
class BookConcert:
    """Hold seats of one or several ticket types."""

    concert_id: ConcertId
    quantities: Quantities
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class CancelBooking:
    """Give the seats back; what was paid is refunded."""

    booking_id: BookingId
    reason: str | None = None
    idempotency_key: str | None = None


async def book_concert(deps: Deps, viewer: Viewer, command: BookConcert) -> Booking:
    """The seats are held until `pay_by`, all or none.

    Concurrency: the sale's lock comes first, and everything is decided on what is committed then.
    Raises: NotFound, InvalidInput, SalesClosed, TicketLimit, SoldOut, IdempotencyMismatch, TooManyAttempts.
    """
    scope = scope_of(viewer.user.id, "bookConcert", command)
    await deps.limiter.admit("book", who=viewer.user.id)
    async with deps.write("book") as unit:
        sale = await unit.sales.lock(command.concert_id)

        async def act() -> Booking:
            return await _hold(deps, unit, sale, viewer, command.quantities)

        async def replay(reference: str) -> Booking:
            return await _as_it_is_now(unit, BookingId(reference))

        return await once(unit, scope, act=act, reference=lambda booking: booking.id, replay=replay)


async def _hold(
    deps: Deps, unit: WriteUnit, sale: Sale | None, viewer: Viewer, quantities: Quantities
) -> Booking:
    if sale is None:
        raise NotFound("concert")
    items = _items(sale, quantities)
    now = await unit.now()
    check_window(sale, now)
    wanted = sum(item.quantity for item in items)
    owned = await unit.bookings.live_ticket_quantity(viewer.user.id, sale.concert_id)
    remaining = max(0, sale.max_tickets_per_user - owned)
    if wanted > remaining:
        raise TicketLimit(sale.max_tickets_per_user, remaining)
    check_seats(sale, quantities)
    booking = Booking(
        id=BookingId(deps.randomness.new_id()),
        user_id=viewer.user.id,
        concert_id=sale.concert_id,
        items=items,
        total=Money(_total_minor(items), items[0].unit_price.currency),
        status=BookingStatus.AWAITING_PAYMENT,
        is_final=False,
        hold_until=min(now + timedelta(seconds=deps.rules.hold_s), sale.starts_at),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=1,
        created_at=now,
        updated_at=now,
    )
    await record(unit, [(None, booking)], sale=sale, moved=sale.with_held(quantities))
    return booking


def _items(sale: Sale, quantities: Quantities) -> tuple[BookingItem, ...]:
    """The lines with today's names and prices. Raises: NotFound for a foreign ticket type, InvalidInput."""
    items = []
    for wanted in quantities:
        line = sale.line(wanted.ticket_type_id)
        if line is None:
            raise NotFound("ticket type")
        items.append(BookingItem(line.ticket_type_id, line.name, wanted.quantity, line.price))
    check = Checker()
    check.require(1 <= len(items) <= ITEMS_MAX, ("items",), f"must have from 1 to {ITEMS_MAX} entries")
    seen = set()
    for position, item in enumerate(items):
        path = ("items", str(position))
        check.whole(item.quantity, (*path, "quantity"), at_least=1, at_most=QUANTITY_MAX)
        is_new = item.ticket_type_id not in seen
        check.require(is_new, (*path, "ticketTypeId"), "must not appear twice in one booking")
        seen.add(item.ticket_type_id)
    check.done()
    check.require(
        _total_minor(items) <= PAYMENT_MAX_MINOR, ("items",), "cost more than one card payment may be"
    )
    check.done()
    return tuple(items)


def _total_minor(items: Sequence[BookingItem]) -> int:
    return sum(item.quantity * item.unit_price.amount_minor for item in items)


async def cancel_booking(deps: Deps, viewer: Viewer, command: CancelBooking) -> Booking:
    """The booking is CANCELLED, its seats are free again and its money is on the way back.

    Raises: NotFound (also for somebody else's booking), InvalidInput, BookingState, IdempotencyMismatch.
    """
    scope = scope_of(viewer.user.id, "cancelBooking", command)
    async with deps.write("cancel") as unit:
        booking = await lock_visible(unit, viewer, command.booking_id)

        async def act() -> Booking:
            if booking is None:
                raise NotFound("booking")
            check = Checker()
            check.text(command.reason or "", ("reason",), max_length=REASON_MAX_LENGTH, min_length=0)
            check.done()
            sale = await lock_sale_of(unit, booking)
            check_cancellable(booking, sale.starts_at, await unit.now())
            return (await cancel_locked(unit, [booking], sale=sale))[0]

        async def replay(reference: str) -> Booking:
            return await _as_it_is_now(unit, BookingId(reference))

        return await once(unit, scope, act=act, reference=lambda done: done.id, replay=replay)


async def cancel_locked(unit: WriteUnit, bookings: Sequence[Booking], *, sale: Sale) -> list[Booking]:
    """Cancel live bookings of one sale; bookings and sale are locked. Refunds and open intents follow by event."""
    now = await unit.now()
    payments = await _with_refunds(unit, await _payments_of(unit, bookings), now)
    changes: list[tuple[Booking | None, Booking]] = []
    moved = sale
    for booking in bookings:
        if booking.status is BookingStatus.APPROVED:
            moved = moved.with_sold_released(booking.quantities)
        else:
            moved = moved.with_hold_released(booking.quantities)
        cancelled = showing(booking.after(Action.CANCEL, now), payments.get(booking.id, []))
        changes.append((booking, cancelled))
    await record(unit, changes, sale=sale, moved=moved)
    await abandon_intents(unit, bookings)
    return [cancelled for _, cancelled in changes]


async def _payments_of(unit: WriteUnit, bookings: Sequence[Booking]) -> Mapping[BookingId, Sequence[Payment]]:
    """The attempts of those bookings that have any, oldest first."""
    return await unit.payments.of_bookings([each.id for each in bookings if each.payment_id is not None])


async def _with_refunds(
    unit: WriteUnit, payments: Mapping[BookingId, Sequence[Payment]], now: datetime
) -> Mapping[BookingId, Sequence[Payment]]:
    """The same attempts, the captured ones now to be refunded."""
    every = [each for attempts in payments.values() for each in attempts]
    captured = [each for each in every if each.status is PaymentStatus.CAPTURED]
    refunding = dict(zip(captured, await request_refunds(unit, captured, now), strict=True))
    return {
        booking_id: [refunding.get(each, each) for each in attempts]
        for booking_id, attempts in payments.items()
    }


async def request_refunds(unit: WriteUnit, payments: Sequence[Payment], now: datetime) -> list[Payment]:
    """The money goes back once this transaction is committed."""
    refunding = [payment.becoming(PaymentStatus.REFUND_PENDING, now) for payment in payments]
    if refunding:
        await unit.payments.save(*zip(payments, refunding, strict=True))
        await unit.outbox.add(*(RefundRequested(payment.booking_id, payment.id) for payment in payments))
    return refunding


async def abandon_intents(unit: WriteUnit, bookings: Sequence[Booking]) -> None:
    """Have the live intents of bookings that are over cancelled at the processor, after the commit."""
    open_ids = await unit.payments.with_open_intents([booking.id for booking in bookings])
    await unit.outbox.add(*(IntentAbandoned(booking_id) for booking_id in sorted(open_ids)))


async def expire_due(deps: Deps, *, limit: int = 500) -> int:
    """Holds that passed are EXPIRED and their seats on sale again; how many it were.

    Concurrency: any number may sweep at once; a booking that somebody else changed meanwhile is left alone.
    Raises: what the first concert that could not be swept raised, after the others were.
    """
    async with deps.write("expire.find") as unit:
        due = await unit.bookings.due(await unit.now(), limit=limit)
    by_concert: defaultdict[ConcertId, list[BookingId]] = defaultdict(list)
    for concert_id, booking_id in due:
        by_concert[concert_id].append(booking_id)
    expired = 0
    failures: list[Exception] = []
    for booking_ids in by_concert.values():
        try:
            for start in range(0, len(booking_ids), BATCH):
                expired += await _expire(deps, booking_ids[start : start + BATCH])
        except Exception as error:  # one concert's locked or broken rows must not keep others' seats held
            failures.append(error)
    if failures:
        raise failures[0]
    return expired


async def _expire(deps: Deps, booking_ids: Sequence[BookingId]) -> int:
    async with deps.write("expire") as unit:
        locked = await unit.bookings.lock(sorted(booking_ids))
        now = await unit.now()
        passed = [b for b in locked if b.status in PAYABLE and b.hold_until <= now]
        if not passed:
            return 0
        sale = await lock_sale_of(unit, passed[0])
        payments = await _payments_of(unit, passed)
        moved = sale
        changes: list[tuple[Booking | None, Booking]] = []
        for booking in passed:
            moved = moved.with_hold_released(booking.quantities)
            expired = showing(booking.after(Action.EXPIRE, now), payments.get(booking.id, []))
            changes.append((booking, expired))
        await record(unit, changes, sale=sale, moved=moved)
        await abandon_intents(unit, passed)
        await unit.commit()
    return len(passed)


async def cancel_bookings(deps: Deps, event: SaleClosed) -> None:
    """Reaction: a batch of the cancelled concert's bookings is cancelled, and the rest is asked for anew.

    Concurrency: may repeat; the request for the rest commits with the batch, so that it goes on after any crash.
    """
    async with deps.write("close_sale") as unit:
        booking_ids = await unit.bookings.live_of(event.concert_id, limit=BATCH)
        if not booking_ids:
            return
        locked = [b for b in await unit.bookings.lock(sorted(booking_ids)) if b.status in LIVE]
        if locked:
            await cancel_locked(unit, locked, sale=await lock_sale_of(unit, locked[0]))
        await unit.outbox.add(event)
        await unit.commit()


# ---------------------------------------------------------------- sales, for the concert module
async def open_sale(unit: WriteUnit, sale: Sale) -> None:
    """The concert sells from the moment of the commit."""
    await unit.sales.add(sale)
    await unit.outbox.add(SaleChanged(sale))


async def change_sale(unit: WriteUnit, old: Sale, new: Sale) -> Sale:
    """Window, limit, facts and capacities are as in `new`; the sale is locked.

    Raises: CapacityTaken where a capacity is below what is held and sold.
    """
    for line in new.stock:
        if line.available < 0:
            raise CapacityTaken(line.ticket_type_id, line.taken)
    if new == old:
        return old
    changed = replace(new, version=old.version + 1)
    await unit.sales.save(old, changed)
    await unit.outbox.add(SaleChanged(changed))
    return changed


async def close_sale(unit: WriteUnit, sale: Sale) -> None:
    """Nothing is sold from the moment of the commit, and every booking is cancelled from then on."""
    closed = sale.closed()
    await unit.sales.save(sale, closed)
    await unit.outbox.add(SaleChanged(closed))
    await unit.outbox.add(SaleClosed(sale.concert_id))


def with_capacity(line: StockLine, capacity: int) -> StockLine:
    """The line with another capacity; `change_sale` refuses one that is too small."""
    return replace(line, capacity=capacity)


# ---------------------------------------------------------------- shared with the payment's use cases
async def record(
    unit: WriteUnit,
    changes: Sequence[tuple[Booking | None, Booking]],
    *,
    sale: Sale,
    moved: Sale | None,
) -> None:
    """Write new versions of bookings of one sale and say so; `moved` is the sale after them, if stock moved.

    Concurrency: the bookings are locked or new, and so is the sale where `moved` is given.
    """
    current = sale if moved is None else moved
    for old, new in changes:
        if old is None:
            await unit.bookings.add(new)
    known = [(old, new) for old, new in changes if old is not None]
    if known:
        await unit.bookings.save(known)
    if moved is not None:
        await unit.sales.save(sale, moved)
    await unit.bookings.add_events(changes, stock_version=current.version)
    # Buyer rows are the last locks; the last event alone needs to carry the stock.
    changed = [new for _, new in changes]
    versions = await unit.bookings.raise_my_page_versions([booking.user_id for booking in changed])
    events = [BookingChanged(b, current.facts, None, v) for b, v in zip(changed, versions, strict=True)]
    await unit.outbox.add(*events[:-1], replace(events[-1], sale=moved))


def showing(booking: Booking, payments: Sequence[Payment]) -> Booking:
    """The booking with the standing of its payments, oldest first."""
    if not payments:
        return booking
    latest = payments[-1]
    return booking.showing(
        latest.id,
        status=latest.status,
        decline_code=latest.decline_code,
        money_may_move=any(payment.is_open for payment in payments),
    )


async def lock_visible(unit: WriteUnit, viewer: Viewer, booking_id: BookingId) -> Booking | None:
    """The booking, locked, where it is the viewer's or the viewer is an admin."""
    found = await unit.bookings.lock([booking_id])
    if not found or not (viewer.is_admin or found[0].user_id == viewer.user.id):
        return None
    return found[0]


async def lock_sale_of(unit: WriteUnit, booking: Booking) -> Sale:
    """The booking's sale, locked."""
    sale = await unit.sales.lock(booking.concert_id)
    assert sale is not None, "a booking has a sale"
    return sale


async def sale_of(unit: WriteUnit, booking: Booking) -> Sale:
    """The booking's sale as it is now, without a lock."""
    sale = await unit.sales.get(booking.concert_id)
    assert sale is not None, "a booking has a sale"
    return sale


async def _as_it_is_now(unit: WriteUnit, booking_id: BookingId) -> Booking:
    # Not locked: who replays a booking holds the sale's lock, and everybody else takes the booking's first.
    found = await unit.bookings.get(booking_id)
    assert found is not None, "a stored outcome names a booking that exists"
    return found
