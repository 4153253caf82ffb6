"""Signed events, sent to `webhook_url` in the background and tried again a few times.

Source: Stripe, "Verify webhook signatures manually" (the signature) and "Webhooks", "Retry behaviour".
"""

import asyncio
import hmac
import logging
import secrets
import time
from hashlib import sha256

import httpx
import stripe

from infra.sandbox.control import Control
from infra.sandbox.rules import Event
from infra.sandbox.wire import encode

# About 27 s in all. Stripe goes on for three days; whoever polls has long found out by then.
RETRY_DELAYS_S = (0.2, 1.0, 3.0, 8.0, 15.0)
ATTEMPT_TIMEOUT_S = 5.0
MAX_WAITING = 10_000
MAX_IN_FLIGHT = 32
# A processor that doesn't answer is late with its events too; this also lets a test see the outcome unknown.
LATE_S = 2.0

_log = logging.getLogger(__name__)


def signature(body: bytes, secret: str, *, timestamp: int) -> str:
    """The value of the `Stripe-Signature` header."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


class Webhooks:
    """Owns every delivery under way; `aclose` ends and awaits them."""

    def __init__(self) -> None:
        # A transport of its own: no proxy from the environment, but the certificates that it names.
        self._http = httpx.AsyncClient(timeout=ATTEMPT_TIMEOUT_S, transport=httpx.AsyncHTTPTransport())
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._deliveries: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Nothing is sent any more; what was not delivered is lost."""
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        await self._http.aclose()

    def send(self, event: Event, control: Control, *, key: str | None, after_s: float = 0.0) -> None:
        """Deliver in the background, to where `control` points now."""
        if control.webhook_url is None:
            return
        if len(self._deliveries) >= MAX_WAITING:
            _log.warning("%s events wait for the webhook; one more was dropped", MAX_WAITING)
            return
        identity = f"evt_{secrets.token_hex(12)}"
        body = encode(
            {
                "id": identity,
                "object": "event",
                "api_version": stripe.api_version,
                "created": int(time.time()),
                "data": {"object": event.subject},
                "livemode": False,
                "pending_webhooks": 1,
                "request": {"id": None, "idempotency_key": key},
                "type": event.kind,
            }
        )
        delivery = asyncio.create_task(
            self._deliver(body, url=control.webhook_url, secret=control.webhook_secret, after_s=after_s),
            name=f"webhook {event.kind} {identity}",
        )
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, body: bytes, *, url: str, secret: str, after_s: float) -> None:
        for delay_s in (after_s, *RETRY_DELAYS_S):
            await asyncio.sleep(delay_s)
            if await self._try(body, url=url, secret=secret):
                return
        _log.warning("the webhook at %s did not take an event in %s tries", url, len(RETRY_DELAYS_S) + 1)

    async def _try(self, body: bytes, *, url: str, secret: str) -> bool:
        headers = {
            "content-type": "application/json; charset=utf-8",
            "stripe-signature": signature(body, secret, timestamp=int(time.time())),
        }
        try:
            async with self._slots:
                answer = await self._http.post(url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
        return answer.is_success
