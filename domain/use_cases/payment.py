"""Pay a booking: create the intent, commit the attempt as sent, confirm, and say where it stands.

No transaction is open while the processor is asked. Until the attempt is committed as sent no money can move, so
any failure before is "pay a little later"; after it, an answer that is missing is UNKNOWN and never sent again.
"""

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
    PAYABLE,
    Action,
    Booking,
    BookingState,
    BookingStatus,
    Sale,
    check_payable,
    payment_in_progress,
)
from domain.payment import (
    GatewayError,
    Intent,
    NotSent,
    OutcomeUnknown,
    Payment,
    PaymentDeclined,
    RequestRefused,
)
from domain.ports import Deps, IntentRecord, KeyScope, StoredOutcome, WriteUnit
from domain.use_cases.booking import abandon_intents, lock_visible, record, sale_of, showing
from domain.use_cases.keys import scope_of
from domain.use_cases.settlement import Settled, mark_unknown, settle
from domain.user import Viewer

METHOD_MAX_LENGTH = 255
# A creator that died is replaced this long after its time-out.
CREATE_MARGIN_S = 1.0
# When nothing better is known: come back after this.
RETRY_AFTER_MS = 1_000


@dataclass(frozen=True, slots=True)
class PayBooking:
    """Collect the booking's total with a Stripe PaymentMethod."""

    booking_id: BookingId
    payment_method_id: str
    idempotency_key: str | None = None


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


@dataclass(frozen=True, slots=True)
class _Start:
    """This request may create the intent and then confirm it."""

    booking: Booking
    record: IntentRecord


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """An attempt waits for the buyer's authentication."""

    payment: Payment


async def pay_booking(deps: Deps, viewer: Viewer, command: PayBooking) -> PayAnswer:
    """Paid, or where the payment stands.

    Concurrency: one attempt at a time per booking; a replayed key answers where its attempt stands now.
    Raises: NotFound, InvalidInput, BookingState, PaymentDeclined, IdempotencyMismatch, InProgress, TooManyAttempts.
    """
    scope = scope_of(viewer.user.id, "payBooking", command)
    check = Checker()
    method = command.payment_method_id
    check.text(method, ("paymentMethodId",), max_length=METHOD_MAX_LENGTH)
    check.require(method == method.strip(), ("paymentMethodId",), "must not begin or end with a blank")
    check.done()
    await deps.limiter.admit("pay", who=viewer.user.id)
    begun = await _begin(deps, viewer, command, scope)
    if isinstance(begun, _Unfinished):
        answer = await _take_up(deps, command, scope, begun.payment)
        if answer is not None:
            return answer
        begun = await _begin(deps, viewer, command, scope)
        if isinstance(begun, _Unfinished):
            raise payment_in_progress(command.booking_id)
    if not isinstance(begun, _Start):
        return begun
    try:
        intent_id = await _intent_of(deps, begun)
    except GatewayError as error:
        return await _defer(deps, begun, error)
    sent = await _send(deps, viewer, command, scope, begun, intent_id)
    if not isinstance(sent, Payment):
        return sent
    return await _confirm(deps, command, scope, sent)


# ---------------------------------------------------------------- before anything is sent
async def _begin(
    deps: Deps, viewer: Viewer, command: PayBooking, scope: KeyScope | None
) -> _Start | _Unfinished | PayAnswer:
    """Decide under the booking's lock whether this request may start an attempt."""
    async with deps.write() as unit:
        booking = await lock_visible(unit, viewer, command.booking_id)
        stored = None if scope is None else await unit.idempotency.find(scope)
        if scope is not None and stored is not None:
            answer = await _replay(unit, scope, stored)
            if answer is not None:
                return answer
        try:
            if booking is None or booking.user_id != viewer.user.id:
                raise NotFound("booking")
            now = await unit.now()
            sale = await sale_of(unit, booking)
            check_payable(booking, sale.is_cancelled, now)
        except (NotFound, BookingState) as refusal:
            if scope is not None and not refusal.retryable:
                await _keep_refusal(unit, scope, refusal)
            raise
        payments = await unit.payments.of_booking(booking.id)
        if payments and payments[-1].status is PaymentStatus.REQUIRES_ACTION:
            return _Unfinished(payments[-1])
        return await _take_turn(deps, unit, booking, scope, now)


