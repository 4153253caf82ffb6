"""Late money, attempts after attempts, webhooks and refunds: one story each."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from domain.base import BookingId, DomainError, PaymentId, PaymentStatus
from domain.booking import Booking, BookingStatus, Sale
from domain.payment import IntentStatus, NotSent, OutcomeUnknown, RequestRefused
from domain.use_cases.payment import ActionNeeded, Deferred, Paid, Pending
from domain.use_cases.settlement import Settled, retry_failed_refunds, settle
from infra.db.tables import payment_intents, payments, webhook_events
from infra.db.unit import Database
from tests.db_world import a_sale, run_sql
from tests.fake_processor import ACTION, DECLINED, Failure, FakeProcessor, broke, lost
from tests.paying import PAST, Shop, running_shop

pytestmark = pytest.mark.anyio

B, P, S = BookingStatus, PaymentStatus, IntentStatus


# ---------------------------------------------------------------- money that comes late
async def test_late_money_of_an_expired_booking_takes_its_seats_again(shop: Shop) -> None:
    """They are free, so it is APPROVED, and nothing goes back."""
    sale = await shop.open_sale(capacity=1)
    booking = await expired_before_its_money(shop, sale)
    settled = await capture(shop, booking)
    assert (settled.booking.status, settled.payment.status) == (B.APPROVED, P.CAPTURED)
    assert await shop.seats(sale.concert_id) == (0, 0, 1)
    await shop.settle_everything()
    assert [entry.refunds for entry in shop.processor.of_booking(booking.id)] == [0]
    assert await shop.broken() == []


async def seats_are_taken(shop: Shop, sale: Sale) -> None:
    """By somebody else."""
    await shop.book(sale, "eve")


async def limit_is_reached(shop: Shop, sale: Sale) -> None:
    """By the same person, though seats are free."""
    await run_sql(shop.database, "UPDATE sale_stock SET capacity = 9")
    await shop.book(sale, "ada")


async def concert_is_cancelled(shop: Shop, sale: Sale) -> None:
    """With all its seats free."""
    async with shop.deps.write("look") as unit:
        locked = await unit.sales.lock(sale.concert_id)
        assert locked is not None
        await unit.sales.save(locked, locked.closed())
        await unit.commit()


@pytest.mark.parametrize("meanwhile", [seats_are_taken, limit_is_reached, concert_is_cancelled])
async def test_late_money_without_its_seats_goes_back_once(
    shop: Shop, meanwhile: Callable[[Shop, Sale], Awaitable[None]]
) -> None:
    """Somebody has the seats, or the buyer has others up to the limit, or there is no concert any more."""
    sale = await shop.open_sale(capacity=1, limit=1)
    booking = await expired_before_its_money(shop, sale)
    await meanwhile(shop, sale)
    seats = await shop.seats(sale.concert_id)
    settled = await capture(shop, booking)
    assert (settled.booking.status, settled.payment.status) == (B.EXPIRED, P.REFUND_PENDING)
    assert not settled.booking.is_final
    await shop.settle_everything()
    assert await shop.seats(sale.concert_id) == seats
    await assert_refunded_once(shop, booking.id, B.EXPIRED)


async def test_money_after_a_cancellation_goes_back_once(shop: Shop) -> None:
    """The answer got lost, the buyer cancelled, and the charge turns up: one refund."""
    sale = await shop.open_sale()
    booking = await shop.book(sale)
    shop.processor.order("confirm", lost(happens=True))
    assert isinstance(await shop.pay(booking), Pending)
    cancelled = await shop.cancel(booking)
    assert (cancelled.status, cancelled.payment_status, cancelled.is_final) == (B.CANCELLED, P.UNKNOWN, False)
    assert await shop.seats(sale.concert_id) == (10, 0, 0)
    await shop.settle_everything()
    await assert_refunded_once(shop, booking.id, B.CANCELLED)


async def test_an_unknown_outcome_of_a_cancelled_booking_is_voided(shop: Shop) -> None:
    """Nothing was charged: the intent is cancelled at the processor, and nothing goes back."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", lost(happens=False))
    await shop.pay(booking)
    await shop.cancel(booking)
    await shop.settle_everything()
    (attempt,) = await shop.payments(booking.id)
    assert attempt.status is P.VOIDED
    assert (await shop.booking(booking.id)).is_final
    assert shop.processor.keys("refund") == []


