"""Stripe's rules, and 3-D Secure."""

import httpx
import pytest

from tests.test_sandbox.conftest import Processor, error_of

pytestmark = pytest.mark.anyio

# ---------------------------------------------------------------- Stripe's rules


async def test_who_brings_no_api_key_is_refused(processor: Processor) -> None:
    """Without a key 401; Bearer and Basic both carry one."""
    url = processor.http.base_url
    async with httpx.AsyncClient(base_url=url, transport=httpx.AsyncHTTPTransport()) as stranger:
        answers = [
            await stranger.get("/v1/refunds"),
            await stranger.get("/v1/refunds", headers={"authorization": "Bearer"}),
            await stranger.get("/v1/refunds", headers={"authorization": "Basic !"}),
            await stranger.get("/v1/refunds", auth=("sk_test_1", "")),
        ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 200]


async def test_a_confirmed_card_is_charged_once(processor: Processor) -> None:
    """The intent, its charge and the ledger say the same; a second confirm is refused and charges nothing."""
    created = await processor.post(
        "payment_intents", key="k-1", amount="4200", currency="EUR", **{"metadata[payment_id]": "p-1"}
    )
    intent_id = created.json()["id"]
    assert created.json()["status"] == "requires_payment_method"
    assert created.json()["client_secret"].startswith(f"{intent_id}_secret_")
    confirmed = await processor.confirm(intent_id, "pm_card_visa", **{"expand[0]": "latest_charge"})
    charge = confirmed.json()["latest_charge"]
    assert (confirmed.json()["status"], confirmed.json()["amount_received"]) == ("succeeded", 4200)
    assert (charge["status"], charge["amount"], charge["metadata"]) == (
        "succeeded",
        4200,
        {"payment_id": "p-1"},
    )
    again = await processor.confirm(intent_id, "pm_card_visa")
    assert error_of(again) == (400, "invalid_request_error", "payment_intent_unexpected_state", None)
    assert again.json()["error"]["payment_intent"]["status"] == "succeeded"
    assert await processor.ledger() == [
        {
            "payment_intent": intent_id,
            "amount": 4200,
            "currency": "eur",
            "status": "succeeded",
            "amount_refunded": 0,
            "idempotency_key": "k-1",
            "metadata": {"payment_id": "p-1"},
        }
    ]


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ],
)
async def test_a_declined_card_leaves_the_intent_payable(
    processor: Processor, method: str, code: str, decline_code: str
) -> None:
    """402 with the intent inside, a failed charge on record, and another card succeeds on the same intent."""
    intent_id = await processor.create()
    declined = await processor.confirm(intent_id, method)
    error = declined.json()["error"]
    assert (declined.status_code, error["type"], error["code"], error["decline_code"]) == (
        402,
        "card_error",
        code,
        decline_code,
    )
    assert error["payment_intent"]["last_payment_error"]["decline_code"] == decline_code
    intent = await processor.intent(intent_id)
    charge = intent["latest_charge"]
    assert isinstance(charge, dict)
    assert (intent["status"], intent["payment_method"]) == ("requires_payment_method", None)
    assert (charge["status"], charge["paid"], charge["id"]) == ("failed", False, error["charge"])
    assert (await processor.confirm(intent_id, "pm_card_mastercard")).json()["status"] == "succeeded"
    paid = await processor.intent(intent_id)
    assert paid["last_payment_error"] is None
    assert isinstance(paid["latest_charge"], dict) and paid["latest_charge"]["id"] != charge["id"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"amount": "0"}, "parameter_invalid_integer", "amount"),
        ({"amount": "-5"}, "parameter_invalid_integer", "amount"),
        ({"amount": "1.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": ""}, "parameter_missing", "amount"),
        ({"amount": "100000000"}, "amount_too_large", "amount"),
        ({"amount": "101", "currency": "isk"}, "parameter_invalid_integer", "amount"),
        ({"amount": "101", "currency": "kwd"}, "parameter_invalid_integer", "amount"),
        ({"currency": "xxx"}, None, "currency"),
        ({"currency": ""}, "parameter_missing", "currency"),
        ({"allowed_payment_method_types[]": "ideal"}, None, "allowed_payment_method_types"),
        ({"coupon": "x"}, "parameter_unknown", "coupon"),
        ({"metadata[" + "n" * 41 + "]": "x"}, None, f"metadata[{'n' * 41}]"),
        ({"amount[0]": "1"}, None, "amount"),
    ],
)
async def test_a_bad_intent_is_refused_by_name(
    processor: Processor, fields: dict[str, str], code: str | None, param: str
) -> None:
    """400 names the parameter, nothing is created, and the key stays free for the corrected request."""
    wrong = {"amount": "4200", "currency": "eur"} | fields
    answer = await processor.post("payment_intents", key="k", **wrong)
    assert error_of(answer) == (400, "invalid_request_error", code, param)
    assert await processor.ledger() == []
    assert (await processor.post("payment_intents", key="k", amount="1", currency="eur")).status_code == 200


