"""What operators watch says what the database says, in a process without a worker too."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from domain.base import ConcertId
from domain.booking import SaleClosed
from domain.use_cases.booking import cancel_bookings
from infra.settings import WorkerPlace
from tests.client import CANCEL_CONCERT
from tests.db_world import run_sql
from tests.story.conftest import NewWorld
from tests.story.world import World, raw

pytestmark = pytest.mark.anyio


async def test_lag_and_failed_refunds_are_seen_without_a_worker(new_world: NewWorld) -> None:
    """The outbox waits and a refund has failed: the API, which does neither's work, tells both."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        concert = await world.admin.register()
        ann = await world.api.new_buyer()
        booking = await ann.booked(concert)
        await ann.pay(booking["id"])
        seen = await measured(world)
        # Registered, booked, sent and approved.
        assert seen["frontrow_outbox_depth"] == 4 and seen["frontrow_outbox_lag_seconds"] > 0
        assert seen["frontrow_refunds_failed"] == 0
        await run_sql(world.frontrow.database, "UPDATE payments SET status = 'REFUND_FAILED'")
        assert (await measured(world))["frontrow_refunds_failed"] == 1


async def test_how_far_a_cancelled_concert_has_come_is_seen(new_world: NewWorld) -> None:
    """Bookings to be cancelled and refunds not through yet, as `cancelConcert` says, and no other concert's."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        concert, other = await world.admin.register(), await world.admin.register()
        ann = await world.api.new_buyer()
        paid = await ann.booked(concert)
        await ann.pay(paid["id"])
        await ann.booked(concert)
        await ann.booked(other)
        assert await unsettled(world) == (0, 0)
        await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
        assert await unsettled(world) == (2, 0)
        await cancel_bookings(world.frontrow.deps, SaleClosed(ConcertId(raw(concert.id))))
        assert await unsettled(world) == (0, 1)
        again = await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
        assert (again["bookingsToCancel"], again["refundsOpen"]) == (0, 1)
        async with world.frontrow.worker.running():
            await ann.until_booking(paid["id"], lambda now: now["isFinal"])
        assert await unsettled(world) == (0, 0)


async def unsettled(world: World) -> tuple[float, float]:
    """Bookings to cancel, refunds open."""
    seen = await measured(world)
    return seen["frontrow_bookings_to_cancel"], seen["frontrow_refunds_open"]


async def measured(world: World) -> dict[str, float]:
    """The metrics without labels."""
    text = (await world.processor.http.get(f"{world.api.url}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if not sample.labels}
