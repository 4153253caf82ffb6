"""More than can be done is refused at once, and what hangs in one place starves no other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from domain.base import Overloaded
from infra.db.engine import DatabaseLimits
from infra.db.tables import payment_intents
from infra.db.unit import Database
from infra.sandbox import running_sandbox
from infra.settings import Settings, WorkerPlace
from tests.client import BOOK, GET_COUNT, MY_PAGE, Api, Concert, Json, ticket_type, until
from tests.story.crowd import a_crowd, assert_promises_hold, at_once, told
from tests.story.world import Processor, World, an_admin, raw, running_app, running_world, with_processor

pytestmark = pytest.mark.anyio

# Two at work and five in the queue.
POOL = 2
QUEUE = 5


@pytest.fixture
async def world(postgres_database_url: str) -> AsyncIterator[World]:
    """A process that soon has enough to do."""
    settings = Settings(
        database_url=postgres_database_url,
        demo=False,
        payment_timeout_ms=20_000,
        db_pool_size=POOL,
        db_pool_queue_max=QUEUE,
        worker=WorkerPlace.OFF,
    )
    async with running_world(settings) as running:
        yield running


# ---------------------------------------------------------------- bookings that pile up
async def test_a_booking_too_many_is_refused_at_once(world: World) -> None:
    """While others wait for a commit it hears OVERLOADED; they get their seats, and so does it, under the same key."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=20)])
    quiet = await world.admin.register()
    ann = await world.api.new_buyer()
    async with a_crowd(world, 1 + QUEUE) as people, piled_up(world, concert, people) as waiting:
        for _ in range(3):
            assert is_overloaded(await ann.book(concert, key="k"))
        # Who it is has not even been looked up, which is what makes a refusal cheap.
        assert is_overloaded(await world.api.signed_in("nobody's").book(concert))
        # Nobody else's concert is kept from selling.
        await ann.cancel((await ann.booked(quiet))["id"])
        assert not any(task.done() for task in waiting)
    answers = [task.result() for task in waiting]
    assert told(answers) == {"BookConcertSuccess": 1 + QUEUE}
    booked = await ann.book(concert, key="k")
    assert booked["__typename"] == "BookConcertSuccess"
    assert (await ann.book(concert, key="k"))["booking"]["id"] == booked["booking"]["id"]
    assert await ann.seats(concert) == (20 - 2 - QUEUE, 2 + QUEUE, 0)
    await assert_promises_hold(world)


async def test_one_request_takes_one_place(world: World) -> None:
    """Whatever its variables name: nobody has asked yet who sent it, and others would find no place."""
    concert = await world.admin.register()
    many = {f"x{number}": {"concertId": concert.id} for number in range(10 * QUEUE)}
    for _ in range(2):  # the first time the document is not known yet
        error = await world.api.signed_in("nobody's").error(
            BOOK, input={"concertId": concert.id, "items": []}, **many
        )
        assert error["extensions"]["code"] == "UNAUTHENTICATED"


async def test_with_no_connection_to_be_had_a_booking_is_refused_at_once(world: World) -> None:
    """Bookings of many concerts wait for a connection in a queue of bounded length; so do cancellations."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=20)])
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    others = [await world.admin.register() for _ in range(QUEUE)]
    database = world.frontrow.database
    async with AsyncExitStack() as taken:
        for _ in range(POOL):
            await taken.enter_async_context(database.steady_writers.transaction())
        waiting = [asyncio.create_task(ann.book(other)) for other in others]
        await until(lambda: _now(database.writers.waiting), lambda length: length == QUEUE)
        assert is_overloaded(await ann.book(concert))
        assert is_overloaded(await ann.cancel(booking["id"]))
        # Who it is has not even been looked up, which is what makes a refusal cheap.
        assert is_overloaded(await world.api.signed_in("nobody's").book(concert))
        assert not any(task.done() for task in waiting)
    assert told(await asyncio.gather(*waiting)) == {"BookConcertSuccess": QUEUE}


async def test_browsing_goes_on_while_bookings_pile_up(world: World) -> None:
    """Counts, my page and the catalogue are answered, and the metrics tell how many wait."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=20)])
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    async with a_crowd(world, 1 + QUEUE) as people, piled_up(world, concert, people) as waiting:
        for _ in range(5):
            assert await ann.seats(concert) == (19, 1, 0)
            assert [row["bookingId"] for row in await ann.my_rows()] == [booking["id"]]
            assert (await world.api.ask("{ concerts { totalCount } }"))["totalCount"] == 1
        others = ("settlements", "bookings", "payments", "reads", "begun")
        lengths = {"commits": QUEUE, **dict.fromkeys(others, 0)}
        assert await waiting_by_queue(world) == lengths
        assert (await world.api.http.get(f"{world.api.url}/readyz")).status_code == 200
        assert not any(task.done() for task in waiting)


