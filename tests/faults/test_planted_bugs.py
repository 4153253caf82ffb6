"""The checker is proven: each mistake is composed into a running system and found, and without it nothing is.

Every story is told twice, first with all parts as they are, then with one of them replaced.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from domain.base import BookingId
from domain.payment import IntentStatus, RefundStatus
from infra.breaker import Breaker, BreakerGateway
from infra.failpoints import Action
from tests.fake_processor import ACTION, DECLINED, FakeProcessor, lost
from tests.faults.checker import Rule
from tests.faults.history import Operation
from tests.faults.planted.at_the_counter import (
    FreshKeyEachTry,
    breaker_counting_declines,
    refund_without_key,
    stored_answer_on_timeout,
)
from tests.faults.planted.at_the_database import (
    CommitsLater,
    expire_whatever_was_due,
    publish_before_commit,
    read_then_write,
)
from tests.faults.planted.at_the_relay import (
    done_before_it_is_told,
    relay_by_id,
    seen_before_it_is_heard,
    snapshot_before_subscribing,
    unbounded_queue,
)
from tests.faults.planted.stage import Parts, running_stage, seat_of

pytestmark = pytest.mark.anyio

# A message that never comes is not waited for any longer; one that must come has ten seconds.
SOON_S, PATIENCE_S = 0.3, 10.0


@pytest.fixture
def urls(postgres_database_url: str, redis_url: str) -> tuple[str, str]:
    """A PostgreSQL and a Valkey to plant bugs over."""
    return postgres_database_url, redis_url


Urls = tuple[str, str]


def both(bug: Callable[[], Parts], *rules: Rule, right: Callable[[], Parts] = Parts) -> pytest.MarkDecorator:
    """The story without the bug, where nothing is broken, and with it, where exactly these rules are."""
    return pytest.mark.parametrize(
        ("new_parts", "broken"),
        [pytest.param(right, set(), id="right"), pytest.param(bug, set(rules), id="planted")],
    )


def booking_of(operation: Operation) -> str:
    """The id of what was booked."""
    assert operation.seen is not None, operation
    return operation.seen.booking_id


# ---------------------------------------------------------------- at the database
@both(lambda: Parts(stores=read_then_write(2)), Rule.STOCK, Rule.ORDER, Rule.COUNTERS, Rule.CONSERVATION)
async def test_read_then_write_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """Two read that one seat is free, and both take it."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale(capacity=1)
        seat = {seat_of(concert): 1}
        await asyncio.gather(stage.buyer("ann").book(concert, seat), stage.buyer("bob").book(concert, seat))
        await stage.relay_everything()
        assert await stage.verdict() == broken


@both(
    lambda: Parts(expire=expire_whatever_was_due),
    Rule.TRANSITION,
    Rule.COUNTERS,
    Rule.CONSERVATION,
    Rule.MONEY,
)
async def test_expiry_without_an_owner_check_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """A hold is found to have passed; before it is ended its buyer's money comes, and the seats are theirs."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        ann, bob = stage.buyer("ann"), stage.buyer("bob")
        await bob.book(concert, {seat_of(concert): 1})
        booking = booking_of(await ann.book(concert, {seat_of(concert): 1}))
        await ann.pay(booking, ACTION)
        await stage.shop.let_hold_pass(BookingId(booking))
        stage.failpoints.arm("expire.begin", Action.PAUSE)
        expiring = asyncio.create_task(stage.parts.expire(stage.deps))
        await stage.stood_still.wait()
        (intent_id,) = stage.processor.entries
        stage.processor.authenticate(intent_id, succeeds=True)
        await stage.hear("evt_1", intent_id)
        stage.failpoints.resume()
        await expiring
        await stage.relay_everything()
        assert await stage.verdict() == broken


@both(lambda: Parts(stores=publish_before_commit), Rule.STREAM_PAYLOAD, Rule.REAL_TIME)
async def test_publishing_before_the_commit_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """A booking is told of and then lost with its transaction; the next one has its version and other seats."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        async with stage.watching(concert) as watcher:
            watcher.reads_on()
            stage.failpoints.arm("book.commit", Action.ERROR)
            await stage.buyer("ann", tries=1).book(concert, {seat_of(concert): 1})
            await watcher.hears(2, patience_s=PATIENCE_S if broken else SOON_S)
            await stage.buyer("bob").book(concert, {seat_of(concert): 2})
            await stage.relay_everything()
            await watcher.hears(2, patience_s=PATIENCE_S)
        assert await stage.verdict() == broken


