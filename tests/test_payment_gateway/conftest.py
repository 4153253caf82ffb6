"""A gateway and a fresh sandbox for each test."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from domain.base import BookingId, Money, PaymentId
from domain.payment import (
    GatewayError,
    Intent,
)
from infra.payment_gateway import StripeGateway
from infra.sandbox import running_sandbox

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
    async with httpx.AsyncClient(base_url=url, transport=httpx.AsyncHTTPTransport()) as sandbox:
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
