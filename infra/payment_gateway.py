"""The card processor behind the port, through the official `stripe` library.

What an error means for money is decided here and nowhere else (see `_meaning`): nothing was sent, nobody
knows, or the processor refused.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import httpx
import stripe

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

# Everything but create and confirm is asked for in the background, or by somebody who limits the wait themselves.
PATIENT_TIMEOUT_MS = 5_000
RETRY_AFTER_MS = 1_000
RETRY_AFTER_MAX_MS = 60_000
MAX_CONNECTIONS = 200

# Stripe's units per ISO 4217 minor unit, where they differ (Stripe, "Supported currencies": special cases and
# zero-decimal ones): krona and shilling are still counted in hundredths, the ariary in whole ones.
_UNITS_PER_MINOR = {"ISK": Fraction(100), "UGX": Fraction(100), "MGA": Fraction(1, 100)}
_REFUND_STATUSES = {
    "succeeded": RefundStatus.SUCCEEDED,
    "pending": RefundStatus.PENDING,
    "requires_action": RefundStatus.PENDING,
    "failed": RefundStatus.FAILED,
    "canceled": RefundStatus.FAILED,
}

T = TypeVar("T")


class StripeGateway:
    """`PaymentGateway` over Stripe's API.

    Concurrency: any number of calls at once, each with its own time limit; nothing is ever sent twice.
    """

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str | None,
        return_url: str,
        payment_timeout_ms: int = 610,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        # The library reports timings and the platform to Stripe unless told not to, and logs whole bodies,
        # client secrets included, at debug level.
        stripe.enable_telemetry = False
        logging.getLogger("stripe").setLevel(logging.WARNING)
        self._return_url = return_url
        self._payment_timeout_ms = payment_timeout_ms
        self._http = _HttpxClient(max_connections)
        self._api = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base.rstrip("/")} if api_base else None,
            max_network_retries=0,
            http_client=self._http,
        ).v1

    async def aclose(self) -> None:
        """Every connection is closed."""
        await self._http.close_async()

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        """An unconfirmed intent for `amount`, naming payment and booking in its metadata. Moves no money."""
        units = _stripe_units(amount)
        intent = await _answer(
            lambda: self._api.payment_intents.create_async(
                {
                    "amount": units,
                    "currency": amount.currency.lower(),
                    # `payment_method_types` is refused since API version 2026-09-30.
                    "allowed_payment_method_types": ["card"],
                    "metadata": {"payment_id": payment_id, "booking_id": booking_id},
                },
                {"idempotency_key": key},
            ),
            timeout_ms=self._payment_timeout_ms,
        )
        return _intent(intent)

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """Ask for the money. A decline is an Intent with `decline_code`; so is one that was final before."""
        try:
            intent = await _answer(
                lambda: self._api.payment_intents.confirm_async(
                    intent_id,
                    {
                        "payment_method": payment_method_id,
                        "return_url": self._return_url,
                        "expand": ["latest_charge"],
                    },
                    {"idempotency_key": key},
                ),
                timeout_ms=self._payment_timeout_ms,
            )
        except _Declined as declined:
            return _intent(declined.intent)
        except RequestRefused as refused:
            if refused.code != "payment_intent_unexpected_state":
                raise
            try:
                return await self.retrieve_intent(intent_id)
            except NotSent as error:
                # The confirm did reach the processor, and what the intent is now nobody has said yet.
                raise OutcomeUnknown(str(error), is_stored=False) from error
        return _intent(intent)

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """What the processor says now, refunds and disputes included."""
        intent = await _answer(
            lambda: self._api.payment_intents.retrieve_async(intent_id, {"expand": ["latest_charge"]}),
            timeout_ms=PATIENT_TIMEOUT_MS,
        )
        return _intent(intent)

    async def cancel_intent(self, intent_id: str) -> Intent:
        """Final: CANCELED means never charged, SUCCEEDED charged before. May repeat, under a fresh key."""
        try:
            intent = await _answer(
                lambda: self._api.payment_intents.cancel_async(intent_id, {"expand": ["latest_charge"]}),
                timeout_ms=PATIENT_TIMEOUT_MS,
            )
        except RequestRefused as refused:
            if refused.code != "payment_intent_unexpected_state":
                raise
            return await self.retrieve_intent(intent_id)
        return _intent(intent)

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """Give back all that is left of the charge; nothing left is SUCCEEDED."""
        try:
            refund = await _answer(
                lambda: self._api.refunds.create_async(
                    {"payment_intent": intent_id}, {"idempotency_key": key}
                ),
                timeout_ms=PATIENT_TIMEOUT_MS,
            )
        except RequestRefused as refused:
            if refused.code != "charge_already_refunded":
                raise
            return RefundStatus.SUCCEEDED
        status = _REFUND_STATUSES.get(refund.status or "")
        if status is None:
            raise OutcomeUnknown(f"a refund came back as {refund.status!r}", is_stored=False)
        return status


@dataclass(slots=True)
class _Wire:
    """The request under way: its time limit, whether any byte of it may have left, the answer's status."""

    timeout_s: float
    is_touched: bool = False
    status: int = 0


_wire: ContextVar[_Wire] = ContextVar("_wire")


class _Declined(Exception):
    """A card error; carries the intent as it stands after it."""

    def __init__(self, intent: stripe.PaymentIntent) -> None:
        super().__init__("declined")
        self.intent = intent