@pytest.mark.parametrize("happens", [True, False])
async def test_an_unknown_outcome_is_settled_in_time(database: Database, happens: bool) -> None:
    """Charged: APPROVED at the first look. Not charged: looked at until its time is up, then cancelled and payable."""
    async with running_shop(database, FakeProcessor(), settle_after_s=3_600) as shop:
        booking = await shop.book(await shop.open_sale())
        shop.processor.order("confirm", lost(happens=happens))
        assert isinstance(await shop.pay(booking), Pending)
        await shop.reconcile()
        now = await shop.booking(booking.id)
        if happens:
            assert now.status is B.APPROVED
            return
        assert (now.status, now.payment_status) == (B.PAYMENT_PENDING, P.UNKNOWN)
        assert shop.processor.keys("cancel") == []
        await make_old(database)
        await shop.reconcile()
        now = await shop.booking(booking.id)
        assert (now.status, now.payment_status) == (B.AWAITING_PAYMENT, P.VOIDED)
        assert isinstance(await shop.pay(booking), Paid)
        assert [entry.intent.status for entry in shop.processor.of_booking(booking.id)] == [
            S.CANCELED,
            S.SUCCEEDED,
        ]
        assert await shop.broken() == []


async def test_a_look_is_due_when_the_time_of_an_unknown_outcome_is_up(shop: Shop) -> None:
    """After many looks in vain the next one would be half a minute away, and the time is up in five seconds."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", lost(happens=False))
    await shop.pay(booking)
    async with shop.database.writers.transaction() as statements:
        now = await statements.now()
        await statements.change(update(payments).values(created_at=now - timedelta(seconds=25)))
        await statements.change(update(payment_intents).values(asked=9))
        await statements.commit()
    await shop.reconcile()
    async with shop.database.writers.transaction() as statements:
        (row,) = await statements.rows(select(payment_intents.c.look_at))
    assert row.look_at - now < timedelta(seconds=6)


# ---------------------------------------------------------------- declines and attempts
async def test_an_earlier_decline_says_nothing_of_a_later_attempt(shop: Shop) -> None:
    """The second card's answer is lost: the first card's failed charge does not decline it."""
    booking = await shop.book(await shop.open_sale())
    with pytest.raises(DomainError, match="declined"):
        await shop.pay(booking, DECLINED)
    shop.processor.order("confirm", lost(happens=False))
    assert isinstance(await shop.pay(booking), Pending)
    await shop.reconcile()
    assert [payment.status for payment in await shop.payments(booking.id)] == [P.DECLINED, P.UNKNOWN]
    (entry,) = shop.processor.of_booking(booking.id)
    entry.intent = replace(entry.intent, charge_id="ch_second", decline_code="insufficient_funds")
    await shop.reconcile()
    first, second = await shop.payments(booking.id)
    assert (second.status, second.decline_code) == (P.DECLINED, "insufficient_funds")
    assert first.decline_code == "generic_decline"
    now = await shop.booking(booking.id)
    assert (now.status, now.decline_code) == (B.AWAITING_PAYMENT, "insufficient_funds")


async def test_a_failed_authentication_is_a_decline_without_a_charge(shop: Shop) -> None:
    """The booking can be paid with another card, on the same intent."""
    booking = await shop.book(await shop.open_sale())
    assert isinstance(await shop.pay(booking, ACTION), ActionNeeded)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=False)
    await shop.reconcile()
    assert (await shop.booking(booking.id)).payment_status is P.DECLINED
    assert isinstance(await shop.pay(booking), Paid)
    assert len(shop.processor.of_booking(booking.id)) == 1


async def test_what_was_never_sent_is_void_and_can_be_paid_later(shop: Shop) -> None:
    """The open breaker at confirm: deferred, and the next try is an attempt of its own on the same intent."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=700), happens=False))
    answer = await shop.pay(booking, key="k")
    assert isinstance(answer, Deferred) and answer.retry_after_ms == 700
    assert (answer.booking.status, answer.booking.payment_status) == (B.PAYMENT_DEFERRED, P.VOIDED)
    assert isinstance(await shop.pay(booking, key="k"), Paid)
    assert [payment.status for payment in await shop.payments(booking.id)] == [P.VOIDED, P.CAPTURED]
    first, second = shop.processor.keys("confirm")
    assert first != second and len(shop.processor.of_booking(booking.id)) == 1


@pytest.mark.parametrize(
    "ends", [Shop.cancel, lambda shop, booking: shop.expire(booking.id)], ids=["cancelled", "expired"]
)
async def test_a_booking_that_is_over_leaves_nothing_to_charge(
    shop: Shop, ends: Callable[[Shop, Booking], Awaitable[object]]
) -> None:
    """Its attempt was never sent and its intent lives on: the intent is cancelled with the next chores."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=1), happens=False))
    assert isinstance(await shop.pay(booking), Deferred)
    await ends(shop, booking)
    assert await shop.chores() == ["IntentAbandoned"]
    assert await shop.do_chores() == 0
    (entry,) = shop.processor.of_booking(booking.id)
    assert entry.intent.status is S.CANCELED
    assert await shop.open_intent(booking.id) is None


async def test_an_error_stored_under_the_creates_key_is_left_behind(shop: Shop) -> None:
    """A 500 at create would be repeated under its key for a day: the next try has another."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("create", broke())
    assert isinstance(await shop.pay(booking), Deferred)
    assert isinstance(await shop.pay(booking), Paid)
    first, second = shop.processor.keys("create")
    assert first != second


