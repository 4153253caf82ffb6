"""The real Stripe gateway against the real sandbox, and what each error means for the money."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import stripe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from domain.base import BookingId, Money, PaymentId
from domain.payment import (
    GatewayError,
    Intent,
    IntentStatus,
    NotSent,
    OutcomeUnknown,
    RefundStatus,
    RequestRefused,
)
from infra.breaker import Breaker, BreakerGateway
from infra.payment_gateway import BadPayload, BadSignature, StripeGateway, WebhookEvent, verify_webhook
from infra.sandbox import running_sandbox
from infra.sandbox.server import serving
from infra.sandbox.webhooks import signature

pytestmark = pytest.mark.anyio

BOOKING = BookingId("b-1")
PAYMENT = PaymentId("p-1")
AMOUNT = Money(4_200, "EUR")
RETURN_URL = "https://shop.example/paid"


@dataclass
class Shop:
    """A gateway and the sandbox it talks to; `sandbox` reaches the controls, the ledger and the bank's page."""

    gateway: StripeGateway
    sandbox: httpx.AsyncClient

    async def intent(self, *, amount: Money = AMOUNT, key: str = "create-1") -> str:
        created = await self.gateway.create_intent(BOOKING, payment_id=PAYMENT, amount=amount, key=key)
        return created.id

    async def confirm(
        self, intent_id: str, *, method: str = "pm_card_visa", key: str = "confirm-1"
    ) -> Intent:
        return await self.gateway.confirm_intent(intent_id, payment_method_id=method, key=key)

    async def control(self, **wishes: object) -> None:
        answer = await self.sandbox.post("/_control", json=wishes)
        assert answer.status_code == 200, answer.text

    async def ledger(self) -> list[tuple[str, int]]:
        """Status and refunded amount of every intent."""
        entries = (await self.sandbox.get("/_ledger")).json()
        return [(entry["status"], entry["amount_refunded"]) for entry in entries]


@asynccontextmanager
async def shop_at(url: str, *, payment_timeout_ms: int = 10_000) -> AsyncIterator[Shop]:
    """A gateway to `url`, with more patience than a loaded test machine uses up."""
    gateway = StripeGateway(
        "sk_test_secret", api_base=url, return_url=RETURN_URL, payment_timeout_ms=payment_timeout_ms
    )
    async with httpx.AsyncClient(base_url=url, trust_env=False) as sandbox:
        try:
            yield Shop(gateway, sandbox)
        finally:
            await gateway.aclose()


@pytest.fixture
async def shop(anyio_backend: str) -> AsyncIterator[Shop]:
    """A shop with a fresh sandbox."""
    async with running_sandbox("127.0.0.1", 0) as url, shop_at(url) as shop:
        yield shop


@asynccontextmanager
async def running_shops(*, payment_timeout_ms: int) -> AsyncIterator[tuple[Shop, Shop]]:
    """A patient shop and a hasty one at the same fresh sandbox."""
    async with (
        running_sandbox("127.0.0.1", 0) as url,
        shop_at(url) as patient,
        shop_at(url, payment_timeout_ms=payment_timeout_ms) as hasty,
    ):
        yield patient, hasty


async def error_of(call: Awaitable[object]) -> GatewayError:
    """The gateway error that the call ends with."""
    with pytest.raises(GatewayError) as raised:
        await call
    return raised.value


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


# ---------------------------------------------------------------- the port, on bad days


async def test_a_bad_method_is_refused_and_charges_nothing(shop: Shop) -> None:
    """RequestRefused names the parameter."""
    error = await error_of(shop.confirm(await shop.intent(), method="pm_card_nonsense"))
    assert isinstance(error, RequestRefused)
    assert (error.code, error.param) == ("resource_missing", "payment_method")
    assert await shop.ledger() == [("requires_payment_method", 0)]


async def test_refunding_what_was_not_charged_is_refused(shop: Shop) -> None:
    """There is nothing to give back, and an unknown intent is refused too."""
    assert isinstance(
        await error_of(shop.gateway.refund_intent(await shop.intent(), key="r")), RequestRefused
    )
    assert isinstance(await error_of(shop.gateway.retrieve_intent("pi_none")), RequestRefused)


async def test_a_key_for_other_arguments_is_refused(shop: Shop) -> None:
    """Stripe's idempotency_error charges nothing."""
    await shop.intent(key="k")
    assert isinstance(await error_of(shop.intent(amount=Money(1, "EUR"), key="k")), RequestRefused)


