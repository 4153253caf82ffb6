"""Pay a booking: create the intent, commit the attempt as sent, confirm, and say where it stands.

No transaction is open while the processor is asked. Until the attempt is committed as sent no money can move, so
any failure before is "pay a little later"; after it, an answer that is missing is UNKNOWN and never sent again.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from domain.base import (
    BookingId,
    Checker,
    FieldError,
    IdempotencyMismatch,
    InProgress,
    InvalidInput,
    NotFound,
    PaymentId,
    PaymentStatus,
)
from domain.booking import (
    Action,
    Booking,
    BookingState,
    BookingStatus,
    check_payable,
    payment_in_progress,
)
from domain.payment import (
    GatewayError,
    Intent,
    NotSent,
    OutcomeUnknown,
    Payment,
    RequestRefused,
)
from domain.ports import Deps, IntentRecord, KeyScope, WriteUnit
from domain.use_cases.booking import Change, abandon_intents, lock_visible, record, sale_of, showing
from domain.use_cases.keys import scope_of
from domain.use_cases.payment.answers import (
    ActionNeeded,
    Deferred,
    Paid,
    PayAnswer,
    Pending,
    answer_to,
    replay,
)
from domain.use_cases.payment.nothing_charged import Start, defer, method_refused, not_charged, turn_of
from domain.use_cases.settlement import Settled, mark_unknown, settle
from domain.user import Viewer

METHOD_MAX_LENGTH = 255
__all__ = ["ActionNeeded", "Deferred", "Paid", "PayAnswer", "PayBooking", "Pending", "pay_booking"]

# A creator that died is replaced this long after its time-out.
CREATE_MARGIN_S = 1.0


@dataclass(frozen=True, slots=True)
class PayBooking:
    """Collect the booking's total with a Stripe PaymentMethod."""

    booking_id: BookingId
    payment_method_id: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """An attempt waits for the buyer's authentication."""

    booking: Booking
    payment: Payment


async def pay_booking(deps: Deps, viewer: Viewer, command: PayBooking) -> PayAnswer:
    """Paid, or where the payment stands.

    Concurrency: one attempt at a time per booking; a replayed key answers where its attempt stands now.
    Raises: NotFound, InvalidInput, BookingState, PaymentDeclined, IdempotencyMismatch, InProgress, TooManyAttempts.
    """
    scope = scope_of(viewer.user.id, "payBooking", command)
    await deps.limiter.admit("pay", who=viewer.user.id)
    begun = await _begin(deps, viewer, command, scope)
    if isinstance(begun, _Unfinished):
        answer = await _take_up(deps, command, scope, begun)
        if answer is not None:
            return answer
        begun = await _begin(deps, viewer, command, scope)
        if isinstance(begun, _Unfinished):
            raise payment_in_progress(command.booking_id)
    if not isinstance(begun, Start):
        return begun
    try:
        intent_id = await _intent_of(deps, begun)
    except GatewayError as error:
        return await defer(deps, begun, error)
    sent = await _send(deps, viewer, command, scope, begun, intent_id)
    if not isinstance(sent, Payment):
        return sent
    return await _confirm(deps, begun.booking, scope, sent)


# ---------------------------------------------------------------- before anything is sent
async def _begin(
    deps: Deps, viewer: Viewer, command: PayBooking, scope: KeyScope | None
) -> Start | _Unfinished | PayAnswer:
    """Decide under the booking's lock whether this request may start an attempt."""
    async with deps.write("pay.begin") as unit:
        booking = await lock_visible(unit, viewer, command.booking_id)
        stored = None if scope is None else await unit.idempotency.find(scope)
        if scope is not None and stored is not None:
            answer = await replay(unit, scope, stored)
            if answer is not None:
                return answer
        try:
            if booking is None or booking.user_id != viewer.user.id:
                raise NotFound("booking")
            _check_method(command.payment_method_id)
            now = await unit.now()
            sale = await sale_of(unit, booking)
            check_payable(booking, sale.is_cancelled, now)
        except (NotFound, InvalidInput, BookingState) as refusal:
            if scope is not None and not refusal.retryable:
                await _keep(unit, scope, refusal=refusal)
            raise
        payments = await unit.payments.of_booking(booking.id)
        if payments and payments[-1].status is PaymentStatus.REQUIRES_ACTION:
            return _Unfinished(booking, payments[-1])
        return await _take_turn(deps, unit, booking, scope, now)


def _check_method(method: str) -> None:
    check = Checker()
    check.text(method, ("paymentMethodId",), max_length=METHOD_MAX_LENGTH)
    check.require(method == method.strip(), ("paymentMethodId",), "must not begin or end with a blank")
    check.done()


async def _take_turn(
    deps: Deps, unit: WriteUnit, booking: Booking, scope: KeyScope | None, now: datetime
) -> Start:
    """Nobody else starts an attempt of this booking until this one is sent, given up or presumed dead."""
    known = await unit.payments.open_intent(booking.id)
    key = None if scope is None else scope.key
    if known is not None and known.creating_until is not None and known.creating_until > now:
        if key is not None and key == known.creating_key:
            raise InProgress
        raise payment_in_progress(booking.id)
    if known is None:
        known = IntentRecord(
            payment_id=PaymentId(deps.randomness.new_id()),
            booking_id=booking.id,
            intent_id=None,
            create_number=0,
            charge_id=None,
            is_closed=False,
            creating_until=None,
            creating_key=None,
        )
    lease = timedelta(milliseconds=deps.rules.payment_timeout_ms) + timedelta(seconds=CREATE_MARGIN_S)
    taken = replace(known, creating_until=now + lease, creating_key=key)
    await unit.payments.put_intents(taken)
    await unit.commit()
    return Start(booking, taken)


