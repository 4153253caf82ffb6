"""The circuit breaker: what opens it, who is let in on trial, what closes it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from prometheus_client import generate_latest

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, IntentStatus, NotSent, OutcomeUnknown, RefundStatus, RequestRefused
from infra.breaker import Breaker, BreakerGateway, BreakerMetrics
from infra.telemetry import Metrics

pytestmark = pytest.mark.anyio


@dataclass
class Clock:
    """Stands still unless moved."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def succeed() -> str:
    """An answer."""
    return "answered"


def failing(error: Exception) -> Callable[[], Awaitable[str]]:
    """An operation that ends with `error`."""

    async def fail() -> str:
        raise error

    return fail


LOST = OutcomeUnknown("time-out", is_stored=False)
UNSENT = NotSent("429", retry_after_ms=1)
REFUSED = RequestRefused("no such method", code="resource_missing", param="payment_method")


async def verdicts(breaker: Breaker, *errors: Exception | None) -> None:
    """Let one call after the other end with the given error, or succeed for None."""
    for error in errors:
        if error is None:
            await breaker.call(succeed)
        else:
            with pytest.raises(type(error)) as raised:
                await breaker.call(failing(error))
            assert raised.value is error


async def refusal(breaker: Breaker) -> int:
    """What the breaker tells a caller whom it does not let in: retry_after_ms."""

    async def never() -> None:
        pytest.fail("the breaker let a call through")

    with pytest.raises(NotSent) as raised:
        await breaker.call(never)
    return raised.value.retry_after_ms


async def test_five_failures_in_a_row_open_it() -> None:
    """The fourth leaves it closed, a success starts the count again, the fifth in a row opens it."""
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *[LOST] * 4)
    assert breaker.state == "closed"
    await verdicts(breaker, None, *[LOST, UNSENT] * 2)
    assert breaker.state == "closed"
    await verdicts(breaker, LOST)
    assert breaker.state == "open"


async def test_half_of_the_last_twenty_opens_it() -> None:
    """Ten failures among twenty calls open it although no five came in a row; nine do not."""
    nine = [LOST, None] * 9 + [None, None]
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *nine)
    assert breaker.state == "closed"
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *[LOST, None] * 9, LOST)
    assert breaker.state == "closed"
    await verdicts(breaker, None)
    assert breaker.state == "open"


async def test_only_the_last_twenty_count() -> None:
    """Failures that slid out of the window are forgotten."""
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *[LOST, None, None] * 30)
    assert breaker.state == "closed"


async def test_refusals_are_no_failures() -> None:
    """A processor that says no is at work: refusals keep it closed and end a row of failures."""
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *[REFUSED] * 30, *[LOST] * 4, REFUSED, *[LOST] * 4)
    assert breaker.state == "closed"


async def test_other_errors_are_no_verdict() -> None:
    """A mistake of ours neither counts nor interrupts a row."""
    breaker = Breaker(clock=Clock())
    await verdicts(breaker, *[LOST] * 4, *[ValueError("ours")] * 9)
    assert breaker.state == "closed"
    await verdicts(breaker, LOST)
    assert breaker.state == "open"


async def test_open_refuses_at_once_until_its_time_is_over() -> None:
    """Nobody is let in, each is told how long it stays open, to the millisecond."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST] * 5)
    assert await refusal(breaker) == 5_000
    clock.now_s += 4.9995
    assert await refusal(breaker) == 1
    assert breaker.state == "open"
    clock.now_s += 0.0005
    assert await breaker.call(succeed) == "answered"
    assert breaker.state == "closed"


async def test_one_trial_is_let_in_among_many_callers() -> None:
    """Of 50 callers at the half-open door one gets in, 49 are refused; its answer closes the breaker."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST] * 5)
    clock.now_s += 5
    entered, release = 0, asyncio.Event()

    async def trial() -> str:
        nonlocal entered
        entered += 1
        await release.wait()
        return "answered"

    callers = [asyncio.create_task(breaker.call(trial)) for _ in range(50)]
    _, waiting = await asyncio.wait(callers, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    refused = [caller for caller in callers if caller.done()]
    assert (entered, len(refused), len(waiting)) == (1, 49, 1)
    assert all(isinstance(caller.exception(), NotSent) for caller in refused)
    assert breaker.state == "half-open"
    release.set()
    assert [await caller for caller in waiting] == ["answered"]
    assert breaker.state == "closed"
    await verdicts(breaker, *[LOST] * 4)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [LOST, UNSENT])
