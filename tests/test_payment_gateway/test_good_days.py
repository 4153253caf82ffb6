"""The port, on a good day."""

import pytest

from domain.base import Money
from domain.payment import (
    Intent,
    IntentStatus,
    RefundStatus,
    RequestRefused,
)
from tests.test_payment_gateway.conftest import AMOUNT, BOOKING, PAYMENT, RETURN_URL, Shop, error_of

pytestmark = pytest.mark.anyio

# ---------------------------------------------------------------- the port, on a good day


async def test_an_intent_is_created_confirmed_and_read(shop: Shop) -> None:
    """It moves no money until confirmed, carries the payment's id, and reading says what confirming said."""
    created = await shop.gateway.create_intent(BOOKING, payment_id=PAYMENT, amount=AMOUNT, key="k")
    assert created == Intent(
        id=created.id,
        status=IntentStatus.REQUIRES_PAYMENT_METHOD,
        payment_id=PAYMENT,
        client_secret=created.client_secret,
    )
    assert created.client_secret.startswith(f"{created.id}_secret_")
    confirmed = await shop.confirm(created.id)
    assert (confirmed.status, confirmed.payment_method_id) == (IntentStatus.SUCCEEDED, "pm_card_visa")
    assert (confirmed.charge_id or "").startswith("ch_")
    assert await shop.gateway.retrieve_intent(created.id) == confirmed
    (entry,) = (await shop.sandbox.get("/_ledger")).json()
    assert entry == {
        "payment_intent": created.id,
        "amount": 4_200,
        "currency": "eur",
        "status": "succeeded",
        "amount_refunded": 0,
        "idempotency_key": "k",
        "metadata": {"payment_id": "p-1", "booking_id": "b-1"},
    }


async def test_the_same_key_creates_and_charges_once(shop: Shop) -> None:
    """A repeated create is the same intent; a repeated confirm is the same charge."""
    first, second = await shop.intent(), await shop.intent()
    assert first == second
    assert await shop.confirm(first) == await shop.confirm(first)
    assert await shop.ledger() == [("succeeded", 0)]


async def test_a_decline_is_an_answer(shop: Shop) -> None:
    """The intent comes back payable with the bank's reason and the failed charge; another card is charged."""
    intent_id = await shop.intent()
    declined = await shop.confirm(intent_id, method="pm_card_visa_chargeDeclinedInsufficientFunds")
    assert (declined.status, declined.decline_code) == (
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        "insufficient_funds",
    )
    assert declined.charge_id is not None
    assert await shop.gateway.retrieve_intent(intent_id) == declined
    paid = await shop.confirm(intent_id, key="confirm-2")
    assert (paid.status, paid.decline_code) == (IntentStatus.SUCCEEDED, None)
    assert paid.charge_id != declined.charge_id


async def test_authentication_is_asked_for_and_resumed(shop: Shop) -> None:
    """The buyer is sent to a page; confirming again sends them to the same one; opening it pays."""
    intent_id = await shop.intent()
    asked = await shop.confirm(intent_id, method="pm_card_authenticationRequired")
    again = await shop.confirm(intent_id, method="pm_card_authenticationRequired", key="confirm-2")
    assert asked == again
    assert (asked.status, asked.charge_id) == (IntentStatus.REQUIRES_ACTION, None)
    assert asked.client_secret and asked.redirect_url
    page = await shop.sandbox.get(asked.redirect_url)
    assert RETURN_URL in page.text
    paid = await shop.gateway.retrieve_intent(intent_id)
    assert (paid.status, paid.redirect_url) == (IntentStatus.SUCCEEDED, None)


async def test_a_failed_authentication_is_a_decline_without_a_charge(shop: Shop) -> None:
    """The card was never asked, and the reason is Stripe's error code."""
    intent_id = await shop.intent()
    asked = await shop.confirm(intent_id, method="pm_card_threeDSecure2Required")
    assert asked.redirect_url is not None
    await shop.sandbox.get(asked.redirect_url, params={"outcome": "fail"})
    failed = await shop.gateway.retrieve_intent(intent_id)
    assert (failed.status, failed.charge_id) == (IntentStatus.REQUIRES_PAYMENT_METHOD, None)
    assert failed.decline_code == "payment_intent_authentication_failure"