async def _intent_of(deps: Deps, start: Start) -> str:
    """The processor's id of the booking's intent. Raises: GatewayError; no money moved whatever it is."""
    if start.record.intent_id is not None:
        return start.record.intent_id
    created = await deps.gateway.create_intent(
        start.booking.id,
        payment_id=start.record.payment_id,
        amount=start.booking.total,
        key=f"{start.record.payment_id}-create-{start.record.create_number}",
    )
    return created.id


async def _take_up(
    deps: Deps, command: PayBooking, scope: KeyScope | None, unfinished: _Unfinished
) -> PayAnswer | None:
    """The same method resumes an authentication; for another method the old intent is cancelled first.

    Returns None where a new attempt may start.
    """
    try:
        # Somebody waits for this, unlike for the reconciler's questions. Cut off, it may be asked again.
        async with asyncio.timeout(deps.rules.payment_timeout_ms / 1_000):
            if unfinished.payment.payment_method_id == command.payment_method_id:
                intent = await deps.gateway.retrieve_intent(unfinished.payment.intent_id)
            else:
                intent = await deps.gateway.cancel_intent(unfinished.payment.intent_id)
    except (GatewayError, TimeoutError):
        raise payment_in_progress(command.booking_id) from None
    settled = await _settled(deps, unfinished.booking, intent)
    if settled.payment.status in {PaymentStatus.VOIDED, PaymentStatus.DECLINED}:
        return None
    if scope is not None:
        async with deps.write("pay.take_up") as unit:
            await _keep(unit, scope, reference=settled.payment.id)
    return await answer_to(deps, settled)


# ---------------------------------------------------------------- from here on money may move
async def _send(
    deps: Deps,
    viewer: Viewer,
    command: PayBooking,
    scope: KeyScope | None,
    start: Start,
    intent_id: str,
) -> Payment | PayAnswer:
    """The attempt is committed as sent, together with PAYMENT_PENDING, before it is."""
    async with deps.write("pay.send") as unit:
        booking = (await unit.bookings.lock([start.booking.id]))[0]
        stored = None if scope is None else await unit.idempotency.claim(scope)
        if scope is not None and stored is not None:
            answer = await replay(unit, scope, stored)
            if answer is not None:
                return answer
        now = await unit.now()
        sale = await sale_of(unit, booking)
        turn = await turn_of(unit, start)
        if turn is not None:
            known = replace(turn, intent_id=intent_id, creating_until=None, creating_key=None)
            await unit.payments.put_intents(known)
        try:
            check_payable(booking, sale.is_cancelled, now)
            if turn is None:
                raise payment_in_progress(booking.id)
        except BookingState as refusal:
            if refusal.retryable:
                raise  # another request has the turn, or had it: nothing of this one is kept, its key neither
            # The intent is known now; if the booking is over, it is cancelled next.
            if booking.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}:
                await abandon_intents(unit, [booking])
            if scope is not None:
                await unit.idempotency.finish(scope, refusal=refusal)
            await unit.commit()
            raise
        payments = await unit.payments.of_booking(booking.id)
        first_id = start.record.payment_id
        is_first = all(payment.id != first_id for payment in payments)
        attempt = Payment(
            id=first_id if is_first else PaymentId(deps.randomness.new_id()),
            booking_id=booking.id,
            user_id=viewer.user.id,
            amount=booking.total,
            status=PaymentStatus.PROCESSING,
            payment_method_id=command.payment_method_id,
            intent_id=intent_id,
            decline_code=None,
            created_at=now,
            captured_at=None,
            refunded_at=None,
        )
        await unit.payments.add(attempt)
        pending = showing(booking.after(Action.SEND, now), [*payments, attempt])
        await record(unit, [Change(booking, pending, sale)], sale=sale)
        if scope is not None:
            await unit.idempotency.finish(scope, reference=attempt.id)
        await unit.commit()
    return attempt


async def _confirm(deps: Deps, booking: Booking, scope: KeyScope | None, attempt: Payment) -> PayAnswer:
    try:
        intent = await deps.gateway.confirm_intent(
            attempt.intent_id, payment_method_id=attempt.payment_method_id, key=attempt.id
        )
    except NotSent as error:
        return await not_charged(deps, attempt, retry_after_ms=error.retry_after_ms)
    except RequestRefused as error:
        if error.code == "payment_intent_unexpected_state":
            return await answer_to(deps, await mark_unknown(deps, booking.id, attempt.id))
        refusal = InvalidInput((FieldError(("paymentMethodId",), "is not one that can be charged"),))
        await method_refused(deps, attempt, scope, refusal)
        raise refusal from error
    except OutcomeUnknown:
        return await answer_to(deps, await mark_unknown(deps, booking.id, attempt.id))
    return await answer_to(deps, await _settled(deps, booking, intent))


async def _settled(deps: Deps, booking: Booking, intent: Intent) -> Settled:
    settled = await settle(deps, booking.id, intent, concert_id=booking.concert_id)
    assert settled is not None, "the attempt is on this intent"
    return settled


async def _keep(
    unit: WriteUnit,
    scope: KeyScope,
    *,
    reference: PaymentId | None = None,
    refusal: NotFound | InvalidInput | BookingState | None = None,
) -> None:
    """The attempt or the refusal is this key's outcome, in place of an attempt that came to nothing.

    Raises: IdempotencyMismatch where a parallel request of another booking had the key first.
    """
    stored = await unit.idempotency.claim(scope)
    if stored is not None and stored.arguments_hash != scope.arguments_hash:
        raise IdempotencyMismatch
    if stored is None or stored.refusal is None:
        await unit.idempotency.finish(scope, reference=reference, refusal=refusal)
        await unit.commit()
