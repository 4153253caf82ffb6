"""Refunds that fail are seen, listed and asked for again."""

import pytest

from infra.commands import failed_refunds
from tests.story.conftest import NewWorld
from tests.story.test_metrics import measured
from tests.story.world import World, raw

pytestmark = pytest.mark.anyio


async def test_a_refund_that_comes_back_is_asked_for_again_on_command(new_world: NewWorld) -> None:
    """Called through and then sent back by the bank: REFUND_FAILED on my page, counted, listed, and retried once."""
    async with new_world(payment_timeout_ms=20_000) as world:
        ann = await world.api.new_buyer()
        booking = await ann.booked(await world.admin.register())
        await ann.pay(booking["id"])
        await ann.cancel(booking["id"])
        await ann.until_booking(booking["id"], lambda now: now["payment"]["status"] == "REFUNDED")
        (entry,) = await world.processor.captured()
        await world.processor.fail_refund(entry["payment_intent"])
        failed = await ann.until_booking(
            booking["id"], lambda now: now["payment"]["status"] == "REFUND_FAILED"
        )
        assert (failed["status"], failed["isFinal"]) == ("CANCELLED", True)
        assert failed["payment"]["refundedAt"] is None
        await world.outbox_is_empty()
        assert (await ann.my_rows())[0]["paymentStatus"] == "REFUND_FAILED"
        assert (await measured(world))["frontrow_refunds_failed"] == 1
        listed = await said_of_refunds(world, is_retry=False)
        assert len(listed) == 2 and raw(booking["id"]) in listed[0]
        await said_of_refunds(world, is_retry=True)
        again = await ann.until_booking(booking["id"], lambda now: now["payment"]["status"] == "REFUNDED")
        assert again["payment"]["refundedAt"] is not None
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == entry["amount"]
        assert await said_of_refunds(world, is_retry=False) == ["No refund has failed."]


async def said_of_refunds(world: World, *, is_retry: bool) -> list[str]:
    """What `frontrow refunds` says."""
    said: list[str] = []
    await failed_refunds(world.settings, is_retry=is_retry, say=said.append)
    return said