def acknowledged_before_commit() -> Parts:
    """The bug and its commits."""
    later = CommitsLater()
    return Parts(doors=later.doors, rest=later.done)


@both(acknowledged_before_commit, Rule.ACKNOWLEDGED, Rule.KEYS)
async def test_acknowledging_before_the_commit_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """The client has its answer, and the database goes away before the commit."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        stage.failpoints.arm("book.commit", Action.ERROR)
        await stage.buyer("ann").book(concert, {seat_of(concert): 1})
        await stage.relay_everything()
        assert await stage.verdict() == broken


# ---------------------------------------------------------------- at the counter
@both(lambda: Parts(buyer=FreshKeyEachTry), Rule.KEYS, Rule.ASKED)
async def test_a_new_key_on_retry_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """The booking was made and its answer lost; asked again under another key it is made twice."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        stage.failpoints.arm("book.commit.answered", Action.ERROR)
        await stage.buyer("ann").book(concert, {seat_of(concert): 1})
        await stage.relay_everything()
        assert await stage.verdict() == broken


@both(lambda: Parts(counter=stored_answer_on_timeout), Rule.REFUSED)
async def test_a_stored_answer_on_timeout_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """The booking was made and its answer lost; asked again the client is told that it failed, for good."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        ann = stage.buyer("ann")
        await ann.book(concert, {seat_of(concert): 1})
        stage.failpoints.arm("book.commit.answered", Action.ERROR)
        await ann.book(concert, {seat_of(concert): 1})
        await stage.relay_everything()
        assert await stage.verdict() == broken


class GivesBackAgain(FakeProcessor):
    """Gives the whole amount back under each new key, where Stripe would refuse: only keys protect here."""

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """All of it goes back."""
        entry = self.entries[intent_id]

        def effect() -> RefundStatus:
            assert entry.intent.status is IntentStatus.SUCCEEDED
            entry.refunds += 1
            refunded_minor = entry.intent.refunded_minor + entry.amount.amount_minor
            entry.intent = replace(entry.intent, refunded_minor=refunded_minor)
            return RefundStatus.SUCCEEDED

        return await self._call("refund", entry.booking_id, key, effect)


@both(lambda: Parts(gateway=refund_without_key), Rule.REFUNDED_ONCE)
async def test_a_refund_without_a_key_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """The money went back and the answer was lost; asked for again it goes back twice."""
    processor = GivesBackAgain()
    async with running_stage(new_parts(), *urls, processor=processor) as stage:
        concert = await stage.open_sale()
        ann = stage.buyer("ann")
        booking = booking_of(await ann.book(concert, {seat_of(concert): 1}))
        await ann.pay(booking)
        await ann.cancel(booking)
        processor.order("refund", lost(happens=True))
        await stage.relay_everything()
        assert await stage.verdict() == broken


def with_a_breaker() -> Parts:
    """The processor behind the breaker as it is."""
    return Parts(gateway=lambda gateway: BreakerGateway(gateway, Breaker()))


@both(lambda: Parts(gateway=breaker_counting_declines), Rule.REASON, right=with_a_breaker)
async def test_a_breaker_that_counts_declines_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """Five cards are declined, and the sixth buyer is told to come back later though the processor is well."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        for name in ("ann", "bob", "cyd", "dan", "eve", "fay"):
            buyer = stage.buyer(name)
            booking = booking_of(await buyer.book(concert, {seat_of(concert): 1}))
            await buyer.pay(booking, "pm_card_visa" if name == "fay" else DECLINED)
        await stage.relay_everything()
        assert await stage.verdict(is_calm=True) == broken