async def test_a_failed_trial_opens_it_again(error: Exception) -> None:
    """One failure is enough, and the full time starts anew."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST] * 5)
    clock.now_s += 5
    await verdicts(breaker, error)
    assert (breaker.state, await refusal(breaker)) == ("open", 5_000)


async def test_what_opened_it_is_forgotten_once_it_closes() -> None:
    """After a good trial the count starts anew: neither the row nor the share remembers the outage."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST, LOST, LOST, LOST, None] * 3, *[LOST] * 5)
    assert breaker.state == "open"
    clock.now_s += 5
    await verdicts(breaker, None, None, *[LOST] * 4)
    assert breaker.state == "closed"


async def test_a_refused_trial_closes_it() -> None:
    """A refusal proves that the processor is back."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST] * 5)
    clock.now_s += 5
    await verdicts(breaker, REFUSED)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("ours")])
async def test_a_trial_without_a_verdict_frees_the_door(error: BaseException) -> None:
    """A cancelled or broken trial leaves the breaker half-open, and the next caller is the trial."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    await verdicts(breaker, *[LOST] * 5)
    clock.now_s += 5
    inside = asyncio.Event()

    async def hang() -> None:
        inside.set()
        if not isinstance(error, asyncio.CancelledError):
            raise error
        await asyncio.Event().wait()

    trial = asyncio.create_task(breaker.call(hang))
    await inside.wait()
    if isinstance(error, asyncio.CancelledError):
        assert await refusal(breaker) == 1_000
        trial.cancel()
    with pytest.raises(type(error)):
        await trial
    assert breaker.state == "half-open"
    assert await breaker.call(succeed) == "answered"
    assert breaker.state == "closed"


async def test_a_cancelled_call_is_no_verdict() -> None:
    """CancelledError comes through as it is, counts for nothing and frees its place."""
    breaker = Breaker(clock=Clock(), max_in_flight=1)
    await verdicts(breaker, *[LOST] * 4)
    for _ in range(10):
        inside = asyncio.Event()

        async def hang(inside: asyncio.Event = inside) -> None:
            inside.set()
            await asyncio.Event().wait()

        call = asyncio.create_task(breaker.call(hang))
        await inside.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert breaker.state == "closed"
    await verdicts(breaker, LOST)
    assert breaker.state == "open"


