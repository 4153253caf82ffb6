"""What paying may be answered with, and where an attempt stands now."""

from dataclasses import dataclass

from domain.base import IdempotencyMismatch, PaymentId, PaymentStatus
from domain.booking import Booking, BookingStatus, check_payable
from domain.payment import PaymentDeclined
from domain.ports import Deps, KeyScope, StoredOutcome, WriteUnit
from domain.use_cases.booking import sale_of
from domain.use_cases.settlement import Settled

# When nothing better is known: come back after this.
RETRY_AFTER_MS = 1_000


@dataclass(frozen=True, slots=True)
class Paid:
    """The money is here and the booking APPROVED."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class Deferred:
    """Nothing was sent: the seats stay held, come back a little later."""

    booking: Booking
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Pending:
    """It was sent and is being settled: watch the booking."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class ActionNeeded:
    """The buyer must authenticate on the page, e.g. 3-D Secure."""

    booking: Booking
    client_secret: str
    redirect_url: str | None


PayAnswer = Paid | Deferred | Pending | ActionNeeded


async def answer_to(deps: Deps, settled: Settled) -> PayAnswer:
    """What the payer is told. Raises: PaymentDeclined, BookingState."""
    async with deps.write("pay.answer") as unit:
        answer = await answer_of(unit, settled)
        if answer is not None:
            return answer
        # A void that somebody else found while this request waited: nothing was charged, try again.
        await check_not_over(unit, settled.booking)
    return Deferred(settled.booking, RETRY_AFTER_MS)


async def check_not_over(unit: WriteUnit, booking: Booking) -> None:
    """Raises: BookingState where the booking is over, as a payer who comes now would hear it."""
    if booking.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}:
        check_payable(booking, (await sale_of(unit, booking)).is_cancelled, await unit.now())


async def answer_of(unit: WriteUnit, settled: Settled) -> PayAnswer | None:
    """Where the attempt stands, None where it came to nothing and may be started anew.

    Raises: PaymentDeclined, BookingState where the booking is over and was not paid in time.
    """
    booking, payment = settled.booking, settled.payment
    if payment.status is PaymentStatus.VOIDED:
        return None
    if payment.status is PaymentStatus.DECLINED:
        raise PaymentDeclined(booking.id, payment.decline_code or "card_declined")
    if payment.status in {PaymentStatus.PROCESSING, PaymentStatus.UNKNOWN}:
        return Pending(booking)
    if payment.status is PaymentStatus.REQUIRES_ACTION:
        # Nobody is sent to authenticate what would be given back.
        await check_not_over(unit, booking)
        client_secret, redirect_url = await unit.payments.action(payment.id)
        return ActionNeeded(booking, client_secret, redirect_url)
    if not await unit.bookings.was_approved(booking.id):
        # The money came too late and goes back: whoever cancelled was first, or the hold had passed.
        await check_not_over(unit, booking)
    return Paid(booking)


async def replay(unit: WriteUnit, scope: KeyScope, stored: StoredOutcome) -> PayAnswer | None:
    """What the key led to before, as it stands now; None where that came to nothing."""
    if stored.arguments_hash != scope.arguments_hash:
        raise IdempotencyMismatch
    if stored.refusal is not None:
        raise stored.refusal
    payment_id = PaymentId(stored.reference or "")
    known = await unit.payments.get(payment_id)
    assert known is not None, "a stored outcome names an attempt that exists"
    booking = (await unit.bookings.lock([known.booking_id]))[0]
    payment = await unit.payments.get(payment_id)
    assert payment is not None, "attempts are never deleted"
    return await answer_of(unit, Settled(booking, payment))