async def test_fixed_method_types_are_refused_by_newer_api_versions(processor: Processor) -> None:
    """`payment_method_types` went away with 2026-09-30; callers of older versions still may send it."""
    fields = {"amount": "1", "currency": "eur", "payment_method_types[0]": "card"}
    statuses = [
        (
            await processor.http.post("/v1/payment_intents", data=fields, headers={"stripe-version": version})
        ).status_code
        for version in ("2025-03-31.basil", "2026-10-28.endive")
    ]
    assert statuses == [200, 400]


async def test_unknown_things_are_refused(processor: Processor) -> None:
    """Unknown methods, intents, charges and URLs are each named, and the intent stays as it was."""
    intent_id = await processor.create()
    missing = "resource_missing"
    bad_method = await processor.confirm(intent_id, "pm_card_nonsense")
    assert error_of(bad_method) == (400, "invalid_request_error", missing, "payment_method")
    assert error_of(await processor.confirm("pi_none", "pm_card_visa"))[::2] == (404, missing)
    assert error_of(await processor.http.get("/v1/payment_intents/pi_none"))[::2] == (404, missing)
    assert error_of(await processor.post("refunds", charge="ch_none"))[::2] == (404, missing)
    assert error_of(await processor.http.get("/v1/customers"))[0] == 404
    assert error_of(await processor.http.delete(f"/v1/payment_intents/{intent_id}"))[0] == 404
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"


async def test_a_canceled_intent_never_takes_money(processor: Processor) -> None:
    """Cancelling is final; cancelling what succeeded, or again, is refused."""
    intent_id = await processor.create()
    canceled = await processor.post(f"payment_intents/{intent_id}/cancel", cancellation_reason="abandoned")
    assert (canceled.json()["status"], canceled.json()["cancellation_reason"]) == ("canceled", "abandoned")
    refused = [
        await processor.confirm(intent_id, "pm_card_visa"),
        await processor.post(f"payment_intents/{intent_id}/cancel"),
        await processor.post(f"payment_intents/{await processor.paid()}/cancel"),
    ]
    expected = (400, "invalid_request_error", "payment_intent_unexpected_state", None)
    assert [error_of(answer) for answer in refused] == [expected] * 3


