"""Everything the processor may say, against everything that may be true here."""

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import pytest

from domain.base import PaymentId, PaymentStatus
from domain.booking import HOLDING, Booking, BookingStatus
from domain.events import RefundRequested
from domain.payment import OPEN_STATUSES, Intent, IntentStatus, Payment
from domain.use_cases.settlement import Settled, settle
from infra.db.unit import Database
from tests.db_world import a_booking, a_payment, a_sale, an_intent, open_sale
from tests.paying import Shop

pytestmark = pytest.mark.anyio

B, P, S = BookingStatus, PaymentStatus, IntentStatus
OLD_CHARGE, NEW_CHARGE = "ch_old", "ch_new"

# What a booking and its latest attempt can be at once.
STATES = [
    (booking, payment)
    for booking, payments in {
        B.AWAITING_PAYMENT: {P.REQUIRES_ACTION, P.DECLINED, P.VOIDED},
        B.PAYMENT_DEFERRED: {P.DECLINED, P.VOIDED},
        B.PAYMENT_PENDING: {P.PROCESSING, P.UNKNOWN},
        B.APPROVED: {P.CAPTURED},
        B.CANCELLED: set(P) - {P.CAPTURED},
        B.EXPIRED: set(P) - {P.CAPTURED, P.PROCESSING, P.UNKNOWN},
    }.items()
    for payment in sorted(payments, key=lambda status: status.value)
]
# How a booking gets there.
WAYS = {
    B.AWAITING_PAYMENT: (B.AWAITING_PAYMENT,),
    B.PAYMENT_DEFERRED: (B.AWAITING_PAYMENT, B.PAYMENT_DEFERRED),
    B.PAYMENT_PENDING: (B.AWAITING_PAYMENT, B.PAYMENT_PENDING),
    B.APPROVED: (B.AWAITING_PAYMENT, B.PAYMENT_PENDING, B.APPROVED),
    B.CANCELLED: (B.AWAITING_PAYMENT, B.PAYMENT_PENDING, B.CANCELLED),
    B.EXPIRED: (B.AWAITING_PAYMENT, B.EXPIRED),
}
NOT_SETTLED = {P.PROCESSING, P.REQUIRES_ACTION, P.UNKNOWN}
TOTAL_MINOR = 3_500


@dataclass(frozen=True)
class Word:
    """What the processor says, and whether that is money which did not stay."""

    intent: Intent

    @property
    def is_back(self) -> bool:
        return self.intent.is_disputed or self.intent.refunded_minor == TOTAL_MINOR


def said(status: IntentStatus, **facts: object) -> Word:
    """The intent in this state; its newest charge is one that was settled before unless told otherwise."""
    intent = Intent("pi", status, PaymentId("p"), charge_id=OLD_CHARGE)
    return Word(replace(intent, **facts))  # type: ignore[arg-type]


WORDS = {
    "declined before": said(S.REQUIRES_PAYMENT_METHOD, decline_code="stolen_card"),
    "declined": said(S.REQUIRES_PAYMENT_METHOD, charge_id=NEW_CHARGE, decline_code="stolen_card"),
    "never confirmed": said(S.REQUIRES_CONFIRMATION),
    "action": said(S.REQUIRES_ACTION, client_secret="cs", redirect_url="https://bank.example"),
    "processing": said(S.PROCESSING),
    "succeeded": said(S.SUCCEEDED, charge_id=NEW_CHARGE),
    "partly refunded": said(S.SUCCEEDED, charge_id=NEW_CHARGE, refunded_minor=TOTAL_MINOR - 1),
    "refunded": said(S.SUCCEEDED, charge_id=NEW_CHARGE, refunded_minor=TOTAL_MINOR),
    "refund failed": said(S.SUCCEEDED, charge_id=NEW_CHARGE, is_refund_failed=True),
    "disputed": said(S.SUCCEEDED, charge_id=NEW_CHARGE, is_disputed=True),
    "canceled": said(S.CANCELED),
}


def verdict(
    word: Word, booking: BookingStatus, payment: PaymentStatus
) -> tuple[BookingStatus, PaymentStatus]:
    """Booking and payment as DESIGN.md wants them afterwards, with free seats."""
    back_to = B.AWAITING_PAYMENT if booking is B.PAYMENT_PENDING else booking
    intent = word.intent
    match intent.status:
        case S.SUCCEEDED:
            if payment in NOT_SETTLED | {P.DECLINED, P.VOIDED}:
                lost_to_cancel = booking is B.CANCELLED
                booking = booking if lost_to_cancel else B.APPROVED
                payment = P.REFUND_PENDING if lost_to_cancel else P.CAPTURED
            if word.is_back and payment in {P.CAPTURED, P.REFUND_PENDING, P.REFUND_FAILED}:
                return (B.CANCELLED if booking is B.APPROVED else booking), P.REFUNDED
            if intent.is_refund_failed and payment is P.REFUNDED:
                return booking, P.REFUND_FAILED
            return booking, payment
        case S.CANCELED if payment in NOT_SETTLED:
            return back_to, P.VOIDED
        case S.REQUIRES_ACTION if payment in {P.PROCESSING, P.UNKNOWN}:
            return back_to, P.REQUIRES_ACTION
        case S.REQUIRES_PAYMENT_METHOD if payment is P.REQUIRES_ACTION:
            return back_to, P.DECLINED
        case S.REQUIRES_PAYMENT_METHOD if payment in NOT_SETTLED and intent.charge_id == NEW_CHARGE:
            return back_to, P.DECLINED
    return booking, payment