async def _take_turn(
    deps: Deps, unit: WriteUnit, booking: Booking, scope: KeyScope | None, now: datetime
) -> _Start:
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
    await unit.payments.put_intent(taken)
    await unit.commit()
    return _Start(booking, taken)


async def _intent_of(deps: Deps, start: _Start) -> str:
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


async def _defer(deps: Deps, start: _Start, error: GatewayError) -> Deferred:
    """The seats stay held; the first time the hold starts anew."""
    retry_after_ms = error.retry_after_ms if isinstance(error, NotSent) else RETRY_AFTER_MS
    # The processor would only repeat a stored answer under the same key.
    is_stored = isinstance(error, RequestRefused) or (isinstance(error, OutcomeUnknown) and error.is_stored)
    async with deps.write() as unit:
        booking = (await unit.bookings.lock([start.booking.id]))[0]
        now = await unit.now()
        sale = await sale_of(unit, booking)
        number = start.record.create_number + (1 if is_stored else 0)
        await unit.payments.put_intent(
            replace(start.record, create_number=number, creating_until=None, creating_key=None)
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
    await record(unit, [(booking, deferred)], sale=sale, moved=None)
    return deferred


async def _take_up(
    deps: Deps, command: PayBooking, scope: KeyScope | None, unfinished: Payment
) -> PayAnswer | None:
    """The same method resumes an authentication; for another method the old intent is cancelled first.

    Returns None where a new attempt may start.
    """
    try:
        if unfinished.payment_method_id == command.payment_method_id:
            intent = await deps.gateway.retrieve_intent(unfinished.intent_id)
        else:
            intent = await deps.gateway.cancel_intent(unfinished.intent_id)
    except GatewayError:
        raise payment_in_progress(command.booking_id) from None
    settled = await settle(deps, command.booking_id, intent)
    assert settled is not None, "the attempt is on this intent"
    if settled.payment.status in {PaymentStatus.VOIDED, PaymentStatus.DECLINED}:
        return None
    if scope is not None:
        async with deps.write() as unit:
            if await unit.idempotency.claim(scope) is None:
                await unit.idempotency.finish(scope, reference=settled.payment.id)
                await unit.commit()
    return await _answer(deps, settled)


# ---------------------------------------------------------------- from here on money may move
async def _send(
    deps: Deps,
    viewer: Viewer,
    command: PayBooking,
    scope: KeyScope | None,
    start: _Start,
    intent_id: str,
) -> Payment | PayAnswer:
    """The attempt is committed as sent, together with PAYMENT_PENDING, before it is."""
    async with deps.write() as unit:
        booking = (await unit.bookings.lock([start.booking.id]))[0]
        stored = None if scope is None else await unit.idempotency.claim(scope)
        if scope is not None and stored is not None:
            answer = await _replay(unit, scope, stored)
            if answer is not None:
                return answer
        now = await unit.now()
        sale = await sale_of(unit, booking)
        known = replace(start.record, intent_id=intent_id, creating_until=None, creating_key=None)
        await unit.payments.put_intent(known)
        try:
            check_payable(booking, sale.is_cancelled, now)
        except BookingState as refusal:
            # The intent is known now; if the booking is over, it is cancelled next.
            if booking.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}:
                await abandon_intents(unit, [booking])
            if scope is not None and not refusal.retryable:
                await unit.idempotency.finish(scope, refusal=refusal)
            await unit.commit()
            raise
        payments = await unit.payments.of_booking(booking.id)
        is_first = all(payment.id != known.payment_id for payment in payments)
        attempt = Payment(
            id=known.payment_id if is_first else PaymentId(deps.randomness.new_id()),
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
        await record(unit, [(booking, pending)], sale=sale, moved=None)
        if scope is not None:
            await unit.idempotency.finish(scope, reference=attempt.id)
        await unit.commit()
    return attempt


async def _confirm(deps: Deps, command: PayBooking, scope: KeyScope | None, attempt: Payment) -> PayAnswer:
    try:
        intent = await deps.gateway.confirm_intent(
            attempt.intent_id, payment_method_id=attempt.payment_method_id, key=attempt.id
        )
    except NotSent as error:
        return await _not_charged(deps, attempt, retry_after_ms=error.retry_after_ms)
    except RequestRefused as error:
        if error.code == "payment_intent_unexpected_state":
            return await _answer(deps, await mark_unknown(deps, command.booking_id, attempt.id))
        refusal = InvalidInput((FieldError(("paymentMethodId",), "is not one that can be charged"),))
        await _method_refused(deps, attempt, scope, refusal)
        raise refusal from error
    except OutcomeUnknown:
        return await _answer(deps, await mark_unknown(deps, command.booking_id, attempt.id))
    return await _answer(deps, await _settled(deps, command.booking_id, intent))


async def _settled(deps: Deps, booking_id: BookingId, intent: Intent) -> Settled:
    settled = await settle(deps, booking_id, intent)
    assert settled is not None, "the attempt is on this intent"
    return settled


async def _not_charged(deps: Deps, attempt: Payment, *, retry_after_ms: int) -> Deferred:
    """The processor refused to look at it: nothing was charged, pay a little later."""
    async with deps.write() as unit:
        booking, voided = await _void(unit, attempt)
        now = await unit.now()
        sale = await sale_of(unit, booking)
        if booking.status is BookingStatus.PAYMENT_PENDING:
            returned = showing(booking.returned(now), voided)
            await record(unit, [(booking, returned)], sale=sale, moved=None)
            booking = await _write_deferred(deps, unit, returned, sale, now, retry_after_ms)
        await unit.commit()
    return Deferred(booking, retry_after_ms)


async def _method_refused(
    deps: Deps, attempt: Payment, scope: KeyScope | None, refusal: InvalidInput
) -> None:
    async with deps.write() as unit:
        booking, voided = await _void(unit, attempt)
        now = await unit.now()
        if booking.status is BookingStatus.PAYMENT_PENDING:
            returned = showing(booking.returned(now), voided)
            await record(unit, [(booking, returned)], sale=await sale_of(unit, booking), moved=None)
        if scope is not None:
            await unit.idempotency.finish(scope, refusal=refusal)
        await unit.commit()


async def _void(unit: WriteUnit, attempt: Payment) -> tuple[Booking, list[Payment]]:
    """The attempt certainly charged nothing."""
    booking = (await unit.bookings.lock([attempt.booking_id]))[0]
    payments = await unit.payments.of_booking(booking.id)
    current = next(payment for payment in payments if payment.id == attempt.id)
    if current.status is PaymentStatus.PROCESSING:
        voided = current.becoming(PaymentStatus.VOIDED, await unit.now())
        await unit.payments.save(current, voided)
        payments[payments.index(current)] = voided
    return booking, payments


# ---------------------------------------------------------------- answers
async def _answer(deps: Deps, settled: Settled) -> PayAnswer:
    async with deps.write() as unit:
        answer = await _answer_of(unit, settled)
    assert answer is not None or settled.payment.status is PaymentStatus.VOIDED
    # A void that somebody else found while this request waited: nothing was charged, try again.
    return Deferred(settled.booking, RETRY_AFTER_MS) if answer is None else answer


async def _answer_of(unit: WriteUnit, settled: Settled) -> PayAnswer | None:
    """Where the attempt stands, None where it came to nothing and may be started anew."""
    booking, payment = settled.booking, settled.payment
    if payment.status is PaymentStatus.VOIDED:
        return None
    if payment.status is PaymentStatus.DECLINED:
        raise PaymentDeclined(booking.id, payment.decline_code or "card_declined")
    if payment.status in {PaymentStatus.PROCESSING, PaymentStatus.UNKNOWN}:
        return Pending(booking)
    if payment.status is PaymentStatus.REQUIRES_ACTION:
        client_secret, redirect_url = await unit.payments.action(payment.id)
        return ActionNeeded(booking, client_secret, redirect_url)
    if booking.status is BookingStatus.EXPIRED:
        raise BookingState(booking.id, "HOLD_EXPIRED")
    return Paid(booking)


async def _replay(unit: WriteUnit, scope: KeyScope, stored: StoredOutcome) -> PayAnswer | None:
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
    return await _answer_of(unit, Settled(booking, payment))


async def _keep_refusal(unit: WriteUnit, scope: KeyScope, refusal: NotFound | BookingState) -> None:
    """The refusal is this key's outcome, unless a parallel request settled the key first."""
    stored = await unit.idempotency.claim(scope)
    if stored is None or stored.refusal is None:
        await unit.idempotency.finish(scope, refusal=refusal)
        await unit.commit()
