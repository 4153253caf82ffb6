"""What the processor says becomes what is true here: captures, declines, voids, refunds.

`settle` is the one place where money and bookings meet. Whoever hears something (the payer's own request, the
reconciler, a webhook, a retried refund) re-reads the intent and calls it; order and repetition don't matter.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime

from domain.base import BookingId, PaymentId, PaymentStatus
from domain.booking import HOLDING, Action, Booking, BookingStatus
from domain.events import IntentAbandoned
from domain.payment import Intent, IntentStatus, Payment
from domain.ports import Deps, IntentRecord, OpenIntent, WriteUnit
from domain.use_cases.booking import Change, lock_sale_of, record, request_refunds, sale_of, showing
from domain.use_cases.settlement.refunds import refund_payment, retry_failed_refunds

__all__ = [
    "Settled",
    "claim_open_intents",
    "close_intent",
    "hear_webhook",
    "look_again",
    "mark_unknown",
    "reconcile",
    "refund_payment",
    "retry_failed_refunds",
    "settle",
]

RECONCILE_LEASE_S = 15.0
# Between two looks at an open intent; the last one repeats.
LOOK_AGAIN_S = (1.0, 1.0, 2.0, 2.0, 3.0, 5.0, 10.0, 30.0)
UNSETTLED = frozenset({PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_ACTION, PaymentStatus.UNKNOWN})
# On a closed intent nothing follows on these, unless a refund fails.
OVER = frozenset({PaymentStatus.DECLINED, PaymentStatus.VOIDED, PaymentStatus.REFUNDED})
# We did not count on this money any more or not yet; the processor's word about it wins.
CAPTURABLE = UNSETTLED | {PaymentStatus.DECLINED, PaymentStatus.VOIDED}


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the booking and the intent's latest attempt stand now."""

    booking: Booking
    payment: Payment


@dataclass(slots=True)
class _Case:
    """One booking under its lock, with everything a verdict may change."""

    unit: WriteUnit
    now: datetime
    old: Booking
    new: Booking
    payments: list[Payment]
    attempt: Payment
    record: IntentRecord

    async def move_attempt(self, status: PaymentStatus, *, decline_code: str | None = None) -> None:
        """Write the attempt's new standing."""
        moved = self.attempt.becoming(status, self.now, decline_code=decline_code)
        await self.unit.payments.save((self.attempt, moved))
        self.show_attempt(moved)

    def show_attempt(self, moved: Payment) -> None:
        """The attempt as it was written."""
        self.payments[self.payments.index(self.attempt)] = moved
        self.attempt = moved


async def settle(
    deps: Deps, booking_id: BookingId, intent: Intent, *, webhook_id: str | None = None
) -> Settled | None:
    """Booking and payment agree with what the processor says of `intent`, in one transaction.

    Returns None where the intent was never confirmed by us, or the webhook was heard before.
    Concurrency: the booking's lock orders all callers; saying the same again changes nothing.
    """
    async with deps.write("settle") as unit:
        locked = await unit.bookings.lock([booking_id])
        assert locked, "an intent belongs to a booking"
        if webhook_id is not None and not await unit.payments.add_webhooks([webhook_id]):
            return None
        settled = await _settle_locked(unit, locked[0], intent)
        await unit.commit()
    return settled


async def _settle_locked(unit: WriteUnit, booking: Booking, intent: Intent) -> Settled | None:
    payments = await unit.payments.of_booking(booking.id)
    attempts = [payment for payment in payments if payment.intent_id == intent.id]
    intent_record = await _record_of(unit, booking.id, intent, attempts)
    if intent_record is None:
        return None
    if not attempts:
        if intent.status is IntentStatus.CANCELED:
            await unit.payments.put_intents(replace(intent_record, is_closed=True))
        return None
    case = _Case(unit, await unit.now(), booking, booking, payments, attempts[-1], intent_record)
    if intent.status is IntentStatus.SUCCEEDED:
        await _succeeded(case, intent)
    elif intent.status is IntentStatus.CANCELED:
        await _came_to_nothing(case, PaymentStatus.VOIDED, None)
    elif intent.status is IntentStatus.REQUIRES_ACTION:
        await _action_required(case, intent)
    elif intent.status is IntentStatus.REQUIRES_PAYMENT_METHOD and _is_declined(case, intent):
        await _came_to_nothing(case, PaymentStatus.DECLINED, intent.decline_code or "card_declined")
    is_closed = intent.status in {IntentStatus.SUCCEEDED, IntentStatus.CANCELED}
    learned = replace(case.record, is_closed=is_closed, charge_id=intent.charge_id or case.record.charge_id)
    if learned != case.record:
        await unit.payments.put_intents(learned)
    return Settled(case.new, case.attempt)