async def test_nobody_listening_is_nothing_sent() -> None:
    """A refused connection carried no byte of the request."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with shop_at(url) as shop:
        assert isinstance(await error_of(shop.confirm("pi_1")), NotSent)
        assert isinstance(await error_of(shop.gateway.cancel_intent("pi_1")), NotSent)


async def test_a_connection_that_is_never_accepted_is_nothing_sent() -> None:
    """While TLS is not even agreed on, a time-out says that nothing was sent."""
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with (
        server,
        shop_at(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", payment_timeout_ms=1_000) as shop,
    ):
        assert isinstance(await error_of(shop.confirm("pi_1")), NotSent)
        assert connected.is_set()


async def test_a_closed_connection_is_an_unknown_outcome(shop: Shop) -> None:
    """In mode `down` the request went out and no answer came back."""
    intent_id = await shop.intent()
    await shop.control(mode="down")
    for call in (shop.confirm(intent_id), shop.gateway.retrieve_intent(intent_id)):
        error = await error_of(call)
        assert isinstance(error, OutcomeUnknown) and not error.is_stored
    await shop.control(mode="ok")
    assert (await shop.gateway.retrieve_intent(intent_id)).status is IntentStatus.REQUIRES_PAYMENT_METHOD


async def test_a_hanging_processor_is_an_unknown_outcome_in_time() -> None:
    """Create and confirm give up after their 610 ms, and nothing was charged."""
    async with running_shops(payment_timeout_ms=610) as (shop, hasty):
        intent_id = await shop.intent()
        await shop.control(mode="hang")
        for call in (hasty.confirm(intent_id), hasty.intent(key="create-2")):
            began = time.monotonic()
            error = await error_of(call)
            assert isinstance(error, OutcomeUnknown) and not error.is_stored
            assert 0.6 <= time.monotonic() - began < 3
        assert await shop.ledger() == [("requires_payment_method", 0)]


async def test_a_charge_whose_answer_got_lost_is_found_by_reading() -> None:
    """In mode `charge_then_hang` confirm is unknown, reading says captured, and cancelling says so too."""
    async with running_shops(payment_timeout_ms=300) as (shop, hasty):
        intent_id = await shop.intent()
        await shop.control(mode="charge_then_hang")
        assert isinstance(await error_of(hasty.confirm(intent_id)), OutcomeUnknown)
        assert (await shop.gateway.retrieve_intent(intent_id)).status is IntentStatus.SUCCEEDED
        assert (await shop.gateway.cancel_intent(intent_id)).status is IntentStatus.SUCCEEDED
        assert await shop.ledger() == [("succeeded", 0)]


async def test_a_500_is_unknown_and_stored(shop: Shop) -> None:
    """The key repeats it after recovery; another one goes through."""
    await shop.control(fail_rate=1)
    first = await error_of(shop.intent(key="k"))
    await shop.control(fail_rate=0)
    second = await error_of(shop.intent(key="k"))
    assert [isinstance(error, OutcomeUnknown) and error.is_stored for error in (first, second)] == [
        True,
        True,
    ]
    await shop.intent(key="l")


async def test_a_key_still_in_use_is_an_unknown_outcome(shop: Shop) -> None:
    """409 says that somebody else's request under this key is on its way."""
    intent_id = await shop.intent()
    await shop.control(latency_ms=[400, 400])
    outcomes = await asyncio.gather(*(shop.confirm(intent_id) for _ in range(2)), return_exceptions=True)
    (lost,) = (outcome for outcome in outcomes if isinstance(outcome, OutcomeUnknown))
    (paid,) = (outcome for outcome in outcomes if isinstance(outcome, Intent))
    assert (lost.is_stored, paid.status) == (False, IntentStatus.SUCCEEDED)


@asynccontextmanager
async def shop_with(answer: Callable[[Request], Response]) -> AsyncIterator[Shop]:
    """A processor that answers everything the same way."""

    async def endpoint(request: Request) -> Response:
        return answer(request)

    app = Starlette(routes=[Route("/{rest:path}", endpoint, methods=["GET", "POST"])])
    async with serving(app, "127.0.0.1", 0) as url, shop_at(url) as shop:
        yield shop


def stripe_error(status: int, **headers: str) -> Response:
    """An error in Stripe's shape."""
    body = json.dumps({"error": {"type": "invalid_request_error", "message": "no"}})
    return Response(body, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("status", "header", "retry_after_ms"),
    [(401, "", 1_000), (403, "", 1_000), (429, "7", 7_000), (429, "soon", 1_000), (429, "9999999", 60_000)],
)
async def test_a_processor_that_will_not_look_sent_nothing(
    status: int, header: str, retry_after_ms: int
) -> None:
    """401, 403 and 429 charged nothing; Retry-After is heeded up to a minute."""
    async with shop_with(lambda _: stripe_error(status, retry_after=header)) as shop:
        error = await error_of(shop.confirm("pi_1"))
    assert isinstance(error, NotSent) and error.retry_after_ms == retry_after_ms


async def test_a_proxy_that_refuses_in_its_own_words_sent_nothing() -> None:
    """429 means the same without Stripe's shape around it."""
    async with shop_with(lambda _: Response('{"error": "slow down"}', 429)) as shop:
        assert isinstance(await error_of(shop.confirm("pi_1")), NotSent)