# ---------------------------------------------------------------- at the relay
@both(lambda: Parts(queue=relay_by_id), Rule.SETTLED, Rule.STREAM_STALE, Rule.READ_MODEL)
async def test_a_relay_that_pages_by_id_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """A transaction that got its id first and commits last is skipped: nobody ever hears of it."""
    async with running_stage(new_parts(), *urls) as stage:
        late, early = await stage.open_sale(), await stage.open_sale()
        async with stage.watching(late) as watcher:
            watcher.reads_on()
            stage.failpoints.arm("book.commit", Action.PAUSE)
            booking = asyncio.create_task(stage.buyer("ann").book(late, {seat_of(late): 1}))
            await stage.stood_still.wait()
            await stage.buyer("bob").book(early, {seat_of(early): 1})
            await stage.relay.relay_some()
            stage.failpoints.resume()
            await booking
            await stage.relay_everything()
            await watcher.hears(2, patience_s=SOON_S if broken else PATIENCE_S)
        assert await stage.verdict() == broken


@both(lambda: Parts(queue=done_before_it_is_told), Rule.STREAM_STALE, Rule.READ_MODEL)
async def test_an_event_that_is_done_before_it_is_told_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """Redis fails at the first try; the event is gone by then, so there is no second."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        async with stage.watching(concert) as watcher:
            watcher.reads_on()
            stage.failpoints.arm("read_model.project", Action.ERROR)
            await stage.buyer("ann").book(concert, {seat_of(concert): 1})
            await stage.relay_everything()
            await watcher.hears(2, patience_s=SOON_S if broken else PATIENCE_S)
        assert await stage.verdict() == broken


@both(lambda: Parts(hear_webhook=seen_before_it_is_heard), Rule.MONEY)
async def test_a_webhook_that_is_seen_before_it_is_heard_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """The processor can't be asked at the first try; the second is taken for a repetition, and the money for lost."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        ann = stage.buyer("ann")
        booking = booking_of(await ann.book(concert, {seat_of(concert): 1}))
        await ann.pay(booking, ACTION)
        (intent_id,) = stage.processor.entries
        stage.processor.authenticate(intent_id, succeeds=True)
        stage.processor.order("retrieve", lost(happens=False))
        for _ in range(2):
            await stage.hear("evt_1", intent_id)
        await stage.relay_everything()
        assert await stage.verdict() == broken


@both(lambda: Parts(live=snapshot_before_subscribing), Rule.STREAM_STALE)
async def test_a_snapshot_before_subscribing_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """What is told between the snapshot and the registration is heard by nobody."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale()
        async with stage.watching(concert) as watcher:
            await stage.buyer("ann").book(concert, {seat_of(concert): 1})
            await stage.relay_everything()
            watcher.reads_on()
            await watcher.hears(2, patience_s=SOON_S if broken else PATIENCE_S)
        assert await stage.verdict() == broken


@both(lambda: Parts(stream=unbounded_queue), Rule.STREAM_BACKLOG)
async def test_an_unbounded_queue_is_found(
    urls: Urls, new_parts: Callable[[], Parts], broken: set[Rule]
) -> None:
    """Who did not read for a while finds all of it waiting, not just what is true now."""
    async with running_stage(new_parts(), *urls) as stage:
        concert = await stage.open_sale(capacity=10, limit=10)
        async with stage.watching(concert) as slow, stage.watching(concert, name="fast") as fast:
            fast.reads_on()
            slow.pauses()
            for version in range(2, 8):
                await stage.buyer("ann").book(concert, {seat_of(concert): 1})
                await stage.relay_everything()
                await fast.hears(version, patience_s=PATIENCE_S)
            slow.resumes()
            await slow.hears(7, patience_s=PATIENCE_S)
        assert await stage.verdict() == broken
