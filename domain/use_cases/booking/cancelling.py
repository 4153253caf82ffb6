"""Cancel one booking, or all of a cancelled concert; the money follows by event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from domain.base import BookingId, Checker, DomainError, NotFound, PaymentStatus
from domain.booking import LIVE, Action, Booking, BookingStatus, Sale, SaleClosed, check_cancellable
from domain.events import IntentAbandoned, RefundRequested
from domain.payment import Payment
from domain.ports import Deps, KeyScope, WriteUnit
from domain.use_cases.booking.recording import (
    Change,
    as_they_are_now,
    lock_sale_of,
    may_see,
    record,
    showing,
)
from domain.use_cases.keys import once_each, scope_of
from domain.use_cases.sharing import apart, unless_overtaken
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


@dataclass(frozen=True, slots=True)
class _Wish:
    """Who wants what cancelled, under which key."""

    viewer: Viewer
    command: CancelBooking
    scope: KeyScope | None


async def cancel_booking(deps: Deps, viewer: Viewer, command: CancelBooking) -> Booking:
    """The booking is CANCELLED, its seats are free again and its money is on the way back.

    Concurrency: group commit. Who cancels while others of the same concert are being cancelled shares the next
    transaction with all who do; each is answered after the commit, with an outcome of its own.
    Raises: NotFound (also for somebody else's booking), InvalidInput, BookingState, IdempotencyMismatch, Overloaded.
    """
    wish = _Wish(viewer, command, scope_of(viewer.user.id, "cancelBooking", command))
    concerts = await deps.reads.booked_concerts([command.booking_id])
    # One that does not exist has no concert, and is not found in a lane of its own.
    lane = concerts.get(command.booking_id, command.booking_id)
    return await deps.together(f"cancel {lane}", wish, partial(_cancel, deps))


async def _cancel(deps: Deps, wishes: Sequence[_Wish]) -> Sequence[Booking | Exception]:
    """The outcome of each; who repeats a key or a booking comes after the other one's commit."""

    def names(wish: _Wish) -> Sequence[object]:
        booking_id = wish.command.booking_id
        return [booking_id] if wish.scope is None else [booking_id, wish.scope.identity]

    return await apart(wishes, names=names, commit=partial(_cancel_at_once, deps))


async def _cancel_at_once(deps: Deps, wishes: Sequence[_Wish]) -> Sequence[Booking | DomainError]:
    """The outcome of each, after one commit. All are of one concert; no two have the same booking or key."""

    async def attempt() -> Sequence[Booking | DomainError] | None:
        async with deps.write("cancel") as unit:
            return await _cancelled(unit, wishes)

    return await unless_overtaken(attempt)


async def _cancelled(unit: WriteUnit, wishes: Sequence[_Wish]) -> Sequence[Booking | DomainError] | None:
    booking_ids = sorted(wish.command.booking_id for wish in wishes)
    locked = {booking.id: booking for booking in await unit.bookings.lock(booking_ids)}

    async def act(positions: Sequence[int]) -> Sequence[Booking | DomainError]:
        return await _cancel_those(unit, [wishes[position] for position in positions], locked)

    return await once_each(
        unit,
        [wish.scope for wish in wishes],
        act=act,
        reference=lambda booking: booking.id,
        replay=partial(as_they_are_now, unit),
    )


async def _cancel_those(
    unit: WriteUnit, wishes: Sequence[_Wish], locked: Mapping[BookingId, Booking]
) -> list[Booking | DomainError]:
    """Refuse those that can't be cancelled, then cancel the others all at once."""
    outcomes: dict[BookingId, Booking | DomainError] = {}
    asked: list[Booking] = []
    for wish in wishes:
        try:
            asked.append(_asked(wish, locked.get(wish.command.booking_id)))
        except DomainError as refusal:
            outcomes[wish.command.booking_id] = refusal
    if asked:
        sale = await lock_sale_of(unit, asked[0])
        now = await unit.now()
        granted: list[Booking] = []
        for booking in asked:
            try:
                check_cancellable(booking, sale.starts_at, now)
            except DomainError as refusal:
                outcomes[booking.id] = refusal
            else:
                granted.append(booking)
        if granted:
            outcomes |= {booking.id: booking for booking in await cancel_locked(unit, granted, sale=sale)}
    return [outcomes[wish.command.booking_id] for wish in wishes]


def _asked(wish: _Wish, booking: Booking | None) -> Booking:
    """The booking. Raises: NotFound where it is none of the person's business, InvalidInput."""
    if booking is None or not may_see(wish.viewer, booking):
        raise NotFound("booking")
    check = Checker()
    check.text(wish.command.reason or "", ("reason",), max_length=REASON_MAX_LENGTH, min_length=0)
    check.done()
    return booking


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