async def test_cancelling_answers_what_is_final(shop: Shop) -> None:
    """CANCELED however often it is asked, SUCCEEDED where the money had moved before."""
    unpaid, paid = await shop.intent(), await shop.intent(key="create-2")
    await shop.confirm(paid)
    assert (await shop.gateway.cancel_intent(unpaid)).status is IntentStatus.CANCELED
    assert (await shop.gateway.cancel_intent(unpaid)).status is IntentStatus.CANCELED
    assert (await shop.gateway.cancel_intent(paid)).status is IntentStatus.SUCCEEDED


async def test_confirming_what_is_final_answers_what_it_is(shop: Shop) -> None:
    """A confirm that came too late charges nothing and reports the capture or the cancellation."""
    paid, canceled = await shop.intent(), await shop.intent(key="create-2")
    charge = (await shop.confirm(paid)).charge_id
    await shop.gateway.cancel_intent(canceled)
    late = await shop.confirm(paid, key="confirm-2")
    assert (late.status, late.charge_id) == (IntentStatus.SUCCEEDED, charge)
    assert (await shop.confirm(canceled, key="confirm-3")).status is IntentStatus.CANCELED


async def test_a_refund_gives_the_whole_amount_back_once(shop: Shop) -> None:
    """Under any key the second one moves nothing and still is SUCCEEDED; reading shows the refund."""
    intent_id = await shop.intent()
    await shop.confirm(intent_id)
    statuses = [await shop.gateway.refund_intent(intent_id, key=key) for key in ("r-1", "r-1", "r-2")]
    assert statuses == [RefundStatus.SUCCEEDED] * 3
    assert (await shop.gateway.retrieve_intent(intent_id)).refunded_minor == 4_200
    assert await shop.ledger() == [("succeeded", 4_200)]


async def test_a_failed_refund_is_reported(shop: Shop) -> None:
    """The card takes nothing back: FAILED, and nothing counts as refunded."""
    intent_id = await shop.intent()
    await shop.confirm(intent_id, method="pm_card_refundFail")
    assert await shop.gateway.refund_intent(intent_id, key="r-1") is RefundStatus.FAILED
    assert (await shop.gateway.retrieve_intent(intent_id)).refunded_minor == 0


async def test_refunds_and_disputes_from_outside_are_seen(shop: Shop) -> None:
    """What happened at the processor shows in the intent."""
    intent_id = await shop.intent()
    await shop.confirm(intent_id)
    await shop.sandbox.post(f"/_refund/{intent_id}", params={"amount": 200})
    await shop.sandbox.post(f"/_dispute/{intent_id}")
    seen = await shop.gateway.retrieve_intent(intent_id)
    assert (seen.refunded_minor, seen.is_disputed) == (200, True)


@pytest.mark.parametrize(
    ("amount", "units"),
    [(Money(1_500, "KRW"), 1_500), (Money(1_500, "ISK"), 150_000), (Money(1_500, "MGA"), 15)],
)
async def test_amounts_are_sent_in_the_unit_that_stripe_counts_in(
    shop: Shop, amount: Money, units: int
) -> None:
    """Where Stripe's unit is not ISO's minor unit, it is converted there and back."""
    intent_id = await shop.intent(amount=amount)
    await shop.confirm(intent_id)
    (entry,) = (await shop.sandbox.get("/_ledger")).json()
    assert entry["amount"] == units
    await shop.gateway.refund_intent(intent_id, key="r-1")
    assert (await shop.gateway.retrieve_intent(intent_id)).refunded_minor == amount.amount_minor


async def test_an_amount_between_two_units_is_refused(shop: Shop) -> None:
    """What Stripe cannot charge exactly is not rounded."""
    error = await error_of(shop.intent(amount=Money(1_501, "MGA")))
    assert isinstance(error, RequestRefused) and error.param == "amount"
    assert await shop.ledger() == []
