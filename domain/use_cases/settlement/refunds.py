"""Refunds: sent once, waited for, and asked for anew where they failed."""

from domain.base import PaymentId, PaymentStatus
from domain.events import RefundRequested
from domain.payment import GatewayError, OutcomeUnknown, Payment, RefundStatus, RequestRefused
from domain.ports import Deps, WriteUnit
from domain.use_cases.booking import Change, record, request_refunds, sale_of, showing


async def refund_payment(deps: Deps, event: RefundRequested) -> None:
    """Reaction: the money is on its way back, once.

    Raises: GatewayError while the processor can't say; the relay tries again. A refusal is REFUND_FAILED.
    """
    async with deps.write("refund.begin") as unit:
        payment = await _refund_pending(unit, event)
        number = 0 if payment is None else await unit.payments.next_refund_number(payment.id)
    if payment is None:
        return
    try:
        status = await deps.gateway.refund_intent(payment.intent_id, key=f"{payment.id}-refund-{number}")
    except RequestRefused:
        status = RefundStatus.FAILED
    except OutcomeUnknown as lost:
        if lost.is_stored:
            await _use_new_refund_key(deps, payment.id)
        raise
    if status is RefundStatus.PENDING:
        # The same key would only repeat this answer; under a new one it is through, or asked for anew if it failed.
        await _use_new_refund_key(deps, payment.id)
        raise GatewayError("the refund is accepted and not through yet")
    await _refund_ended(deps, event, status)


async def _use_new_refund_key(deps: Deps, payment_id: PaymentId) -> None:
    async with deps.write("refund.new_key") as unit:
        await unit.payments.raise_refund_number(payment_id)
        await unit.commit()


async def _refund_pending(unit: WriteUnit, event: RefundRequested) -> Payment | None:
    payments = await unit.payments.of_booking(event.booking_id)
    payment = next(payment for payment in payments if payment.id == event.payment_id)
    return payment if payment.status is PaymentStatus.REFUND_PENDING else None


async def _refund_ended(deps: Deps, event: RefundRequested, status: RefundStatus) -> None:
    async with deps.write("refund.end") as unit:
        booking = (await unit.bookings.lock([event.booking_id]))[0]
        payments = await unit.payments.of_booking(event.booking_id)
        payment = next(payment for payment in payments if payment.id == event.payment_id)
        if payment.status is not PaymentStatus.REFUND_PENDING:
            return
        now = await unit.now()
        is_through = status is RefundStatus.SUCCEEDED
        ended = payment.becoming(PaymentStatus.REFUNDED if is_through else PaymentStatus.REFUND_FAILED, now)
        await unit.payments.save((payment, ended))
        payments[payments.index(payment)] = ended
        touched = showing(booking.touched(now), payments)
        sale = await sale_of(unit, booking)
        await record(unit, [Change(booking, touched, sale)], sale=sale)
        await unit.commit()


async def retry_failed_refunds(deps: Deps, *, limit: int = 1_000) -> int:
    """Refunds that failed are asked for anew; how many it were."""
    async with deps.write("retry_refunds.find") as unit:
        failed = await unit.payments.failed_refunds(limit=limit)
    retried = 0
    for candidate in failed:
        async with deps.write("retry_refunds") as unit:
            booking = (await unit.bookings.lock([candidate.booking_id]))[0]
            payments = await unit.payments.of_booking(booking.id)
            payment = next(p for p in payments if p.id == candidate.id)
            if payment.status is not PaymentStatus.REFUND_FAILED:
                continue
            now = await unit.now()
            (refunding,) = await request_refunds(unit, [payment], now)
            payments[payments.index(payment)] = refunding
            await unit.payments.raise_refund_number(payment.id)
            touched = showing(booking.touched(now), payments)
            sale = await sale_of(unit, booking)
            await record(unit, [Change(booking, touched, sale)], sale=sale)
            await unit.commit()
            retried += 1
    return retried