@pytest.mark.parametrize(
    ("answer", "is_stored"),
    [
        (stripe_error(409), False),
        (stripe_error(500), True),
        (stripe_error(503), True),
        (Response("<html>bad gateway</html>", 502), True),
        (Response("<html>hello</html>", 200), False),
        (Response(b"\xff\xfe", 200), False),
        (Response("", 302, headers={"location": "/elsewhere"}), False),
        (Response('{"id": "pi_1", "object": "payment_intent"}', 200), False),
        (Response("{}", 200), False),
        (Response("[]", 200), False),
        (Response('{"error": "upstream timeout"}', 504), True),
    ],
)
async def test_an_answer_that_says_nothing_is_an_unknown_outcome(answer: Response, is_stored: bool) -> None:
    """Conflicts, server errors and nonsense leave open what became of the money."""
    async with shop_with(lambda _: answer) as shop:
        error = await error_of(shop.confirm("pi_1"))
    assert isinstance(error, OutcomeUnknown) and error.is_stored is is_stored


async def test_a_refused_confirm_that_cannot_be_read_is_an_unknown_outcome() -> None:
    """The intent was final already and reading it fails: nobody knows in which way."""

    def answer(request: Request) -> Response:
        if request.method == "GET":
            return stripe_error(429)
        body = {"error": {"type": "invalid_request_error", "code": "payment_intent_unexpected_state"}}
        return Response(json.dumps(body), 400)

    async with shop_with(answer) as shop:
        assert isinstance(await error_of(shop.confirm("pi_1")), OutcomeUnknown)
        assert isinstance(await error_of(shop.gateway.cancel_intent("pi_1")), NotSent)


async def test_a_cancelled_call_stays_cancelled(shop: Shop) -> None:
    """Whoever gives up hears CancelledError, not a verdict on the payment."""
    intent_id = await shop.intent()
    await shop.control(mode="hang")
    call = asyncio.create_task(shop.confirm(intent_id))
    # The ledger answers on the same loop, after the confirm has been sent.
    await shop.ledger()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_the_breaker_opens_on_a_hanging_processor_and_closes_after_it() -> None:
    """Five time-outs open it, the refusals that follow are instant, reading goes on, a decline closes it."""
    now = 0.0
    breaker = Breaker(clock=lambda: now)
    async with running_shops(payment_timeout_ms=200) as (shop, hasty):
        intent_id = await shop.intent()
        await shop.control(mode="hang")

        def confirm(gateway: StripeGateway, key: str) -> Awaitable[Intent]:
            declining = "pm_card_visa_chargeDeclined"
            return BreakerGateway(gateway, breaker).confirm_intent(
                intent_id, payment_method_id=declining, key=key
            )

        calls = [confirm(hasty.gateway, f"lost-{n}") for n in range(5)]
        lost = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in lost] == [OutcomeUnknown] * 5
        began = time.monotonic()
        for n in range(100):
            assert isinstance(await error_of(confirm(hasty.gateway, f"refused-{n}")), NotSent)
        # Each would take 200 ms if it were sent.
        assert time.monotonic() - began < 2
        seen = await BreakerGateway(hasty.gateway, breaker).retrieve_intent(intent_id)
        assert seen.status is IntentStatus.REQUIRES_PAYMENT_METHOD
        await shop.control(mode="ok")
        now += 5
        assert (await confirm(shop.gateway, "trial")).decline_code == "generic_decline"
        assert breaker.state == "closed"


async def test_the_library_reports_and_logs_nothing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """No telemetry leaves, and neither the key nor a client secret reaches the log."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def answer(request: Request) -> Response:
        seen.extend(f"{name}: {value}".lower() for name, value in request.headers.items())
        return stripe_error(500)

    async with shop_with(answer) as recorded:
        for _ in range(2):
            await error_of(recorded.confirm("pi_1"))
    assert not [line for line in seen if "telemetry" in line or '"platform"' in line]
    created = await shop.gateway.retrieve_intent(await shop.intent())
    assert created.client_secret not in caplog.text
    assert "sk_test_secret" not in caplog.text
    assert stripe.enable_telemetry is False


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
        (
            event("refund.failed", id="re_1", object="refund", payment_intent="pi_1", metadata={}),
            "pi_1",
            None,
        ),
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
    assert found == WebhookEvent(
        "evt_1", json.loads(body)["type"], intent_id, None if payment_id is None else PaymentId(payment_id)
    )


def test_either_of_two_secrets_will_do() -> None:
    """While a secret is rotated both are good, on either side."""
    body = event("ping")
    for header in (signed(body, "old"), signed(body, "new"), signed(body, "other", "new")):
        assert verify_webhook(body, header, ["old", "new"]).id == "evt_1"


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (event("ping"), signed(event("ping"), "stolen")),
        (event("ping"), signed(event("pong"), "whsec_1")),
        (event("ping"), signed(event("ping"), "whsec_1", age_s=310)),
        (event("ping"), ""),
        (event("ping"), "t=,v1="),
        (event("ping"), "nonsense"),
        (event("ping"), f"t={int(time.time())},v1=\u00e9"),
        (b"\xff", f"t={int(time.time())},v1=00"),
    ],
)
def test_what_nobody_signed_in_time_is_refused(body: bytes, header: str) -> None:
    """Wrong secret, other body, too old, malformed: BadSignature."""
    with pytest.raises(BadSignature):
        verify_webhook(body, header, ["whsec_1"])


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
