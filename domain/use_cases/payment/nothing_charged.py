"""An attempt that charged nothing: pay a little later, or with another method."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from domain.base import InvalidInput, PaymentStatus
from domain.booking import PAYABLE, Booking, BookingStatus, Sale, check_payable
from domain.payment import GatewayError, NotSent, OutcomeUnknown, Payment, RequestRefused
from domain.ports import Deps, IntentRecord, KeyScope, WriteUnit
from domain.use_cases.booking import Change, record, sale_of, showing
from domain.use_cases.payment.answers import RETRY_AFTER_MS, Deferred


@dataclass(frozen=True, slots=True)
class Start:
    """This request may create the intent and then confirm it."""

    booking: Booking
    record: IntentRecord


async def turn_of(unit: WriteUnit, start: Start) -> IntentRecord | None:
    """The intent as it is now; None where this took so long that the turn went to another request."""
    now = await unit.payments.intent(start.record.payment_id)
    is_ours = now is not None and not now.is_closed and now.creating_until == start.record.creating_until
    return now if is_ours else None


async def defer(deps: Deps, start: Start, error: GatewayError) -> Deferred:
    """The seats stay held; the first time the hold starts anew."""
    retry_after_ms = error.retry_after_ms if isinstance(error, NotSent) else RETRY_AFTER_MS
    # The processor would only repeat a stored answer under the same key.
    is_stored = isinstance(error, RequestRefused) or (isinstance(error, OutcomeUnknown) and error.is_stored)
    async with deps.write("pay.defer") as unit:
        booking = (await unit.bookings.lock([start.booking.id]))[0]
        now = await unit.now()
        sale = await sale_of(unit, booking)
        turn = await turn_of(unit, start)
        if turn is not None:
            number = turn.create_number + (1 if is_stored else 0)
            await unit.payments.put_intents(
                replace(turn, create_number=number, creating_until=None, creating_key=None)
            )
        if booking.status not in PAYABLE:
            await unit.commit()
            check_payable(booking, sale.is_cancelled, now)
        deferred = await _write_deferred(deps, unit, booking, sale, now, retry_after_ms)
        await unit.commit()
    return Deferred(deferred, retry_after_ms)


async def _write_deferred(
    deps: Deps, unit: WriteUnit, booking: Booking, sale: Sale, now: datetime, retry_after_ms: int
) -> Booking:
    deferred = booking.deferred(
        now,
        hold_s=deps.rules.hold_s,
        starts_at=sale.starts_at,
        retry_pay_at=now + timedelta(milliseconds=retry_after_ms),
    )
    await record(unit, [Change(booking, deferred, sale)], sale=sale)
    return deferred


async def not_charged(deps: Deps, attempt: Payment, *, retry_after_ms: int) -> Deferred:
    """The processor refused to look at it: nothing was charged, pay a little later."""
    async with deps.write("pay.not_charged") as unit:
        booking, voided = await _void(unit, attempt)
        now = await unit.now()
        sale = await sale_of(unit, booking)
        if _waits_for(attempt, booking):
            returned = showing(booking.returned(now), voided)
            await record(unit, [Change(booking, returned, sale)], sale=sale)
            booking = await _write_deferred(deps, unit, returned, sale, now, retry_after_ms)
        await unit.commit()
    if booking.status not in PAYABLE:
        check_payable(booking, sale.is_cancelled, now)
    return Deferred(booking, retry_after_ms)


async def method_refused(deps: Deps, attempt: Payment, scope: KeyScope | None, refusal: InvalidInput) -> None:
    """The method is none that can be charged: pay with another. The refusal is the key's outcome."""
    async with deps.write("pay.method_refused") as unit:
        booking, voided = await _void(unit, attempt)
        now = await unit.now()
        if _waits_for(attempt, booking):
            returned = showing(booking.returned(now), voided)
            sale = await sale_of(unit, booking)
            await record(unit, [Change(booking, returned, sale)], sale=sale)
        if scope is not None:
            await unit.idempotency.finish(scope, refusal=refusal)
        await unit.commit()


async def _void(unit: WriteUnit, attempt: Payment) -> tuple[Booking, list[Payment]]:
    """The attempt certainly charged nothing, and a booking that was cancelled meanwhile shows it."""
    booking = (await unit.bookings.lock([attempt.booking_id]))[0]
    payments = await unit.payments.of_booking(booking.id)
    current = next(payment for payment in payments if payment.id == attempt.id)
    if current.status is PaymentStatus.PROCESSING:
        now = await unit.now()
        voided = current.becoming(PaymentStatus.VOIDED, now)
        await unit.payments.save((current, voided))
        payments[payments.index(current)] = voided
        if not _waits_for(attempt, booking):
            touched = showing(booking.touched(now), payments)
            sale = await sale_of(unit, booking)
            await record(unit, [Change(booking, touched, sale)], sale=sale)
            booking = touched
    return booking, payments


def _waits_for(attempt: Payment, booking: Booking) -> bool:
    """Whether it is this attempt's end that the booking waits for, and not a later one's."""
    return booking.status is BookingStatus.PAYMENT_PENDING and booking.payment_id == attempt.id
