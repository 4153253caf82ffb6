"""One request at a time may start an attempt; one that took too long has lost its turn to another."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import update

from domain.base import BookingId, DomainError, PaymentStatus
from domain.booking import Booking, BookingStatus
from domain.payment import NotSent
from domain.use_cases.payment import ActionNeeded, Deferred, Paid, Pending
from infra.db.tables import payment_intents, payments
from tests.fake_processor import ACTION, DECLINED, OK, Failure, lost
from tests.paying import PAST, Shop

pytestmark = pytest.mark.anyio


async def pays_and_hears_nothing(shop: Shop, booking: Booking) -> None:
    """Another request takes the turn; it is charged, and its answer gets lost."""
    shop.processor.order("confirm", lost(happens=True))
    assert isinstance(await shop.pay(booking), Pending)


@pytest.mark.parametrize("is_created", [True, False])
async def test_a_payer_who_lost_their_turn_leaves_the_others_charge_findable(
    shop: Shop, is_created: bool
) -> None:
    """The intent that the other one is charged on is still known, so the reconciler finds the money."""
    booking = await shop.book(await shop.open_sale())
    if not is_created:
        shop.processor.order("create", lost(happens=False))
    assert await slow_payer_hears(shop, booking, pays_and_hears_nothing) == "PAYMENT_IN_PROGRESS"
    with pytest.raises(DomainError, match="under way"):
        await shop.pay(booking, key="slow")
    await shop.reconcile()
    assert (await shop.booking(booking.id)).status is BookingStatus.APPROVED
    assert await shop.open_intent(booking.id) is None
    assert await shop.broken() == []


async def test_a_payer_who_lost_their_turn_opens_no_closed_intent_again(shop: Shop) -> None:
    """Meanwhile theirs was cancelled and another one made: there is still one, and it can be paid."""

    async def meanwhile(shop: Shop, booking: Booking) -> None:
        shop.processor.order("confirm", lost(happens=False))
        assert isinstance(await shop.pay(booking), Pending)
        async with shop.database.writers.transaction() as statements:
            await statements.change(update(payments).values(created_at=PAST))
            await statements.commit()
        await shop.reconcile()
        with pytest.raises(DomainError, match="declined"):
            await shop.pay(booking, DECLINED)

    booking = await shop.book(await shop.open_sale())
    assert await slow_payer_hears(shop, booking, meanwhile) == "PAYMENT_IN_PROGRESS"
    assert isinstance(await shop.pay(booking, key="slow"), Paid)
    assert [payment.status for payment in await shop.payments(booking.id)] == [
        PaymentStatus.VOIDED,
        PaymentStatus.DECLINED,
        PaymentStatus.CAPTURED,
    ]
    assert len(shop.processor.of_booking(booking.id)) == 2


async def test_an_attempt_that_was_given_up_takes_nothing_from_the_next(shop: Shop) -> None:
    """Hearing late that its own was not sent, the first payer leaves the second one's PAYMENT_PENDING alone."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=1), happens=False))

    async def meanwhile(moment: str, _: BookingId) -> None:
        if moment == "confirm done":
            shop.processor.step = _no_step
            async with shop.database.writers.transaction() as statements:
                await statements.change(update(payments).values(created_at=PAST))
                await statements.commit()
            await shop.reconcile()
            shop.processor.order("confirm", lost(happens=False))
            assert isinstance(await shop.pay(booking), Pending)

    shop.processor.step = meanwhile
    with pytest.raises(DomainError, match="under way"):
        await shop.pay(booking)
    now = await shop.booking(booking.id)
    assert (now.status, now.payment_status) == (BookingStatus.PAYMENT_PENDING, PaymentStatus.UNKNOWN)


@pytest.mark.parametrize("is_bad_method", [False, True])
async def test_a_booking_cancelled_while_its_attempt_is_refused_becomes_final(
    shop: Shop, is_bad_method: bool
) -> None:
    """The processor charges nothing, and by then the buyer has cancelled: no money may move any more."""
    booking = await shop.book(await shop.open_sale())

    async def cancel(moment: str, _: BookingId) -> None:
        if moment == "confirm done":
            shop.processor.step = _no_step
            await shop.cancel(booking)

    shop.processor.step = cancel
    if not is_bad_method:
        shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=1), happens=False))
    with pytest.raises(DomainError):
        await shop.pay(booking, "pm_none" if is_bad_method else OK)
    assert await shop.broken() == []
    await shop.settle_everything()
    now = await shop.booking(booking.id)
    assert (now.status, now.payment_status, now.is_final) == (
        BookingStatus.CANCELLED,
        PaymentStatus.VOIDED,
        True,
    )
    assert await shop.broken() == []


# ---------------------------------------------------------------- taking up an authentication
@pytest.mark.parametrize("method", [ACTION, OK], ids=["resumed", "another card"])
async def test_nobody_waits_long_for_a_processor_that_is_silent(shop: Shop, method: str) -> None:
    """Whoever resumes an authentication, or uses another card, is told after one call's time to come back."""
    booking = await shop.book(await shop.open_sale())
    assert isinstance(await shop.pay(booking, ACTION), ActionNeeded)

    async def silence(moment: str, _: BookingId) -> None:
        if moment in {"retrieve", "cancel"}:
            await asyncio.Event().wait()

    shop.processor.step = silence
    async with asyncio.timeout(10):
        with pytest.raises(DomainError, match="under way"):
            await shop.pay(booking, method, key="k")
    shop.processor.step = _no_step
    assert not isinstance(await shop.pay(booking, method, key="k"), Pending)


async def test_a_key_that_was_deferred_keeps_the_payment_it_took_up(shop: Shop) -> None:
    """Its own attempt was never sent; the one that it found paid is its answer from then on."""
    booking = await shop.book(await shop.open_sale())
    shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=1), happens=False))
    assert isinstance(await shop.pay(booking, ACTION, key="k"), Deferred)
    assert isinstance(await shop.pay(booking, ACTION, key="other"), ActionNeeded)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=True)
    for _ in range(2):
        assert isinstance(await shop.pay(booking, ACTION, key="k"), Paid)


# ---------------------------------------------------------------- helpers
async def slow_payer_hears(
    shop: Shop, booking: Booking, meanwhile: Callable[[Shop, Booking], Awaitable[None]]
) -> str:
    """The code that a payer is refused with whose turn was over before they heard from the processor."""

    async def step(moment: str, _: BookingId) -> None:
        if moment == "create done":
            shop.processor.step = _no_step
            async with shop.database.writers.transaction() as statements:
                await statements.change(update(payment_intents).values(creating_until=PAST))
                await statements.commit()
            await meanwhile(shop, booking)

    shop.processor.step = step
    with pytest.raises(DomainError) as refused:
        await shop.pay(booking, key="slow")
    assert refused.value.retryable
    return refused.value.code


async def _no_step(moment: str, booking_id: BookingId) -> None:
    return None
