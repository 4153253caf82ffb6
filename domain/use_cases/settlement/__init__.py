"""What the processor says becomes what is true here: captures, declines, voids, refunds.

`settle` is the one place where money and bookings meet. Whoever hears something (the payer's own request, the
reconciler, a webhook, a retried refund) re-reads the intent and calls it; order and repetition don't matter.
What is to be settled of one concert at a time shares a transaction, so that a hot concert's sale is locked once for
all who pay. `settling` reads and writes, `verdicts` decides.
"""

import math
from dataclasses import replace

from domain.base import BookingId, ConcertId, PaymentId, PaymentStatus
from domain.booking import BookingStatus
from domain.events import IntentAbandoned
from domain.ports import Deps, IntentRecord, OpenIntent, WriteUnit
from domain.use_cases.booking import Change, record, sale_of, showing
from domain.use_cases.settlement.refunds import refund_payment, retry_failed_refunds
from domain.use_cases.settlement.settling import settle
from domain.use_cases.settlement.verdicts import UNSETTLED, Settled

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
# On a closed intent nothing follows on these, unless a refund fails; of itself the intent tells no more of a capture.
OVER = frozenset({PaymentStatus.DECLINED, PaymentStatus.VOIDED, PaymentStatus.REFUNDED})


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
        concert_id = (await deps.reads.booked_concerts([claimed.booking_id]))[claimed.booking_id]
        said = await deps.gateway.retrieve_intent(claimed.intent_id)
        settled = await settle(deps, claimed.booking_id, said, concert_id=concert_id)
        patience_s = math.inf if settled is None else await _patience_s(deps, settled)
        if patience_s <= 0:
            canceled = await deps.gateway.cancel_intent(claimed.intent_id)
            await settle(deps, claimed.booking_id, canceled, concert_id=concert_id)
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
        concert_id = await _concert_of(unit, event.booking_id)
    canceled = await deps.gateway.cancel_intent(open_intent.intent_id)
    await settle(deps, event.booking_id, canceled, concert_id=concert_id)


async def hear_webhook(
    deps: Deps,
    webhook_id: str,
    *,
    payment_id: PaymentId | None,
    intent_id: str | None,
    is_of_intent: bool = False,
    is_refund_failed: bool = False,
) -> bool:
    """What the webhook tells of is true here too; whether it was about one of our bookings.

    It tells of the intent itself where `is_of_intent`, else of a charge, a refund or a dispute.
    The state is re-read from the processor: order, repetition and age of webhooks don't matter.
    Raises: GatewayError where it can't be read now; the processor sends the webhook again.
    """
    async with deps.write("webhook.find") as unit:
        known = await unit.payments.find_intent(payment_id=payment_id, intent_id=intent_id)
        if known is None or intent_id is None:
            return False
        if not is_refund_failed and await _is_over(unit, known, is_of_intent=is_of_intent):
            await unit.payments.add_webhooks([webhook_id])
            await unit.commit()
            return True
        concert_id = await _concert_of(unit, known.booking_id)
    intent = await deps.gateway.retrieve_intent(intent_id)
    intent = replace(intent, is_refund_failed=is_refund_failed)
    await settle(deps, known.booking_id, intent, concert_id=concert_id, webhook_id=webhook_id)
    return True


async def _concert_of(unit: WriteUnit, booking_id: BookingId) -> ConcertId:
    """The booking's concert, read without a lock: it never changes."""
    (booking,) = await unit.bookings.get([booking_id])
    return booking.concert_id


async def _is_over(unit: WriteUnit, intent: IntentRecord, *, is_of_intent: bool) -> bool:
    """Whether the processor can tell nothing more of it: captured as we know, cancelled, or given back.

    A webhook follows on every payment that was answered, and thousands tell of the refunds of a cancelled concert;
    asking about each would take the room of payments.
    """
    over = OVER | {PaymentStatus.CAPTURED} if is_of_intent else OVER
    attempts = [
        p for p in await unit.payments.of_booking(intent.booking_id) if p.intent_id == intent.intent_id
    ]
    return intent.is_closed and all(attempt.status in over for attempt in attempts[-1:])