async def _record_of(
    unit: WriteUnit, booking_id: BookingId, intent: Intent, attempts: list[Payment]
) -> IntentRecord | None:
    """Our record of the intent, by its metadata or, where that is missing, by its first attempt."""
    payment_id = intent.payment_id or (attempts[0].id if attempts else None)
    if payment_id is None:
        return None
    found = await unit.payments.intent(payment_id)
    return found if found is not None and found.booking_id == booking_id else None


def _is_declined(case: _Case, intent: Intent) -> bool:
    """Whether this attempt was declined. An earlier attempt's failed charge says nothing about a later one."""
    if case.attempt.status is PaymentStatus.REQUIRES_ACTION:
        return True
    return intent.charge_id is not None and intent.charge_id != case.record.charge_id


async def _succeeded(case: _Case, intent: Intent) -> None:
    is_back = intent.is_disputed or intent.refunded_minor >= case.attempt.amount.amount_minor
    if case.attempt.status in CAPTURABLE:
        await _captured(case)
    if is_back and case.attempt.status in {
        PaymentStatus.CAPTURED,
        PaymentStatus.REFUND_PENDING,
        PaymentStatus.REFUND_FAILED,
    }:
        await _refunded(case)
    elif intent.is_refund_failed and not is_back and case.attempt.status is PaymentStatus.REFUNDED:
        await case.move_attempt(PaymentStatus.REFUND_FAILED)
        await _record_touched(case)


async def _captured(case: _Case) -> None:
    """The money is here: the booking is APPROVED in the same transaction, or the money goes back, once."""
    await case.move_attempt(PaymentStatus.CAPTURED)
    is_approvable = case.old.status in HOLDING
    sale = None
    if is_approvable or case.old.status is BookingStatus.EXPIRED:
        sale = await lock_sale_of(case.unit, case.old)
    may_sell = sale is not None and not sale.is_cancelled and sale.halted_at is None
    if sale is not None and case.old.status is BookingStatus.EXPIRED and may_sell:
        user_id = case.old.user_id
        owned = await case.unit.bookings.live_ticket_quantities([user_id], case.old.concert_id)
        is_within_limit = owned.get(user_id, 0) + case.old.ticket_quantity <= sale.max_tickets_per_user
        is_approvable = is_within_limit and sale.has_seats(case.old.quantities)
    if not is_approvable or sale is None:
        (refunding,) = await request_refunds(case.unit, [case.attempt], case.now)
        case.show_attempt(refunding)
        await _record_touched(case)
        return
    moved = (
        sale.with_sold_again(case.old.quantities)
        if case.old.status is BookingStatus.EXPIRED
        else sale.with_sold(case.old.quantities)
    )
    case.new = showing(case.old.after(Action.CAPTURE, case.now), case.payments)
    await record(case.unit, [Change(case.old, case.new, moved)], sale=sale)


async def _refunded(case: _Case) -> None:
    """The money went back. An approved booking was reversed at the processor: it is CANCELLED."""
    await case.move_attempt(PaymentStatus.REFUNDED)
    current = case.new
    if current.status is not BookingStatus.APPROVED:
        case.old, case.new = current, current
        await _record_touched(case)
        return
    sale = await lock_sale_of(case.unit, current)
    case.old, case.new = current, showing(current.after(Action.REVERSE, case.now), case.payments)
    moved = sale.with_sold_released(current.quantities)
    await record(case.unit, [Change(case.old, case.new, moved)], sale=sale)


async def _action_required(case: _Case, intent: Intent) -> None:
    if case.attempt.status not in UNSETTLED:
        return
    await case.unit.payments.save_actions({case.attempt.id: (intent.client_secret, intent.redirect_url)})
    if case.attempt.status is PaymentStatus.REQUIRES_ACTION:
        return
    await case.move_attempt(PaymentStatus.REQUIRES_ACTION)
    await _return(case)


async def _came_to_nothing(case: _Case, status: PaymentStatus, decline_code: str | None) -> None:
    """The attempt is over and nothing was charged."""
    if case.attempt.status not in UNSETTLED:
        return
    await case.move_attempt(status, decline_code=decline_code)
    await _return(case)


async def _return(case: _Case) -> None:
    """A booking that waited for this attempt can be paid again."""
    if case.old.status is BookingStatus.PAYMENT_PENDING:
        case.new = showing(case.old.returned(case.now), case.payments)
        await _record_still(case)
    else:
        await _record_touched(case)


async def _record_touched(case: _Case) -> None:
    """Only the payment's standing changed."""
    case.new = showing(case.old.touched(case.now), case.payments)
    await _record_still(case)


async def _record_still(case: _Case) -> None:
    """Record the change of a booking that moved no stock."""
    sale = await sale_of(case.unit, case.old)
    await record(case.unit, [Change(case.old, case.new, sale)], sale=sale)


