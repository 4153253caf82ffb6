"""A worker finds a concert's stock broken: nothing more of it is sold, and everything else goes on."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from domain.base import ConcertId
from domain.use_cases.halting import resume_sales
from infra.db.promises import PROMISES
from infra.settings import WorkerPlace
from tests.client import Concert, ticket_type, until
from tests.db_world import run_sql
from tests.story.conftest import NewWorld
from tests.story.world import World, raw

pytestmark = pytest.mark.anyio


async def metric(world: World, name: str, **labels: str) -> float | None:
    """One value of `/metrics`."""
    text = (await world.processor.http.get(f"{world.api.url}/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (sample.name, sample.labels) == (f"frontrow_{name}", labels):
                return sample.value
    return None


async def break_stock(world: World, concert: Concert, *, by: int) -> None:
    """So many more seats are held than anybody holds."""
    sql = f"UPDATE sale_stock SET held = held + {by} WHERE ticket_type_id = :kind"
    await run_sql(world.frontrow.database, sql, kind=raw(concert.types[0]))


async def until_halted(world: World) -> None:
    """The worker has come by."""
    await until(lambda: metric(world, "sales_halted"), lambda halted: halted == 1)


async def resumed(world: World, concert: Concert) -> bool:
    """What `frontrow resume-sales` does, and whether it did."""
    return not await resume_sales(world.frontrow.deps, ConcertId(raw(concert.id)))


async def test_broken_stock_stops_its_concert_and_nothing_else(new_world: NewWorld) -> None:
    """Bookings are refused for now; paying, cancelling and other concerts go on; then the same key books."""
    async with new_world(verify_pause_s=0.05) as world:
        broken = await world.admin.register(ticketTypes=[ticket_type(capacity=10)])
        whole = await world.admin.register()
        ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
        owned, held = await ann.booked(broken, 2), await bob.booked(broken, 3)
        assert (await ann.pay(owned["id"]))["__typename"] == "PayBookingSuccess"

        await break_stock(world, broken, by=1)
        await until_halted(world)
        refused = await bob.book(broken, key="again")
        window = {name: refused.pop(name) for name in ("salesOpenAt", "salesCloseAt", "message")}
        assert all(window.values())
        assert refused == {
            "__typename": "SalesClosedProblem",
            "code": "SALES_HALTED",
            "retryable": True,
            "retryAfterMs": 30_000,
        }
        assert await metric(world, "broken_promises", promise="stock_sums") == 1
        assert (await bob.booked(whole))["status"] == "AWAITING_PAYMENT"
        assert (await bob.pay(held["id"]))["booking"]["status"] == "APPROVED"
        assert (await ann.cancel(owned["id"]))["booking"]["status"] == "CANCELLED"
        assert await ann.seats(broken) == (6, 1, 3)

        assert not await resumed(world, broken)
        assert (await bob.book(broken, key="again"))["code"] == "SALES_HALTED"
        await break_stock(world, broken, by=-1)
        async with ann.watching(
            "subscription($id: ID!) { ticketCount(concertId: $id) { available } }", id=broken.id
        ) as seats:
            assert await resumed(world, broken)
            assert (await seats.until(lambda seen: seen["available"] == 7))[-1] == {"available": 7}
        assert (await bob.book(broken, key="again"))["__typename"] == "BookConcertSuccess"
        assert await ann.seats(broken) == (6, 1, 3)
        await until(lambda: metric(world, "broken_promises", promise="stock_sums"), lambda count: count == 0)
        assert await metric(world, "sales_halted") == 0


async def test_changed_concert_stays_halted(new_world: NewWorld) -> None:
    """A new title is no proof of a right stock; calling it off is told in place of the halt."""
    async with new_world(verify_pause_s=0.05) as world:
        concert = await world.admin.register()
        await break_stock(world, concert, by=1)
        await until_halted(world)
        changed = await world.admin.ask(_RENAME, input={"concertId": concert.id, "title": "Day Trains"})
        assert changed["concert"] == {"title": "Day Trains"}
        ann = await world.api.new_buyer()
        assert (await ann.book(concert))["code"] == "SALES_HALTED"
        await world.admin.ask(_CALL_OFF, input={"concertId": concert.id})
        assert (await ann.book(concert))["code"] == "CONCERT_CANCELLED"


async def test_what_was_never_checked_shows(new_world: NewWorld) -> None:
    """Without a worker no promise has a number, and their age is infinite; with one all are 0 and young."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        assert await metric(world, "promises_age_seconds") == float("inf")
        assert await metric(world, "broken_promises", promise="stock_sums") is None
        async with world.frontrow.worker.running():
            await until(
                lambda: metric(world, "promises_age_seconds"), lambda age: age is not None and age < 60
            )
        for promise in PROMISES:
            assert await metric(world, "broken_promises", promise=promise.name) == 0


_RENAME = """mutation($input: UpdateConcertInput!) { updateConcert(input: $input) {
  ... on UpdateConcertSuccess { concert { title } } } }"""
_CALL_OFF = "mutation($input: CancelConcertInput!) { cancelConcert(input: $input) { __typename } }"
