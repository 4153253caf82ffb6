"""The circuit breaker around the card processor, correct under asyncio.

`pybreaker` keeps the state, counts failures in a row and tells its listeners; it knows nothing of asyncio,
so who is let in, the one trial and the share of failures among the last calls are decided here.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import pybreaker

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, NotSent, OutcomeUnknown, RefundStatus, RequestRefused
from domain.ports import PaymentGateway
from infra.telemetry import Metrics

FAIL_MAX = 5
WINDOW = 20
FAIL_SHARE = 0.5
RESET_S = 5.0
MAX_IN_FLIGHT = 100
# What a caller is told who comes while others are inside: about one call's time limit.
BUSY_RETRY_MS = 1_000

T = TypeVar("T")


class Breaker:
    """Lets calls through while the processor answers, and spares both sides while it does not.

    Opens at `fail_max` failures in a row, or at `fail_share` of the last `window` calls. After `reset_s` one
    call at a time is let in on trial: a verdict closes the breaker or opens it again.
    Concurrency: one event loop; between two awaits nothing else runs, so no lock is needed.
    """

    def __init__(
        self,
        *,
        fail_max: int = FAIL_MAX,
        window: int = WINDOW,
        fail_share: float = FAIL_SHARE,
        reset_s: float = RESET_S,
        max_in_flight: int = MAX_IN_FLIGHT,
        clock: Callable[[], float] = time.monotonic,
        listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
    ) -> None:
        self._reset_s = reset_s
        self._fail_share = fail_share
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=fail_max,
            reset_timeout=reset_s,
            listeners=listeners,
            name="payment",
            throw_new_error_on_trip=False,
        )
        # True for a failure; the newest last.
        self._verdicts: deque[bool] = deque(maxlen=window)
        self._half_open_at = 0.0
        self._in_flight = 0
        # Raised by every change of state: a verdict on an older state's call says nothing about this one.
        self._era = 0
        self._is_trial_running = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._circuit.current_state

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """What `operation` answers or raises; it brings its own time limit.

        NotSent and OutcomeUnknown count as failures, RequestRefused and answers do not, a cancelled call and
        any other error are no verdict. Raises: NotSent at once while open or full.
        """
        is_trial = self._admit()
        era = self._era
        self._in_flight += 1
        self._is_trial_running = self._is_trial_running or is_trial
        try:
            answer = await operation()
        except (NotSent, OutcomeUnknown) as failure:
            self._conclude(era, failure)
            raise
        except RequestRefused:
            self._conclude(era, None)
            raise
        finally:
            self._in_flight -= 1
            if is_trial:
                self._is_trial_running = False
        # The trial is over by now, and nothing has run in between.
        self._conclude(era, None)
        return answer

    def _admit(self) -> bool:
        """Whether the call is a trial. Raises: NotSent where it may not go ahead."""
        if self._in_flight >= self._max_in_flight:
            raise NotSent("too many payments are under way", retry_after_ms=BUSY_RETRY_MS)
        if self.state == pybreaker.STATE_OPEN:
            wait_s = self._half_open_at - self._clock()
            if wait_s > 0:
                raise NotSent("the processor is resting", retry_after_ms=math.ceil(wait_s * 1_000))
            self._circuit.half_open()
            self._era += 1
        if self.state == pybreaker.STATE_CLOSED:
            return False
        if self._is_trial_running:
            raise NotSent("the processor is being tried", retry_after_ms=BUSY_RETRY_MS)
        return True

    def _conclude(self, era: int, failure: Exception | None) -> None:
        """Count the verdict, and change state where it asks for that."""
        if era != self._era:
            return
        before = self.state
        self._verdicts.append(failure is not None)
        self._count(failure)
        if self.state == before == pybreaker.STATE_CLOSED and self._is_share_reached():
            self._circuit.open()
        if self.state == before:
            return
        self._era += 1
        self._verdicts.clear()
        if self.state == pybreaker.STATE_OPEN:
            self._half_open_at = self._clock() + self._reset_s

    def _is_share_reached(self) -> bool:
        """Whether too many of the last calls failed; a window that is not full says nothing yet."""
        is_full = len(self._verdicts) == self._verdicts.maxlen
        return is_full and sum(self._verdicts) >= self._fail_share * len(self._verdicts)

    def _count(self, failure: Exception | None) -> None:
        """Tell pybreaker the verdict as the synchronous call that it understands."""

        def repeat() -> None:
            if failure is not None:
                raise failure

        # What comes back is the failure that went in, and the caller is given it anyway.
        with suppress(NotSent, OutcomeUnknown):
            self._circuit.call(repeat)


class BreakerGateway:
    """A `PaymentGateway` whose create and confirm go through the breaker.

    The rest does not: reading and cancelling is how the reconciler finds out that the processor is back. But buyers
    who take up an authentication, and webhooks, may wait for these too, so there are only so many at once.
    """

    def __init__(self, gateway: PaymentGateway, breaker: Breaker, *, looks_max: int = MAX_IN_FLIGHT) -> None:
        self._gateway = gateway
        self._breaker = breaker
        self._looks_max = looks_max
        self._looking = 0

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        """As the gateway does, or NotSent while the breaker is open."""
        return await self._breaker.call(
            lambda: self._gateway.create_intent(booking_id, payment_id=payment_id, amount=amount, key=key)
        )

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """As the gateway does, or NotSent while the breaker is open."""
        return await self._breaker.call(
            lambda: self._gateway.confirm_intent(intent_id, payment_method_id=payment_method_id, key=key)
        )

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """As the gateway does, or NotSent at once while too many wait."""
        with self._look():
            return await self._gateway.retrieve_intent(intent_id)

    async def cancel_intent(self, intent_id: str) -> Intent:
        """As the gateway does, or NotSent at once while too many wait."""
        with self._look():
            return await self._gateway.cancel_intent(intent_id)

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """As the gateway does."""
        return await self._gateway.refund_intent(intent_id, key=key)

    @contextmanager
    def _look(self) -> Iterator[None]:
        if self._looking >= self._looks_max:
            raise NotSent("too many questions are under way", retry_after_ms=BUSY_RETRY_MS)
        self._looking += 1
        try:
            yield
        finally:
            self._looking -= 1


class BreakerMetrics(pybreaker.CircuitBreakerListener):
    """Shows the breaker's state among the metrics and counts its changes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.breaker_state.state(pybreaker.STATE_CLOSED)

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Another state holds from now on."""
        self._metrics.breaker_state.state(new_state.name)
        self._metrics.breaker_transitions.labels(to=new_state.name).inc()
