"""Webhooks are believed only when they are signed."""

import asyncio
import json
import time
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from domain.base import PaymentId
from infra.sandbox.server import serving
from infra.sandbox.webhooks import signature
from infra.webhooks import BadPayload, BadSignature, WebhookEvent, verify_webhook
from tests.test_payment_gateway.conftest import (
    PAYMENT,
    Shop,
)

pytestmark = pytest.mark.anyio

# ---------------------------------------------------------------- webhooks


def signed(body: bytes, *secrets: str, age_s: int = 0) -> str:
    """A header that signs the body with every secret."""
    timestamp = int(time.time()) - age_s
    parts = [signature(body, secret, timestamp=timestamp) for secret in secrets]
    return ",".join([parts[0], *(part.partition(",")[2] for part in parts[1:])])


def event(kind: str, **subject: object) -> bytes:
    """An event about `subject`."""
    return json.dumps({"id": "evt_1", "object": "event", "type": kind, "data": {"object": subject}}).encode()


@pytest.mark.parametrize(
    ("body", "intent_id", "payment_id"),
    [
        (
            event(
                "payment_intent.succeeded", id="pi_1", object="payment_intent", metadata={"payment_id": "p"}
            ),
            "pi_1",
            "p",
        ),
        (event("charge.refunded", id="ch_1", object="charge", payment_intent="pi_1"), "pi_1", None),
        (event("refund.updated", object="refund", payment_intent="pi_1", metadata={}), "pi_1", None),
        (event("charge.dispute.created", id="dp_1", object="dispute", payment_intent="pi_1"), "pi_1", None),
        (event("charge.failed", object="charge", payment_intent={"id": "pi_1"}), "pi_1", None),
        (event("charge.succeeded", object="charge", payment_intent=None, metadata=None), None, None),
        (event("customer.created", id="cus_1", object="customer", metadata={"payment_id": 5}), None, None),
        (b'{"id": "evt_1", "type": "ping"}', None, None),
    ],
)
def test_a_webhook_names_the_intent_and_the_payment(
    body: bytes, intent_id: str | None, payment_id: str | None
) -> None:
    """The intent is found in intents, charges, refunds and disputes; what is not ours has none."""
    found = verify_webhook(body, signed(body, "whsec_1"), ["whsec_1"])
    kind = json.loads(body)["type"]
    assert found == WebhookEvent(
        "evt_1",
        kind,
        intent_id,
        None if payment_id is None else PaymentId(payment_id),
        is_of_intent=kind.startswith("payment_intent."),
    )


@pytest.mark.parametrize(
    ("kind", "status", "is_failed"),
    [
        ("refund.failed", "failed", True),
        ("charge.refund.updated", "failed", True),
        ("refund.updated", "canceled", True),
        ("refund.updated", "succeeded", False),
        ("refund.created", "pending", False),
        ("refund.updated", ["failed"], False),
    ],
)
def test_a_webhook_tells_of_a_refund_that_failed(kind: str, status: object, is_failed: bool) -> None:
    """Whatever the event is called, it is the refund's own status that counts."""
    body = event(kind, object="refund", payment_intent="pi_1", status=status)
    assert verify_webhook(body, signed(body, "whsec_1"), ["whsec_1"]).is_refund_failed is is_failed
    of_an_intent = event(kind, id="pi_1", object="payment_intent", status=status)
    assert not verify_webhook(of_an_intent, signed(of_an_intent, "s"), ["s"]).is_refund_failed


def test_either_of_two_secrets_will_do() -> None:
    """While a secret is rotated both are good, on either side."""
    body = event("ping")
    for header in (signed(body, "old"), signed(body, "new"), signed(body, "other", "new")):
        assert verify_webhook(body, header, ["old", "new"]).id == "evt_1"


# Signed when the test runs: tests that are collected at different moments must have the same names, and what is signed
# minutes before it is shown is refused for its age alone.
@pytest.mark.parametrize(
    ("body", "header"),
    [
        (event("ping"), lambda: signed(event("ping"), "stolen")),
        (event("ping"), lambda: signed(event("pong"), "whsec_1")),
        (event("ping"), lambda: signed(event("ping"), "whsec_1", age_s=302)),
        (event("ping"), lambda: ""),
        (event("ping"), lambda: "t=,v1="),
        (event("ping"), lambda: "nonsense"),
        (event("ping"), lambda: f"t={int(time.time())},v1=\u00e9"),
        (b"\xff", lambda: f"t={int(time.time())},v1=00"),
    ],
    ids=range(8),
)
def test_what_nobody_signed_in_time_is_refused(body: bytes, header: Callable[[], str]) -> None:
    """Wrong secret, other body, too old, malformed: BadSignature."""
    with pytest.raises(BadSignature):
        verify_webhook(body, header(), ["whsec_1"])


def test_without_a_secret_nothing_is_believed() -> None:
    """No secrets, or an empty one, verify nothing."""
    body = event("ping")
    for secrets in ([], [""]):
        with pytest.raises(BadSignature):
            verify_webhook(body, signed(body, ""), secrets)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'{"id": "evt_1"}', b'{"id": 5, "type": "x"}', b"[" * 100_000]
)
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    """BadPayload, so that the sender is told 400 and not 500."""
    with pytest.raises(BadPayload):
        verify_webhook(body, signed(body, "whsec_1"), ["whsec_1"])


async def test_the_sandbox_signs_what_the_gateway_verifies(shop: Shop) -> None:
    """A real event over a real socket is verified with the secret that was set, and leads to the payment."""
    received: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

    async def hook(request: Request) -> Response:
        received.put_nowait((await request.body(), request.headers["stripe-signature"]))
        return Response()

    async with serving(Starlette(routes=[Route("/", hook, methods=["POST"])]), "127.0.0.1", 0) as url:
        await shop.control(webhook_url=f"{url}/", webhook_secret="whsec_shared")
        intent_id = await shop.intent()
        await shop.confirm(intent_id)
        body, header = await asyncio.wait_for(received.get(), 10)
    found = verify_webhook(body, header, ["whsec_shared"])
    assert (found.type, found.intent_id, found.payment_id) == ("payment_intent.succeeded", intent_id, PAYMENT)