async def _answer(call: Callable[[], Awaitable[T]], *, timeout_ms: int) -> T:
    """The library's answer within the time limit. Raises: GatewayError, _Declined."""
    wire = _Wire(timeout_s=timeout_ms / 1_000)
    token = _wire.set(wire)
    try:
        async with asyncio.timeout(wire.timeout_s):
            return await call()
    except TimeoutError as error:
        raise _silence(f"no answer within {timeout_ms} ms", wire) from error
    except stripe.APIConnectionError as error:
        raise _silence(f"no answer: {error.__cause__!r}", wire) from error
    except stripe.StripeError as error:
        raise _meaning(error) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # The library trips over errors that are not in Stripe's shape, as proxies make them.
        raise _meaning(stripe.APIError(repr(error), http_status=wire.status)) from error
    finally:
        _wire.reset(token)


def _silence(message: str, wire: _Wire) -> GatewayError:
    """Without an answer, only what never touched a connection was certainly not charged."""
    if wire.is_touched:
        return OutcomeUnknown(message, is_stored=False)
    return NotSent(message, retry_after_ms=RETRY_AFTER_MS)


def _meaning(error: stripe.StripeError) -> GatewayError | _Declined:
    """What an answer with an error says about the money (DESIGN.md, "One payment")."""
    status = error.http_status or 0
    if status in {401, 403, 429} or isinstance(error, stripe.RateLimitError):
        return NotSent(f"the processor answered {status}", retry_after_ms=_retry_after_ms(error))
    if status == 409 or not 400 <= status < 500:
        return OutcomeUnknown(f"the processor answered {status}", is_stored=status >= 500)
    facts = error.error
    if isinstance(error, stripe.CardError) and facts is not None and facts.payment_intent is not None:
        return _Declined(facts.payment_intent)
    param = None if facts is None else facts.param
    return RequestRefused(str(error.user_message or error), code=error.code, param=param)


def _retry_after_ms(error: stripe.StripeError) -> int:
    seconds = (error.headers or {}).get("retry-after", "")
    if not (seconds.isascii() and seconds.isdigit()):
        return RETRY_AFTER_MS
    return max(RETRY_AFTER_MS, min(int(seconds[:6]) * 1_000, RETRY_AFTER_MAX_MS))


def _intent(intent: stripe.PaymentIntent) -> Intent:
    """The library's object as ours. Raises: OutcomeUnknown where a success carried no intent we understand."""
    try:
        return _understood(intent)
    except (AttributeError, TypeError, ValueError) as error:
        raise OutcomeUnknown("the processor's answer is no intent we understand", is_stored=False) from error


def _understood(intent: stripe.PaymentIntent) -> Intent:
    status = IntentStatus(intent.status)
    latest = intent.latest_charge
    charge = latest if isinstance(latest, stripe.Charge) else None
    payment_id = intent.metadata.to_dict().get("payment_id")
    method = intent.payment_method
    action = intent.next_action if status is IntentStatus.REQUIRES_ACTION else None
    redirect = None if action is None else getattr(action, "redirect_to_url", None)
    return Intent(
        id=intent.id,
        status=status,
        payment_id=None if payment_id is None else PaymentId(payment_id),
        charge_id=latest.id if isinstance(latest, stripe.Charge) else latest,
        payment_method_id=method.id if isinstance(method, stripe.PaymentMethod) else method,
        decline_code=_decline_code(intent) if status is IntentStatus.REQUIRES_PAYMENT_METHOD else None,
        client_secret=intent.client_secret or "",
        redirect_url=None if redirect is None else redirect.url,
        refunded_minor=0 if charge is None else _minor(charge.amount_refunded, intent.currency),
        is_disputed=charge is not None and charge.disputed,
    )


def _decline_code(intent: stripe.PaymentIntent) -> str | None:
    error = intent.last_payment_error
    if error is None:
        return None
    # The library has no attribute for what Stripe left out, and a failed authentication has no decline code.
    code: str | None = getattr(error, "decline_code", None) or getattr(error, "code", None)
    return code or "generic_decline"


def _stripe_units(amount: Money) -> int:
    units = amount.amount_minor * _UNITS_PER_MINOR.get(amount.currency, Fraction(1))
    if units.denominator != 1:
        message = f"the processor cannot charge {amount.amount_minor} {amount.currency} minor units exactly"
        raise RequestRefused(message, code="amount_invalid", param="amount")
    return units.numerator


def _minor(units: int, currency: str) -> int:
    return int(units / _UNITS_PER_MINOR.get(currency.upper(), Fraction(1)))


class _HttpxClient(stripe.HTTPClient):
    """The library's transport; its own trips over httpx's deprecations and hides what was sent."""

    name = "httpx"

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            # A processor on this machine is never behind the proxy that the environment may name.
            mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
        )

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send once. Raises: stripe.APIConnectionError."""
        wire = _wire.get()

        async def trace(event: str, _: object) -> None:
            # Everything before the headers is connecting, which no processor charges for.
            if event.endswith(".send_request_headers.started"):
                wire.is_touched = True

        try:
            answer = await self._client.request(
                method,
                url,
                headers=headers,
                content=post_data or None,
                # asyncio.timeout limits the whole call, httpx each of its steps. Connecting gives up well before,
                # because a TLS handshake that is cancelled leaves its socket to the garbage collector.
                timeout=httpx.Timeout(None, connect=wire.timeout_s / 2),
                extensions={"trace": trace},
            )
        except httpx.HTTPError as error:
            message = f"{type(error).__name__}: {error}"
            raise stripe.APIConnectionError(message) from error  # type: ignore[no-untyped-call]
        wire.status = answer.status_code
        return answer.content, answer.status_code, answer.headers

    async def close_async(self) -> None:
        """Every connection is closed."""
        await self._client.aclose()
