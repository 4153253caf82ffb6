"""How fast a worker may call the card processor: so many calls at once, so many a second, none while it says no.

A concert that is called off owes ten thousand refunds. They must leave room for people who pay meanwhile: Stripe allows
an account 100 requests a second and each kind of request 25 (Stripe, "Rate limits"), and advises to keep mass refunds
to a part of that.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, NotSent, RefundStatus
from domain.ports import PaymentGateway

# The processor is left alone for a second at first, then twice as long each time, up to this; longer where it says so.
REST_FIRST_S = 1.0
REST_MAX_S = 5.0

T = TypeVar("T")


class Throttle:
    """Lets calls through one after the other at an even pace, and none for a while after a refusal.

    Concurrency: one event loop; first come, first served.
    """

    def __init__(
        self, *, max_in_flight: int, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free = asyncio.Semaphore(max_in_flight)
        self._interval_s = 1 / per_s
        self._clock = clock
        self._next_at_s = -math.inf
        self._rests_until_s = -math.inf
        self._refusals = 0

    def calls_within(self, duration_s: float) -> int:
        """How many are let through in so long, at least one."""
        return max(1, int(duration_s / self._interval_s))

    async def rested(self) -> None:
        """The time for which the processor is left alone is over."""
        await asyncio.sleep(max(0.0, self._rest_left_s()))

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """What `operation` answers or raises. Raises: NotSent at once while the processor is left alone."""
        async with self._free:
            self._check()
            await self._turn()
            self._check()
            try:
                answer = await operation()
            except NotSent as refusal:
                self._rest(refusal.retry_after_ms / 1_000)
                raise
        if self._rest_left_s() <= 0:
            self._refusals = 0
        return answer

    async def _turn(self) -> None:
        now_s = self._clock()
        at_s = max(now_s, self._next_at_s)
        self._next_at_s = at_s + self._interval_s
        await asyncio.sleep(at_s - now_s)

    def _check(self) -> None:
        left_s = self._rest_left_s()
        if left_s > 0:
            raise NotSent("the processor is left alone", retry_after_ms=math.ceil(left_s * 1_000))

    def _rest(self, asked_s: float) -> None:
        """Leave it alone. What was refused together counts once."""
        now_s = self._clock()
        if now_s >= self._rests_until_s:
            self._refusals += 1
        wanted_s = min(REST_MAX_S, REST_FIRST_S * 2 ** min(self._refusals - 1, 10))
        self._rests_until_s = max(self._rests_until_s, now_s + max(asked_s, wanted_s))

    def _rest_left_s(self) -> float:
        return self._rests_until_s - self._clock()


class ThrottledGateway:
    """A `PaymentGateway` for work that nobody waits for: every call takes its turn."""

    def __init__(self, gateway: PaymentGateway, throttle: Throttle) -> None:
        self._gateway = gateway
        self._throttle = throttle

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        """As the gateway does, in turn."""
        return await self._throttle.call(
            lambda: self._gateway.create_intent(booking_id, payment_id=payment_id, amount=amount, key=key)
        )

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """As the gateway does, in turn."""
        return await self._throttle.call(
            lambda: self._gateway.confirm_intent(intent_id, payment_method_id=payment_method_id, key=key)
        )

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """As the gateway does, in turn."""
        return await self._throttle.call(lambda: self._gateway.retrieve_intent(intent_id))

    async def cancel_intent(self, intent_id: str) -> Intent:
        """As the gateway does, in turn."""
        return await self._throttle.call(lambda: self._gateway.cancel_intent(intent_id))

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """As the gateway does, in turn."""
        return await self._throttle.call(lambda: self._gateway.refund_intent(intent_id, key=key))