async def test_a_read_too_many_is_refused_at_once(world: World) -> None:
    """An error with the time to wait, and 503 where nobody even knows who asks; the catalogue is read all the same."""
    concert = await world.admin.register()
    database = world.frontrow.database
    async with a_crowd(world, 1) as (ann,), AsyncExitStack() as taken:
        await ann.my_rows()  # who asks is remembered for a moment
        for _ in range(POOL):
            await taken.enter_async_context(database.steady_readers.transaction())
        waiting = [asyncio.create_task(ann.my_rows()) for _ in range(QUEUE)]
        await until(lambda: _now(database.readers.waiting), lambda length: length == QUEUE)
        unknown = world.api.signed_in("not-remembered")
        for who, status in ((ann, 200), (unknown, 503)):
            for query, variables in ((GET_COUNT, {"id": concert.id}), (MY_PAGE, {})):
                answer = await who.post(query, **variables)
                (error,) = answer.json()["errors"]
                assert (answer.status_code, error["extensions"]["code"]) == (status, "OVERLOADED")
                assert error["extensions"]["retryAfterMs"] >= 1_000
                assert ("retry-after" in answer.headers) == (status == 503)
        assert (await world.api.ask("{ concerts { totalCount } }"))["totalCount"] == 1
        assert not any(task.done() for task in waiting)
        await taken.aclose()
        assert await asyncio.gather(*waiting) == [[]] * QUEUE


async def test_what_was_begun_is_never_refused(database_url: str) -> None:
    """With every queue full, settling, expiring and relaying wait for their turn, which comes before a long queue's."""
    database = Database(database_url, limits=DatabaseLimits(writers=1, queue_max=2))
    served: list[str] = []

    async def write(name: str) -> None:
        async with database.write(name):
            served.append(name)

    async with database.write("book"):
        tasks = [asyncio.create_task(write(name)) for name in ("book", "cancel", "pay.begin", "webhook.find")]
        await until(lambda: _now(database.waiting()), lambda now: now["bookings"] == now["payments"] == 2)
        for name in ("book", "log_in", "pay.begin"):
            with pytest.raises(Overloaded):
                await write(name)
        tasks += [asyncio.create_task(write(name)) for name in ("settle", "expire", "pay.send")]
        tasks.append(asyncio.create_task(_claim(database, served)))
        await until(lambda: _now(database.waiting()["begun"]), lambda waiting: waiting == 4)
    await asyncio.gather(*tasks)
    assert sorted(served[:3]) == ["book", "pay.begin", "settle"]
    assert [name for name in served if name in ("settle", "expire", "pay.send", "relay")] == [
        "settle",
        "expire",
        "pay.send",
        "relay",
    ]
    assert len(served) == 8
    await database.close()


# ---------------------------------------------------------------- payments that hang
HANGING = 100
LATER = 50
PLACES = 130


async def test_payments_that_hang_starve_nobody(postgres_database_url: str) -> None:
    """A hundred wait for the processor and more come, who are told to pay later; all the while people book and look."""
    settings = {"payment_timeout_ms": 60_000, "payment_max_in_flight": HANGING, "max_in_flight": PLACES}
    async with hanging_world(postgres_database_url, **settings) as (world, let_go):
        concert = await world.admin.register(ticketTypes=[ticket_type(capacity=HANGING + 2 * LATER)])
        async with a_crowd(world, HANGING + LATER) as people:
            bookings = [await person.booked(concert) for person in people]
            payers = list(zip(people, bookings, strict=True))
            await world.processor.control(mode="hang")
            hanging = [asyncio.create_task(who.pay(booking["id"])) for who, booking in payers[:HANGING]]
            await until(lambda: intents_asked_for(world), lambda number: number == HANGING)
            for first in range(HANGING, HANGING + LATER, 10):
                some = payers[first : first + 10]
                later = await at_once(who.pay(booking["id"]) for who, booking in some)
                assert told(later) == {"PaymentDeferred": 10}
                assert told(await at_once(who.book(concert) for who, _ in some)) == {"BookConcertSuccess": 10}
                counts = await at_once(who.count(concert) for who, _ in some)
                assert {now["held"] for now in counts} == {first + LATER + 10}
                assert {len(rows) for rows in await asyncio.gather(*(who.my_rows() for who, _ in some))} == {
                    2
                }
            assert not any(task.done() for task in hanging)
            await let_go()
            assert told(await asyncio.gather(*hanging)) == {"PaymentDeferred": HANGING}
        assert await world.api.seats(concert) == (0, HANGING + 2 * LATER, 0)
        await assert_promises_hold(world)


