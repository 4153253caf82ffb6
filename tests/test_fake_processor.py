"""The processor that tests of use cases stand on does what the real gateway does against the sandbox."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx
import pytest

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, IntentStatus, RefundStatus, RequestRefused
from domain.ports import PaymentGateway
from infra.payment_gateway import StripeGateway
from infra.sandbox import running_sandbox
from tests.fake_processor import ACTION, DECLINED, OK, FakeProcessor

pytestmark = pytest.mark.anyio


@dataclass
class Side:
    """A processor, and the buyer's bank page, on one side of the comparison."""

    gateway: PaymentGateway
    authenticate: Callable[[Intent, bool], Awaitable[None]]
    dispute: Callable[[Intent], Awaitable[None]]

    async def intent(self) -> Intent:
        return await self.gateway.create_intent(
            BookingId("b"), payment_id=PaymentId("p"), amount=Money(4_200, "EUR"), key="create"
        )

    async def confirmed(self, method: str, *, key: str = "confirm") -> Intent:
        intent = await self.intent()
        return await self.gateway.confirm_intent(intent.id, payment_method_id=method, key=key)


@pytest.fixture(params=["fake", "sandbox"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    """Each of the two."""
    if request.param == "fake":
        fake = FakeProcessor()

        async def in_memory(intent: Intent, succeeds: bool) -> None:
            fake.authenticate(intent.id, succeeds=succeeds)

        async def dispute(intent: Intent) -> None:
            fake.dispute(intent.id)

        yield Side(fake, in_memory, dispute)
        return
    async with (
        running_sandbox("127.0.0.1", 0) as url,
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()) as http,
    ):
        gateway = StripeGateway(
            "sk_test_k", api_base=url, return_url="https://shop.example", payment_timeout_ms=5_000
        )

        async def on_its_page(intent: Intent, succeeds: bool) -> None:
            page = f"{url}/_3ds/{intent.id}"
            (await http.get(page if succeeds else f"{page}?outcome=fail")).raise_for_status()

        async def dispute_there(intent: Intent) -> None:
            (await http.post(f"{url}/_dispute/{intent.id}")).raise_for_status()

        yield Side(gateway, on_its_page, dispute_there)
        await gateway.aclose()


async def test_one_intent_per_key_and_no_money_yet(side: Side) -> None:
    """Creating twice under one key is one intent."""
    created = await side.intent()
    assert created == await side.intent()
    assert (created.status, created.payment_id) == (IntentStatus.REQUIRES_PAYMENT_METHOD, PaymentId("p"))
    assert (created.charge_id, created.decline_code) == (None, None)


async def test_a_charge_stays_and_can_be_read(side: Side) -> None:
    """Cancelling it changes nothing, and neither does confirming it again."""
    paid = await side.confirmed(OK)
    assert (paid.status, paid.payment_method_id) == (IntentStatus.SUCCEEDED, OK)
    assert paid.charge_id is not None
    assert await side.gateway.retrieve_intent(paid.id) == paid
    assert await side.gateway.cancel_intent(paid.id) == paid
    assert await side.confirmed(OK, key="other") == paid


async def test_a_decline_leaves_a_failed_charge(side: Side) -> None:
    """The next method has a charge of its own."""
    declined = await side.confirmed(DECLINED)
    assert (declined.status, declined.decline_code) == (
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        "generic_decline",
    )
    assert declined.charge_id is not None
    paid = await side.confirmed(OK, key="second")
    assert paid.status is IntentStatus.SUCCEEDED
    assert paid.charge_id not in {None, declined.charge_id}


@pytest.mark.parametrize("succeeds", [True, False])
async def test_an_authentication_ends_on_the_banks_page(side: Side, succeeds: bool) -> None:
    """It is charged, or declined without a charge."""
    asked = await side.confirmed(ACTION)
    assert (asked.status, asked.charge_id) == (IntentStatus.REQUIRES_ACTION, None)
    assert asked.redirect_url is not None
    await side.authenticate(asked, succeeds)
    ended = await side.gateway.retrieve_intent(asked.id)
    assert ended.redirect_url is None
    if succeeds:
        assert ended.status is IntentStatus.SUCCEEDED and ended.charge_id is not None
    else:
        assert ended.status is IntentStatus.REQUIRES_PAYMENT_METHOD
        assert (ended.charge_id, ended.decline_code) == (None, "payment_intent_authentication_failure")


async def test_a_cancelled_intent_is_never_charged(side: Side) -> None:
    """Cancelling may repeat; the page and another confirm find it cancelled."""
    asked = await side.confirmed(ACTION)
    cancelled = await side.gateway.cancel_intent(asked.id)
    assert cancelled.status is IntentStatus.CANCELED and cancelled.redirect_url is None
    assert await side.gateway.cancel_intent(asked.id) == cancelled
    assert (await side.confirmed(OK, key="other")).status is IntentStatus.CANCELED


async def test_money_goes_back_once(side: Side) -> None:
    """Another key finds it refunded; what was never charged can't be refunded."""
    intent = await side.intent()
    with pytest.raises(RequestRefused):
        await side.gateway.refund_intent(intent.id, key="early")
    paid = await side.confirmed(OK)
    for key in ("refund", "refund", "again"):
        assert await side.gateway.refund_intent(paid.id, key=key) is RefundStatus.SUCCEEDED
    assert (await side.gateway.retrieve_intent(paid.id)).refunded_minor == 4_200


async def test_disputed_money_is_gone_already(side: Side) -> None:
    """A refund of it is refused."""
    paid = await side.confirmed(OK)
    await side.dispute(paid)
    assert (await side.gateway.retrieve_intent(paid.id)).is_disputed
    with pytest.raises(RequestRefused):
        await side.gateway.refund_intent(paid.id, key="refund")


async def test_an_unknown_method_is_refused(side: Side) -> None:
    """Nothing is charged, and the parameter is named."""
    with pytest.raises(RequestRefused) as refused:
        await side.confirmed("pm_card_of_nobody")
    assert (refused.value.code, refused.value.param) == ("resource_missing", "payment_method")