@pytest.mark.parametrize("late", [None, LOST])
async def test_late_verdicts_say_nothing_about_the_present(late: Exception | None) -> None:
    """A call let in before the breaker opened neither closes it nor starts its time anew."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    release, inside = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        inside.set()
        await release.wait()
        if late is not None:
            raise late

    call = asyncio.create_task(breaker.call(slow))
    await inside.wait()
    await verdicts(breaker, *[LOST] * 5)
    clock.now_s += 3
    release.set()
    await asyncio.wait([call])
    assert call.exception() is late
    assert (breaker.state, await refusal(breaker)) == ("open", 2_000)


async def test_a_burst_of_failures_opens_it_once() -> None:
    """Fifty parallel time-outs open it once; its time runs from there and then the trial decides."""
    metrics = Metrics()
    clock = Clock()
    breaker = Breaker(clock=clock, listeners=[BreakerMetrics(metrics)])
    together = asyncio.Barrier(50)

    async def lost() -> None:
        await together.wait()
        raise OutcomeUnknown("time-out", is_stored=False)

    await asyncio.gather(*(breaker.call(lost) for _ in range(50)), return_exceptions=True)
    assert await refusal(breaker) == 5_000
    shown = generate_latest(metrics.registry).decode()
    assert 'frontrow_breaker_state{frontrow_breaker_state="open"} 1.0' in shown
    assert 'frontrow_breaker_transitions_total{to="open"} 1.0' in shown
    clock.now_s += 5
    await breaker.call(succeed)
    shown = generate_latest(metrics.registry).decode()
    assert 'frontrow_breaker_state{frontrow_breaker_state="closed"} 1.0' in shown
    assert 'frontrow_breaker_transitions_total{to="half-open"} 1.0' in shown
    assert 'frontrow_breaker_transitions_total{to="closed"} 1.0' in shown


async def test_a_full_bulkhead_refuses_at_once() -> None:
    """With every place taken the next caller hears NotSent; a place that is freed is given away."""
    breaker = Breaker(clock=Clock(), max_in_flight=3)
    release = asyncio.Event()
    inside = asyncio.Barrier(4)

    async def hang() -> str:
        await inside.wait()
        await release.wait()
        return "answered"

    calls = [asyncio.create_task(breaker.call(hang)) for _ in range(3)]
    await inside.wait()
    assert await refusal(breaker) == 1_000
    assert breaker.state == "closed"
    release.set()
    assert await asyncio.gather(*calls) == ["answered"] * 3
    assert await breaker.call(succeed) == "answered"


class DownGateway:
    """A gateway whose processor never answers a payment, and always a question."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        self.calls.append(f"create {booking_id} {payment_id} {amount.amount_minor} {key}")
        raise LOST

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        self.calls.append(f"confirm {intent_id} {payment_method_id} {key}")
        raise LOST

    async def retrieve_intent(self, intent_id: str) -> Intent:
        return Intent(intent_id, IntentStatus.PROCESSING, None)

    async def cancel_intent(self, intent_id: str) -> Intent:
        return Intent(intent_id, IntentStatus.CANCELED, None)

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        return RefundStatus.PENDING


async def test_only_create_and_confirm_go_through_the_breaker() -> None:
    """Their failures open it and then neither reaches the gateway; reading, cancelling and refunding do."""
    inner = DownGateway()
    gateway = BreakerGateway(inner, Breaker(clock=Clock(), fail_max=2))
    amount = Money(5, "EUR")

    async def create() -> Intent:
        return await gateway.create_intent(BookingId("b"), payment_id=PaymentId("p"), amount=amount, key="k")

    with pytest.raises(OutcomeUnknown):
        await create()
    with pytest.raises(OutcomeUnknown):
        await gateway.confirm_intent("pi", payment_method_id="pm", key="c")
    with pytest.raises(NotSent):
        await create()
    with pytest.raises(NotSent):
        await gateway.confirm_intent("pi", payment_method_id="pm", key="c")
    assert inner.calls == ["create b p 5 k", "confirm pi pm c"]
    assert (await gateway.retrieve_intent("pi")).status is IntentStatus.PROCESSING
    assert (await gateway.cancel_intent("pi")).status is IntentStatus.CANCELED
    assert await gateway.refund_intent("pi", key="r") is RefundStatus.PENDING


async def test_questions_have_a_bulkhead_of_their_own() -> None:
    """Who asks how a payment stands is refused at once while too many do, and keeps nobody from paying."""

    class SlowGateway(DownGateway):
        async def retrieve_intent(self, intent_id: str) -> Intent:
            await inside.wait()
            await release.wait()
            return Intent(intent_id, IntentStatus.PROCESSING, None)

        async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
            return Intent(intent_id, IntentStatus.SUCCEEDED, None)

    release, inside = asyncio.Event(), asyncio.Barrier(3)
    gateway = BreakerGateway(SlowGateway(), Breaker(clock=Clock()), looks_max=2)
    looks = [asyncio.create_task(gateway.retrieve_intent("pi")) for _ in range(2)]
    await inside.wait()
    for ask in (gateway.retrieve_intent, gateway.cancel_intent):
        with pytest.raises(NotSent) as refused:
            await ask("pi")
        assert refused.value.retry_after_ms == 1_000
    paid = await gateway.confirm_intent("pi", payment_method_id="pm", key="k")
    assert paid.status is IntentStatus.SUCCEEDED
    release.set()
    assert [look.status for look in await asyncio.gather(*looks)] == [IntentStatus.PROCESSING] * 2
    assert (await gateway.cancel_intent("pi")).status is IntentStatus.CANCELED