# ---------------------------------------------------------------- who asks
async def mark_unknown(deps: Deps, booking_id: BookingId, payment_id: PaymentId) -> Settled:
    """The answer to a sent attempt got lost: it is UNKNOWN until the reconciler has settled it."""
    async with deps.write("mark_unknown") as unit:
        booking = (await unit.bookings.lock([booking_id]))[0]
        payments = await unit.payments.of_booking(booking_id)
        attempt = next(payment for payment in payments if payment.id == payment_id)
        if attempt.status is not PaymentStatus.PROCESSING:
            return Settled(booking, attempt)
        now = await unit.now()
        unknown = attempt.becoming(PaymentStatus.UNKNOWN, now)
        await unit.payments.save((attempt, unknown))
        payments[payments.index(attempt)] = unknown
        touched = showing(booking.touched(now), payments)
        sale = await sale_of(unit, booking)
        await record(unit, [Change(booking, touched, sale)], sale=sale)
        await unit.commit()
    return Settled(touched, unknown)


async def claim_open_intents(deps: Deps, *, limit: int) -> list[OpenIntent]:
    """Intents that are due for a look, leased to this caller."""
    async with deps.write("reconcile.claim") as unit:
        claimed = await unit.payments.claim_open_intents(lease_s=RECONCILE_LEASE_S, limit=limit)
        await unit.commit()
    return claimed


async def reconcile(deps: Deps, claimed: OpenIntent) -> None:
    """One open intent is settled as the processor sees it, or looked at again later.

    Still unconfirmed `settle_after_s` after it was sent, or not wanted any more: it is cancelled, and that answer
    is final. Raises: GatewayError; DatabaseAway, and then it may be leased still: `look_again`.
    """
    wait_s = LOOK_AGAIN_S[min(claimed.asked, len(LOOK_AGAIN_S) - 1)]
    try:
        settled = await settle(
            deps, claimed.booking_id, await deps.gateway.retrieve_intent(claimed.intent_id)
        )
        patience_s = math.inf if settled is None else await _patience_s(deps, settled)
        if patience_s <= 0:
            canceled = await deps.gateway.cancel_intent(claimed.intent_id)
            await settle(deps, claimed.booking_id, canceled)
        else:
            wait_s = min(wait_s, patience_s)
    finally:
        # After a failure too: an open intent is looked at until the processor says what became of it.
        await look_again(deps, claimed, after_s=wait_s)


async def look_again(deps: Deps, claimed: OpenIntent, *, after_s: float) -> None:
    """It is due then, and nobody's until then. May repeat: only the first word after a claim counts."""
    async with deps.write("reconcile.look_again") as unit:
        await unit.payments.look_again(claimed, after_s=after_s)
        await unit.commit()


async def _patience_s(deps: Deps, settled: Settled) -> float:
    """How much longer the intent may stay unconfirmed; for ever where a buyer may still come and pay."""
    if settled.booking.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}:
        return 0 if settled.payment.status in UNSETTLED | {PaymentStatus.DECLINED} else math.inf
    if settled.payment.status not in {PaymentStatus.PROCESSING, PaymentStatus.UNKNOWN}:
        return math.inf
    age = await deps.reads.now() - settled.payment.created_at
    return deps.rules.settle_after_s - age.total_seconds()


async def close_intent(deps: Deps, event: IntentAbandoned) -> None:
    """Reaction: the over booking's live intent is cancelled, or what was charged on it is settled.

    Raises: GatewayError; the relay tries again.
    """
    async with deps.write("close_intent") as unit:
        open_intent = await unit.payments.open_intent(event.booking_id)
    if open_intent is None or open_intent.intent_id is None:
        return
    await settle(deps, event.booking_id, await deps.gateway.cancel_intent(open_intent.intent_id))


async def hear_webhook(
    deps: Deps,
    webhook_id: str,
    *,
    payment_id: PaymentId | None,
    intent_id: str | None,
    is_refund_failed: bool = False,
) -> bool:
    """What the webhook tells of is true here too; whether it was about one of our bookings.

    The state is re-read from the processor: order, repetition and age of webhooks don't matter.
    Raises: GatewayError where it can't be read now; the processor sends the webhook again.
    """
    async with deps.write("webhook.find") as unit:
        known = await unit.payments.find_intent(payment_id=payment_id, intent_id=intent_id)
        if known is None or intent_id is None:
            return False
        if not is_refund_failed and await _is_over(unit, known):
            await unit.payments.add_webhooks([webhook_id])
            await unit.commit()
            return True
    intent = await deps.gateway.retrieve_intent(intent_id)
    intent = replace(intent, is_refund_failed=is_refund_failed)
    await settle(deps, known.booking_id, intent, webhook_id=webhook_id)
    return True


async def _is_over(unit: WriteUnit, intent: IntentRecord) -> bool:
    """Whether the processor can tell nothing more of it: cancelled, or given back.

    Thousands of webhooks tell of the refunds of a cancelled concert; asking about each would take the room of payments.
    """
    attempts = [
        p for p in await unit.payments.of_booking(intent.booking_id) if p.intent_id == intent.intent_id
    ]
    return intent.is_closed and all(attempt.status in OVER for attempt in attempts[-1:])
