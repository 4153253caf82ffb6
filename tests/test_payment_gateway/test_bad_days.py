"""The port, on bad days."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import stripe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from domain.base import Money
from domain.payment import (
    Intent,
    IntentStatus,
    NotSent,
    OutcomeUnknown,
    RequestRefused,
)
from infra.breaker import Breaker, BreakerGateway
from infra.payment_gateway import StripeGateway
from infra.sandbox.server import serving
from tests.test_payment_gateway.conftest import (
    Shop,
    error_of,
    running_shops,
    shop_at,
)

pytestmark = pytest.mark.anyio

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