async def test_authentications_taken_up_while_the_processor_hangs_starve_nobody(
    postgres_database_url: str,
) -> None:
    """Another card means that the old intent is cancelled first: that too waits in a few places only."""
    settings = {"payment_timeout_ms": 60_000, "payment_max_in_flight": 3, "max_in_flight": 10}
    async with hanging_world(postgres_database_url, **settings) as (world, let_go):
        concert = await world.admin.register(ticketTypes=[ticket_type(capacity=100)])
        async with a_crowd(world, 8) as people:
            bookings = [await person.booked(concert) for person in people]
            for person, booking in zip(people, bookings, strict=True):
                asked = await person.pay(booking["id"], "pm_card_authenticationRequired")
                assert asked["__typename"] == "PaymentActionRequired"
            await world.processor.control(mode="hang")
            calls = [asyncio.create_task(p.pay(b["id"])) for p, b in zip(people, bookings, strict=True)]
            done, hanging = set[Any](), set(calls)
            while len(hanging) > 3:
                more, hanging = await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            assert told(task.result() for task in done) == {"PAYMENT_IN_PROGRESS": 5}
            ben = await world.api.new_buyer()
            for _ in range(3):
                await ben.booked(concert)
                await ben.my_rows()
            assert not any(task.done() for task in hanging)
            await let_go()
            assert told(await asyncio.gather(*hanging)) == {"PAYMENT_IN_PROGRESS": 3}


# ---------------------------------------------------------------- helpers
@asynccontextmanager
async def piled_up(
    world: World, concert: Concert, people: list[Api]
) -> AsyncIterator[list["asyncio.Task[Json]"]]:
    """Everybody books a concert whose sale is locked until the block ends, so that they wait; then each is answered."""
    ours = Database(world.settings.database_url)
    async with ours.write("look") as unit:
        assert await unit.sales.lock(raw(concert.id))  # type: ignore[arg-type]
        waiting = [asyncio.create_task(person.book(concert)) for person in people]
        await until(lambda: _now(world.frontrow.commits.waiting), lambda length: length == QUEUE)
        yield waiting
    await asyncio.gather(*waiting)
    await ours.close()


@asynccontextmanager
async def hanging_world(database_url: str, **facts: Any) -> AsyncIterator[tuple[World, Any]]:
    """A world, and how to let go whatever hangs at its processor, which is gone then."""
    settings = Settings(database_url=database_url, demo=False, worker=WorkerPlace.OFF, **facts)
    async with httpx.AsyncClient(timeout=90) as http, AsyncExitStack() as until_let_go:
        processor_url = await until_let_go.enter_async_context(running_sandbox("127.0.0.1", 0))
        complete = with_processor(settings, processor_url)
        async with running_app(complete) as (url, app):
            api = Api(url, http)
            processor = Processor(processor_url, http)
            yield World(app, api, await an_admin(app, api), processor, complete), until_let_go.aclose


def is_overloaded(answer: Json) -> bool:
    """The union's own member, which tells when to come back."""
    is_named = (answer["__typename"], answer["code"]) == ("OverloadedProblem", "OVERLOADED")
    return is_named and answer["retryable"] and answer["retryAfterMs"] >= 1_000


def book_input(concert: Concert) -> Json:
    """The variables of BOOK."""
    return {"input": {"concertId": concert.id, "items": [{"ticketTypeId": concert.types[0], "quantity": 1}]}}


async def waiting_by_queue(world: World) -> dict[str, float]:
    """As the metrics show it."""
    text = (await world.api.http.get(f"{world.api.url}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {each.labels["queue"]: each.value for each in samples if each.name == "frontrow_waiting"}


async def intents_asked_for(world: World) -> int:
    """How many requests have the turn to create an intent."""
    asked = select(func.count()).where(payment_intents.c.creating_until.is_not(None))
    async with world.frontrow.database.readers.single() as statements:
        ((number,),) = await statements.rows(asked)
    return int(number)


async def _now(value: Any) -> Any:
    return value


async def _claim(database: Database, served: list[str]) -> None:
    await database.outbox.lag()
    served.append("relay")
