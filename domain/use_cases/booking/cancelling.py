"""Cancel one booking, or all of a cancelled concert; the money follows by event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from domain.base import BookingId, Checker, NotFound, PaymentStatus
from domain.booking import LIVE, Action, Booking, BookingStatus, Sale, SaleClosed, check_cancellable
from domain.events import IntentAbandoned, RefundRequested
from domain.payment import Payment
from domain.ports import Deps, WriteUnit
from domain.use_cases.booking.recording import (
    Change,
    as_they_are_now,
    lock_sale_of,
    lock_visible,
    record,
    showing,
)
from domain.use_cases.keys import once, scope_of
from domain.user import Viewer

REASON_MAX_LENGTH = 500
# How many bookings of one concert share a transaction when many of them end at once.
BATCH = 100


@dataclass(frozen=True, slots=True)
class CancelBooking:
    """Give the seats back; what was paid is refunded."""

    booking_id: BookingId
    reason: str | None = None
    idempotency_key: str | None = None


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
            return (await as_they_are_now(unit, [reference]))[reference]

        return await once(unit, scope, act=act, reference=lambda done: done.id, replay=replay)


async def cancel_locked(unit: WriteUnit, bookings: Sequence[Booking], *, sale: Sale) -> list[Booking]:
    """Cancel live bookings of one sale; bookings and sale are locked. Refunds and open intents follow by event."""
    now = await unit.now()
    payments = await _with_refunds(unit, await payments_of(unit, bookings), now)
    changes: list[Change] = []
    moved = sale
    for booking in bookings:
        if booking.status is BookingStatus.APPROVED:
            moved = moved.with_sold_released(booking.quantities)
        else:
            moved = moved.with_hold_released(booking.quantities)
        cancelled = showing(booking.after(Action.CANCEL, now), payments.get(booking.id, []))
        changes.append(Change(booking, cancelled, moved))
    await record(unit, changes, sale=sale)
    await abandon_intents(unit, bookings)
    return [change.new for change in changes]


async def payments_of(unit: WriteUnit, bookings: Sequence[Booking]) -> Mapping[BookingId, Sequence[Payment]]:
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