async def stands(database: Database, name: str, booking: BookingStatus, payment: PaymentStatus) -> Booking:
    """A booking, its only attempt and its intent, as they are then; stock, history and outbox agree."""
    held, sold = int(booking in HOLDING), int(booking is B.APPROVED)
    sale = a_sale(name)
    line = replace(sale.stock[0], held=held, sold=sold)
    await open_sale(database, replace(sale, stock=(line,)))
    is_over = booking in {B.CANCELLED, B.EXPIRED}
    way = WAYS[booking]
    made = a_booking(
        sale,
        f"b-{name}",
        user=f"u-{name}",
        status=booking,
        hold_until=sale.starts_at - timedelta(hours=1),
        payment_id=PaymentId(f"p-{name}"),
        payment_status=payment,
        is_final=is_over and payment not in OPEN_STATUSES,
        version=len(way),
    )
    async with database.write() as unit:
        await unit.bookings.add([made])
        for version, (was, status) in enumerate(pairwise((None, *way)), start=1):
            assert status is not None
            step = replace(made, status=status, version=version)
            before = None if was is None else replace(step, status=was)
            await unit.bookings.add_events([(before, step, 1)])
            await unit.bookings.raise_my_page_versions([made.user_id])
        attempt = a_payment(made, f"p-{name}", status=payment, intent_id=f"pi-{name}")
        await unit.payments.add(attempt)
        await unit.payments.put_intents(
            an_intent(made, f"p-{name}", intent_id=f"pi-{name}", charge_id=OLD_CHARGE)
        )
        if payment is P.REFUND_PENDING:
            await unit.outbox.add(RefundRequested(made.id, attempt.id))
        await unit.commit()
    return made


@pytest.mark.parametrize("name", WORDS)
async def test_every_word_is_settled_once(shop: Shop, name: str) -> None:
    """In each state a word leads where DESIGN.md says, the stock goes along, and saying it again changes nothing."""
    word = WORDS[name]
    for number, (status, payment) in enumerate(STATES):
        story = f"{name}: {status.value}, {payment.value}"
        label = f"s{number:02}"
        old = await stands(shop.database, label, status, payment)
        intent = replace(word.intent, id=f"pi-{label}", payment_id=PaymentId(f"p-{label}"))
        chores = await shop.chores()
        settled = await settle(shop.deps, old.id, intent, concert_id=old.concert_id)
        new = await shop.booking(old.id)
        (attempt,) = await shop.payments(old.id)
        assert settled == Settled(new, attempt), story
        expected = verdict(word, status, payment)
        assert (new.status, attempt.status) == expected, story
        assert_shows(new, attempt, story)
        assert (new.version > old.version) == (expected != (status, payment)), story
        is_now_asked = payment is not P.REFUND_PENDING and status is B.CANCELLED
        is_now_asked = is_now_asked and payment not in {P.REFUNDED, P.REFUND_FAILED}
        asked = ["RefundRequested"] if word.intent.status is S.SUCCEEDED and is_now_asked else []
        assert await shop.chores() == chores + asked, story
        held, sold = int(new.status in HOLDING), int(new.status is B.APPROVED)
        assert await shop.seats(old.concert_id) == (10 - held - sold, held, sold), story
        is_closed = intent.status in {S.SUCCEEDED, S.CANCELED}
        assert (await shop.open_intent(old.id) is None) == is_closed, story
        assert await settle(shop.deps, old.id, intent, concert_id=old.concert_id) == settled, story
        assert await shop.booking(old.id) == new, story
    assert await shop.broken() == []


def assert_shows(booking: Booking, attempt: Payment, story: str) -> None:
    """The booking shows its attempt, and is final where no money may move any more."""
    assert (booking.payment_id, booking.payment_status) == (attempt.id, attempt.status), story
    assert booking.decline_code == attempt.decline_code, story
    assert (attempt.decline_code is not None) == (attempt.decline_code == "stolen_card"), story
    is_over = booking.status in {B.CANCELLED, B.EXPIRED}
    assert booking.is_final == (is_over and attempt.status not in OPEN_STATUSES), story
