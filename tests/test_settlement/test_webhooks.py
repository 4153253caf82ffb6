"""What a webhook costs: the processor is asked again only where it may still have something to tell."""

from collections.abc import Awaitable, Callable

import pytest

from domain.base import PaymentStatus
from domain.booking import Booking
from domain.payment import NotSent
from domain.use_cases.payment import Deferred
from tests.fake_processor import ACTION, Failure
from tests.paying import Shop

pytestmark = pytest.mark.anyio

P = PaymentStatus


async def refunded(shop: Shop, booking: Booking) -> None:
    """Paid, cancelled, and given back."""
    await shop.pay(booking)
    await shop.cancel(booking)


async def voided(shop: Shop, booking: Booking) -> None:
    """Cancelled while it waited for the buyer."""
    await shop.pay(booking, ACTION)
    await shop.cancel(booking)


async def never_sent(shop: Shop, booking: Booking) -> None:
    """Cancelled with an intent that was never confirmed."""
    shop.processor.order("confirm", Failure(NotSent("open", retry_after_ms=1), happens=False))
    assert isinstance(await shop.pay(booking), Deferred)
    await shop.cancel(booking)


@pytest.mark.parametrize("ends", [refunded, voided, never_sent])
async def test_of_what_is_over_the_processor_is_not_asked(
    shop: Shop, ends: Callable[[Shop, Booking], Awaitable[None]]
) -> None:
    """Ten thousand webhooks tell of the refunds of a cancelled concert: each is stored, and nothing is asked."""
    booking = await shop.book(await shop.open_sale())
    await ends(shop, booking)
    await shop.settle_everything()
    over = await shop.booking(booking.id)
    assert over.is_final
    (entry,) = shop.processor.of_booking(booking.id)
    asked = len(shop.processor.keys("retrieve"))
    for webhook_id in ("evt_1", "evt_1", "evt_2"):
        assert await shop.hear(webhook_id, entry.intent.id)
    assert len(shop.processor.keys("retrieve")) == asked
    assert await shop.booking(booking.id) == over


async def test_of_what_may_still_change_it_is_asked_each_time(shop: Shop) -> None:
    """Waiting for the buyer, captured, on its way back, failed to come back: the next webhook may bring something."""
    booking = await shop.book(await shop.open_sale())

    async def is_asked(webhook_id: str, **kind: bool) -> bool:
        (entry,) = shop.processor.of_booking(booking.id)
        before = len(shop.processor.keys("retrieve"))
        assert await shop.hear(webhook_id, entry.intent.id, **kind)
        return len(shop.processor.keys("retrieve")) == before + 1

    await shop.pay(booking, ACTION)
    assert await is_asked("evt_1", is_of_intent=True)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=True)
    assert await is_asked("evt_2", is_of_intent=True)
    assert (await shop.booking(booking.id)).payment_status is P.CAPTURED and await is_asked("evt_3")
    assert not await is_asked("evt_of_what_we_know", is_of_intent=True)
    await shop.cancel(booking)
    assert await is_asked("evt_4")
    await shop.settle_everything()
    shop.processor.fail_refund(entry.intent.id)
    assert await is_asked("evt_5", is_refund_failed=True)
    assert (await shop.booking(booking.id)).payment_status is P.REFUND_FAILED and await is_asked("evt_6")