async def test_refunds_never_exceed_the_charge(processor: Processor) -> None:
    """A part, then more than is left, then the rest, then nothing is left; the list is newest first."""
    intent_id = await processor.paid()
    part = await processor.post("refunds", payment_intent=intent_id, amount="1200")
    assert (part.json()["status"], part.json()["amount"]) == ("succeeded", 1200)
    too_much = await processor.post("refunds", payment_intent=intent_id, amount="3001")
    assert error_of(too_much) == (400, "invalid_request_error", "amount_too_large", "amount")
    rest = await processor.post("refunds", payment_intent=intent_id)
    assert rest.json()["amount"] == 3000
    nothing_left = await processor.post("refunds", charge=rest.json()["charge"])
    assert error_of(nothing_left)[2] == "charge_already_refunded"
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [4200]
    charge = (await processor.intent(intent_id))["latest_charge"]
    assert isinstance(charge, dict) and (charge["amount_refunded"], charge["refunded"]) == (4200, True)
    page = (await processor.http.get("/v1/refunds", params={"payment_intent": intent_id, "limit": 1})).json()
    assert ([refund["id"] for refund in page["data"]], page["has_more"]) == ([rest.json()["id"]], True)
    older = {"payment_intent": intent_id, "starting_after": rest.json()["id"]}
    assert (await processor.http.get("/v1/refunds", params=older)).json()["data"] == [part.json()]


async def test_what_was_not_charged_cannot_be_refunded(processor: Processor) -> None:
    """An unpaid intent has nothing to give back."""
    answer = await processor.post("refunds", payment_intent=await processor.create())
    assert answer.status_code == 400


async def test_a_failing_refund_moves_no_money(processor: Processor) -> None:
    """The card whose refunds fail answers `failed`, and the ledger stays."""
    intent_id = await processor.create()
    await processor.confirm(intent_id, "pm_card_refundFail")
    refund = await processor.post("refunds", payment_intent=intent_id)
    assert (refund.status_code, refund.json()["status"]) == (200, "failed")
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [0]


# ---------------------------------------------------------------- 3-D Secure


async def test_opening_the_bank_page_completes_the_payment(processor: Processor) -> None:
    """Until somebody opens the page nothing is charged; confirming again resumes the same one."""
    intent_id = await processor.create()
    back = "https://shop.example/paid?from=bank"
    first = await processor.confirm(intent_id, "pm_card_authenticationRequired", return_url=back)
    resumed = await processor.confirm(intent_id, "pm_card_authenticationRequired", return_url=back)
    action = first.json()["next_action"]["redirect_to_url"]
    assert first.json()["status"] == resumed.json()["status"] == "requires_action"
    assert resumed.json()["next_action"]["redirect_to_url"] == action
    assert action["return_url"] == back
    assert (await processor.http.head(action["url"])).status_code == 200
    assert (await processor.intent(intent_id))["status"] == "requires_action"
    page = await processor.http.get(action["url"])
    assert page.status_code == 200
    assert f"{back}&amp;payment_intent={intent_id}&amp;" in page.text
    intent = await processor.intent(intent_id)
    assert (intent["status"], intent["next_action"]) == ("succeeded", None)
    charge = intent["latest_charge"]
    assert "authenticated" in (await processor.http.get(action["url"])).text
    assert (await processor.intent(intent_id))["latest_charge"] == charge


@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_failed_authentication_declines(processor: Processor, verb: str) -> None:
    """`outcome=fail` leaves the intent payable by another card, with no charge at all."""
    intent_id = await processor.create()
    await processor.confirm(intent_id, "pm_card_threeDSecure2Required", return_url="https://shop.example")
    page = await processor.http.request(verb, f"/_3ds/{intent_id}", params={"outcome": "fail"})
    assert (page.status_code, "not authenticated" in page.text) == (200, True)
    intent = await processor.intent(intent_id)
    error = intent["last_payment_error"]
    assert isinstance(error, dict)
    assert (intent["status"], error["code"]) == (
        "requires_payment_method",
        "payment_intent_authentication_failure",
    )
    assert intent["latest_charge"] is None
    await processor.http.get(f"/_3ds/{intent_id}")
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"
    assert (await processor.confirm(intent_id, "pm_card_visa")).json()["status"] == "succeeded"


async def test_the_bank_page_of_no_payment_is_404(processor: Processor) -> None:
    """There is nothing to authenticate behind an unknown id."""
    assert (await processor.http.get("/_3ds/pi_none")).status_code == 404
