"""Settle what the processor says: everybody who pays for the same concert at a time shares a transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from domain.base import BookingId, ConcertId, PaymentId
from domain.booking import Booking
from domain.payment import Intent, IntentStatus, Payment
from domain.ports import Deps, IntentRecord, WriteUnit
from domain.use_cases.booking import lock_sale_of, record, sale_of
from domain.use_cases.settlement.verdicts import Case, Docket, Settled, decide
from domain.use_cases.sharing import apart


@dataclass(frozen=True, slots=True)
class _Word:
    """What the processor says of a booking's intent, and which webhook told, if one did."""

    booking_id: BookingId
    intent: Intent
    webhook_id: str | None


async def settle(
    deps: Deps, booking_id: BookingId, intent: Intent, *, concert_id: ConcertId, webhook_id: str | None = None
) -> Settled | None:
    """Booking and payment agree with what the processor says of `intent`, in one transaction.

    Returns None where the intent was never confirmed by us, or the webhook was heard before.
    Concurrency: group commit. Whatever is to be settled of the concert while a transaction of it is in flight shares
    the next one, declines too: what a word leads to is known under the booking's lock only. The booking's lock orders
    all callers; saying the same again changes nothing. Nobody is turned away.
    """
    word = _Word(booking_id, intent, webhook_id)
    return await deps.settling(f"settle {concert_id}", word, partial(_settle, deps))


async def _settle(deps: Deps, words: Sequence[_Word]) -> Sequence[Settled | Exception | None]:
    """The outcome of each; the second word about a booking comes after the first one's commit."""
    return await apart(words, names=lambda word: [word.booking_id], commit=partial(_settle_at_once, deps))


async def _settle_at_once(deps: Deps, words: Sequence[_Word]) -> Sequence[Settled | None]:
    """The outcome of each, after one commit. All are of one concert, each of another booking.

    Concurrency: the bookings' locks come first, then the sale's where a verdict may move the stock.
    """
    async with deps.write("settle") as unit:
        booking_ids = sorted(word.booking_id for word in words)
        locked = {booking.id: booking for booking in await unit.bookings.lock(booking_ids)}
        assert len(locked) == len(words), "an intent belongs to a booking"
        news = await _not_heard_before(unit, words)
        if not news:
            return [None] * len(words)
        cases = await _cases(unit, news, locked)
        settled = await _decided(unit, cases) if cases else {}
        await unit.commit()
    return [settled.get(word.booking_id) for word in words]


async def _not_heard_before(unit: WriteUnit, words: Sequence[_Word]) -> Sequence[_Word]:
    told = [word.webhook_id for word in words if word.webhook_id is not None]
    fresh = await unit.payments.add_webhooks(told) if told else set()
    return [word for word in words if word.webhook_id is None or word.webhook_id in fresh]


async def _cases(
    unit: WriteUnit, words: Sequence[_Word], locked: Mapping[BookingId, Booking]
) -> Sequence[Case]:
    """Those with an attempt of ours. An intent that came to nothing before there was one is closed."""
    payments = await unit.payments.of_bookings([word.booking_id for word in words])
    records = await _records(unit, words, payments)
    cases: list[Case] = []
    closed: list[IntentRecord] = []
    for word in words:
        known = records.get(word.booking_id)
        if known is None:
            continue
        of_booking = payments.get(word.booking_id, [])
        attempts = _on(word.intent, of_booking)
        if attempts:
            cases.append(Case(word.intent, locked[word.booking_id], of_booking, attempts[-1], known))
        elif word.intent.status is IntentStatus.CANCELED:
            closed.append(replace(known, is_closed=True))
    if closed:
        await unit.payments.put_intents(*closed)
    return cases


async def _records(
    unit: WriteUnit, words: Sequence[_Word], payments: Mapping[BookingId, Sequence[Payment]]
) -> Mapping[BookingId, IntentRecord]:
    """Our records of the intents, by their metadata or, where that is missing, by their first attempts."""
    named: dict[BookingId, PaymentId] = {}
    for word in words:
        attempts = _on(word.intent, payments.get(word.booking_id, []))
        if word.intent.payment_id is not None:
            named[word.booking_id] = word.intent.payment_id
        elif attempts:
            named[word.booking_id] = attempts[0].id
    found = await unit.payments.intents(named.values())
    return {
        booking_id: known
        for booking_id, payment_id in named.items()
        if (known := found.get(payment_id)) is not None and known.booking_id == booking_id
    }


def _on(intent: Intent, payments: Sequence[Payment]) -> Sequence[Payment]:
    return [payment for payment in payments if payment.intent_id == intent.id]


async def _decided(unit: WriteUnit, cases: Sequence[Case]) -> Mapping[BookingId, Settled]:
    """Decide one after the other, then write what follows all at once."""
    may_move_stock = any(case.may_move_stock for case in cases)
    sale = await (lock_sale_of if may_move_stock else sale_of)(unit, cases[0].booking)
    assert all(case.booking.concert_id == sale.concert_id for case in cases), "a lane is of one concert"
    late = [case.booking.user_id for case in cases if case.is_late]
    owned = await unit.bookings.live_ticket_quantities(late, sale.concert_id) if late else {}
    docket = Docket(await unit.now(), sale, Counter(owned))
    settled = {case.booking.id: decide(docket, case) for case in cases}
    if docket.payments:
        await unit.payments.save(*docket.payments)
    await unit.outbox.add(*docket.refunds)
    if docket.actions:
        await unit.payments.save_actions(docket.actions)
    if docket.changes:
        await record(unit, docket.changes, sale=sale)
    if docket.intents:
        await unit.payments.put_intents(*docket.intents)
    return settled