# ---------------------------------------------------------------- webhooks
async def test_a_webhook_is_stored_once_with_its_effect(shop: Shop) -> None:
    """Stored together: repeated it changes nothing, and one that failed to be read is heard when it is sent again."""
    booking = await shop.book(await shop.open_sale())
    await shop.pay(booking, ACTION)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=True)
    shop.processor.order("retrieve", lost(happens=True))
    with pytest.raises(OutcomeUnknown):
        await shop.hear("evt_1", entry.intent.id)
    assert await stored_webhooks(shop) == 0
    assert await shop.hear("evt_1", entry.intent.id)
    approved = await shop.booking(booking.id)
    assert approved.status is B.APPROVED and await stored_webhooks(shop) == 1
    for webhook_id in ("evt_1", "evt_1", "evt_0", "evt_2"):
        assert await shop.hear(webhook_id, entry.intent.id)
    assert await stored_webhooks(shop) == 3
    assert await shop.booking(booking.id) == approved


async def test_a_webhook_that_is_none_of_ours_is_not_asked_about(shop: Shop) -> None:
    """Another shop's intent, or an event without one."""
    intent = await shop.processor.create_intent(
        BookingId("theirs"), payment_id=PaymentId("theirs"), amount=a_sale().stock[0].price, key="k"
    )
    assert not await shop.hear("evt_1", intent.id)
    assert shop.processor.keys("retrieve") == []


async def test_a_webhook_that_overtakes_the_commit_is_harmless(shop: Shop) -> None:
    """It tells of an intent that is created and was not confirmed by us yet: nothing is settled."""
    booking = await shop.book(await shop.open_sale())
    heard = []

    async def step(moment: str, _: BookingId) -> None:
        if moment == "create done":
            (entry,) = shop.processor.of_booking(booking.id)
            heard.append(await shop.hear("evt_1", entry.intent.id))

    shop.processor.step = step
    assert isinstance(await shop.pay(booking), Paid)
    assert heard == [True] and await shop.broken() == []


@pytest.mark.parametrize("reversal", [FakeProcessor.refund_by_hand, FakeProcessor.dispute])
async def test_money_taken_back_at_the_processor_cancels_the_booking(
    shop: Shop, reversal: Callable[[FakeProcessor, str], None]
) -> None:
    """The seats are free again, the payment REFUNDED, and we ask for no refund of our own."""
    sale = await shop.open_sale()
    booking = await shop.book(sale)
    await shop.pay(booking)
    (entry,) = shop.processor.of_booking(booking.id)
    reversal(shop.processor, entry.intent.id)
    await shop.hear("evt_1", entry.intent.id)
    now = await shop.booking(booking.id)
    assert (now.status, now.payment_status, now.is_final) == (B.CANCELLED, P.REFUNDED, True)
    assert await shop.seats(sale.concert_id) == (10, 0, 0)
    await shop.settle_everything()
    assert shop.processor.keys("refund") == [] and await shop.broken() == []


# ---------------------------------------------------------------- refunds
async def test_a_refund_that_fails_is_tried_again_on_command(shop: Shop) -> None:
    """REFUND_FAILED is final until `frontrow refunds --retry`, which uses a key of its own."""
    booking = await paid_and_cancelled(shop)
    refusal = RequestRefused("the bank said no", code=None, param=None)
    shop.processor.order("refund", Failure(refusal, happens=False))
    await shop.settle_everything()
    failed = await shop.booking(booking.id)
    assert (failed.payment_status, failed.is_final) == (P.REFUND_FAILED, True)
    await shop.settle_everything()
    assert len(shop.processor.keys("refund")) == 1
    assert await retry_failed_refunds(shop.deps) == 1
    pending = await shop.booking(booking.id)
    assert (pending.payment_status, pending.is_final) == (P.REFUND_PENDING, False)
    await shop.settle_everything()
    first, second = shop.processor.keys("refund")
    assert first != second
    await assert_refunded_once(shop, booking.id, B.CANCELLED)
    assert await retry_failed_refunds(shop.deps) == 0


@pytest.mark.parametrize(
    ("failure", "is_same_key", "refunds"),
    [(broke(), False, 1), (lost(happens=True), True, 1), (lost(happens=False), True, 1)],
    ids=["a stored 500", "lost after it happened", "lost before it happened"],
)
async def test_a_refund_without_an_answer_is_asked_for_again(
    shop: Shop, failure: Failure, is_same_key: bool, refunds: int
) -> None:
    """Under the same key, unless the processor would only repeat its stored error; the money goes back once."""
    booking = await paid_and_cancelled(shop)
    shop.processor.order("refund", failure)
    assert await shop.do_chores() == 1
    assert (await shop.booking(booking.id)).payment_status is P.REFUND_PENDING
    await shop.settle_everything()
    first, second = shop.processor.keys("refund")
    assert (first == second) == is_same_key
    await assert_refunded_once(shop, booking.id, B.CANCELLED)


async def test_a_refund_that_takes_its_time_is_waited_for(shop: Shop) -> None:
    """Accepted and not through: REFUND_PENDING, and asked for again under a key that has not stored that answer."""
    booking = await paid_and_cancelled(shop)
    shop.processor.refunds_slowly = True
    assert await shop.do_chores() == 1
    assert (await shop.booking(booking.id)).payment_status is P.REFUND_PENDING
    await shop.settle_everything()
    await assert_refunded_once(shop, booking.id, B.CANCELLED)


async def test_a_refund_of_disputed_money_is_not_asked_for_for_ever(shop: Shop) -> None:
    """The bank was faster: the refund is refused, and the webhook says that the money is back."""
    booking = await paid_and_cancelled(shop)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.dispute(entry.intent.id)
    await shop.settle_everything()
    assert (await shop.booking(booking.id)).payment_status is P.REFUND_FAILED
    await shop.hear("evt_1", entry.intent.id)
    now = await shop.booking(booking.id)
    assert (now.status, now.payment_status, now.is_final) == (B.CANCELLED, P.REFUNDED, True)


# ---------------------------------------------------------------- the sweeper
async def test_one_broken_concert_keeps_no_other_concerts_seats(shop: Shop) -> None:
    """Its hold is due first and cannot be released; the sweeper says so after it has released the other one."""
    broken, sound = await shop.open_sale(), await shop.open_sale()
    stuck, due = await shop.book(broken), await shop.book(sound)
    await run_sql(shop.database, f"UPDATE sale_stock SET held = 0 WHERE concert_id = '{broken.concert_id}'")
    with pytest.raises(AssertionError, match="out of bounds"):
        await shop.expire(stuck.id, due.id)
    assert [(await shop.booking(each.id)).status for each in (stuck, due)] == [B.AWAITING_PAYMENT, B.EXPIRED]


# ---------------------------------------------------------------- helpers
async def expired_before_its_money(shop: Shop, sale: Sale) -> Booking:
    """Paid on the bank's page after the hold had passed, which nobody here has heard of yet."""
    booking = await shop.book(sale)
    assert isinstance(await shop.pay(booking, ACTION), ActionNeeded)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=True)
    assert await shop.expire(booking.id) == 1
    return booking


async def capture(shop: Shop, booking: Booking) -> Settled:
    """The processor's word about the charge is heard."""
    (entry,) = shop.processor.of_booking(booking.id)
    settled = await settle(shop.deps, booking.id, entry.intent, concert_id=booking.concert_id)
    assert settled is not None
    return settled


async def paid_and_cancelled(shop: Shop) -> Booking:
    """The refund is asked for and nobody has done it yet."""
    booking = await shop.book(await shop.open_sale())
    assert isinstance(await shop.pay(booking), Paid)
    cancelled = await shop.cancel(booking)
    assert cancelled.payment_status is P.REFUND_PENDING
    return cancelled


async def assert_refunded_once(shop: Shop, booking_id: BookingId, status: BookingStatus) -> None:
    """The booking is over, its money went back once, and both sides say so."""
    booking = await shop.booking(booking_id)
    assert (booking.status, booking.payment_status, booking.is_final) == (status, P.REFUNDED, True)
    (entry,) = shop.processor.of_booking(booking_id)
    assert entry.refunds == 1 and entry.intent.refunded_minor == entry.amount.amount_minor
    assert await shop.broken() == []


async def make_old(database: Database) -> None:
    """Every attempt was sent long ago."""
    async with database.writers.transaction() as statements:
        await statements.change(update(payments).values(created_at=PAST))
        await statements.commit()


async def stored_webhooks(shop: Shop) -> int:
    """How many events are stored."""
    async with shop.database.writers.transaction() as statements:
        (row,) = await statements.rows(select(func.count()).select_from(webhook_events))
    return int(row[0])
