"""The whole application as it is run for real: several API processes, a worker and a processor, and some are killed."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from sqlalchemy import func, select

from infra.db.tables import outbox
from infra.db.unit import Database
from tests.client import (
    PASSWORD,
    WATCH_BOOKING,
    WATCH_COUNT,
    WATCH_MINE,
    Api,
    Concert,
    Json,
    recorded,
    ticket_type,
    until_now,
)
from tests.db_world import run_sql
from tests.shell import Running, Shell
from tests.story.world import WEBHOOK_SECRET, Processor

pytestmark = pytest.mark.anyio
T = TypeVar("T")

BUYERS = 6
ROUNDS = 8
ADMIN = "admin@example.org"
# What a killed process had in hand waits for leases and for the processor's last word.
SETTLED_WITHIN_S = 60.0


@dataclass
class House:
    """The processes, and how to start more of them."""

    shell: Shell
    stack: ExitStack
    processor: Processor
    http: httpx.AsyncClient

    def serve(self, *arguments: str, **settings: str) -> tuple[Running, Api]:
        """An API process."""
        served = self.stack.enter_context(self.shell.running("serve", "--port", "0", *arguments, **settings))
        url = served.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
        return served, Api(url, self.http)

    def work(self) -> Running:
        """A worker process."""
        worker = self.stack.enter_context(self.shell.running("worker"))
        worker.hears("at work")
        return worker

    async def log_in(self, api: Api) -> Api:
        """The admin."""
        query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
        answer = await _until(lambda: api.ask(query, i={"email": ADMIN, "password": PASSWORD}), bool)
        return api.signed_in(answer["accessToken"])

    async def kill_at_work(self, worker: Running) -> None:
        """Killed while it has claimed events that nobody else may tell before its lease is over."""
        database = Database(self.shell.settings["database_url"])
        claimed = select(func.count()).select_from(outbox).where(outbox.c.worker.is_not(None))

        async def is_killed() -> bool:
            worker.process.send_signal(signal.SIGSTOP)
            async with database.readers.single() as statements:
                ((rows,),) = await statements.rows(claimed)
            worker.process.send_signal(signal.SIGKILL if rows else signal.SIGCONT)
            return bool(rows)

        await _until(is_killed, bool, nap_s=0.01)
        await database.close()

    async def half_a_minute_passes(self) -> None:
        """For what a killed process had in hand: its leases end, and what was never confirmed is given up."""
        database = Database(self.shell.settings["database_url"])
        for column in ("payments.created_at", "payment_intents.look_at", "outbox.due_at"):
            table, name = column.split(".")
            await run_sql(database, f"UPDATE {table} SET {name} = {name} - INTERVAL '30 s'")
        await database.close()

    async def every_promise_holds(self) -> None:
        """`frontrow verify` finds nothing broken, in the read model either."""

        async def verify() -> tuple[int, str]:
            result = await asyncio.to_thread(self.shell.run, "verify")
            return result.exit_code, result.output

        await _until(verify, lambda said: said[0] == 0, nap_s=1.0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def shell(postgres_database_url: str, redis_url: str, stack: ExitStack) -> Shell:
    """On an empty PostgreSQL and Valkey, with a processor of its own and an admin."""
    settings = {
        "database_url": postgres_database_url,
        "redis_url": redis_url,
        "demo": "0",
        "log_level": "error",
    }
    sandbox = stack.enter_context(Shell({}).running("sandbox", "--port", "0"))
    shell = Shell(
        settings
        | {
            "worker": "off",
            # A busy machine is no bad day of the processor.
            "payment_timeout_ms": "5000",
            "stripe_api_key": "sk_test_tests",
            "stripe_api_base": sandbox.hears(r"at (http://127\.0\.0\.1:\d+)")[1],
            "stripe_webhook_secret": WEBHOOK_SECRET,
        }
    )
    created = shell.run("create-admin", "--email", ADMIN, "--name", "Admin", given=PASSWORD)
    assert created.exit_code == 0, created.output
    return shell


@pytest.fixture
async def house(shell: Shell, stack: ExitStack) -> AsyncIterator[House]:
    """Nothing runs yet but the processor."""
    async with httpx.AsyncClient(timeout=30) as http:
        yield House(shell, stack, Processor(shell.settings["stripe_api_base"], http), http)


# ---------------------------------------------------------------- several processes, one house
async def test_two_api_processes_and_a_worker_are_one(house: House) -> None:
    """Booked at A, watched at B, paid at B, counted at A: each sees what the other did."""
    house.work()
    (_, a), (_, b) = house.serve(), house.serve()
    await house.processor.control(webhook_url=f"{a.url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET)
    concert = await (await house.log_in(a)).register()
    ann = await a.new_buyer()
    ann_at_b = b.signed_in(ann.token or "", ann.user_id)
    async with b.watching(WATCH_COUNT, id=concert.id) as counts, ann_at_b.watching(WATCH_MINE) as mine:
        assert (await counts.next())["available"] == 10
        booking = await ann.booked(concert, 2)
        assert (await mine.next())["bookingId"] == booking["id"]
        await counts.until(lambda now: now["held"] == 2)
        assert [row["bookingId"] for row in await ann_at_b.my_rows()] == [booking["id"]]
        async with ann.watching(WATCH_BOOKING, id=booking["id"]) as status:
            assert (await status.next())["version"] == booking["version"]
            paid = await ann_at_b.pay(booking["id"])
            assert paid["__typename"] == "PayBookingSuccess"
            await status.until(lambda now: now["status"] == "APPROVED")
            assert (await ann.my_rows())[0]["status"] == "APPROVED"
            # The live count at A is A's own writes and what the worker has told since.
            await _until(lambda: a.seats(concert), lambda seats: seats == (8, 0, 2))
            await counts.until(lambda now: now["sold"] == 2)
            await ann.cancel(booking["id"])
            ended = await status.until(lambda now: now["isFinal"])
            assert ended[-1]["paymentStatus"] == "REFUNDED"
            assert (await status.message())["type"] == "complete"
        await counts.until(lambda now: now["available"] == 10)
    assert (await ann.ask("mutation { logOut { ... on LogOutSuccess { ok } } }"))["ok"]
    # Here at once; the other process may remember the session for two seconds.
    assert (await ann.error("{ viewer { id } }"))["extensions"]["code"] == "UNAUTHENTICATED"
    started_s = time.monotonic()
    await _until(lambda: ann_at_b.post("{ viewer { id } }"), lambda answer: "UNAUTHENTICATED" in answer.text)
    assert time.monotonic() - started_s < 5
    await house.every_promise_holds()


async def test_a_killed_worker_and_a_killed_api_process_break_nothing(house: House) -> None:
    """In the middle of a rush: what was answered is still there, what was not is whole or absent, money follows."""
    worker = house.work()
    (process_a, a), (_, b) = house.serve(), house.serve()
    await house.processor.control(
        webhook_url=f"{a.url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET, latency_ms=[20, 120]
    )
    types = [ticket_type(capacity=100), ticket_type("Balcony", capacity=100)]
    concert = await (await house.log_in(b)).register(ticketTypes=types, maxTicketsPerUser=100)
    buyers = [Buyer(await b.new_buyer(), [a, b], concert) for _ in range(BUYERS)]
    async with recorded(b.watching(WATCH_COUNT, id=concert.id)) as counts:
        async with asyncio.TaskGroup() as rush:
            for buyer in buyers:
                rush.create_task(buyer.rush())
            await _until(lambda: _answered(buyers), lambda answers: answers > BUYERS * ROUNDS // 2)
            await house.kill_at_work(worker)
            await _until(lambda: _answered(buyers), lambda answers: answers > BUYERS * ROUNDS)
            process_a.process.kill()
            await asyncio.to_thread(house.work)
        await house.half_a_minute_passes()
        for buyer in buyers:
            await buyer.is_settled()
        kept = [status for buyer in buyers for status in buyer.settled.values()]
        wanted = (200 - len(kept) + kept.count("CANCELLED"), kept.count("AWAITING_PAYMENT"))
        await until_now(counts, lambda seen: (seen[-1]["available"], seen[-1]["held"]) == wanted)
    await _money_follows(house, Counter(kept))
    await house.every_promise_holds()


async def test_serve_with_two_workers_outlives_each_of_them(house: House) -> None:
    """One address, two processes: each killed in turn is replaced, and SIGTERM ends them all well."""
    house.work()
    served, api = house.serve("--workers", "2")
    concert = await (await house.log_in(api)).register()
    ann = await api.new_buyer()
    first = await _until(lambda: _serving(served), lambda processes: len(processes) == 2)
    for process in first:
        booking = await ann.booked(concert)
        process.kill()
        now = await _until(partial(_serving, served, without=process), lambda others: len(others) == 2)
        assert {row["bookingId"] for row in await _until(ann.my_rows, bool)} >= {booking["id"]}
    assert not set(now) & set(first)
    async with api.watching(WATCH_COUNT, id=concert.id) as counts:
        await counts.until(lambda now: now["held"] == 2)
        await ann.booked(concert)
        await counts.until(lambda now: now["held"] == 3)
    assert await asyncio.to_thread(served.ends) == 0
    assert await _serving(served) == []


# ---------------------------------------------------------------- helpers
@dataclass
class Buyer:
    """Somebody who sends again what was not answered, with the same key, to whoever still answers."""

    api: Api
    at: list[Api]
    concert: Concert

    def __post_init__(self) -> None:
        self.answers = 0
        self._keys = 0
        self.answered: dict[str, str] = {}
        self.settled: dict[str, str] = {}

    async def rush(self) -> None:
        """Book, pay two of three, cancel every other."""
        for number in range(ROUNDS):
            booked = await self._sent(partial(Api.book, concert=self.concert, line=number % 2))
            assert booked["__typename"] == "BookConcertSuccess", booked
            booking_id = booked["booking"]["id"]
            self.answered[booking_id] = "AWAITING_PAYMENT"
            if number % 3:
                paid = await self._sent(partial(Api.pay, booking_id=booking_id))
                assert paid["__typename"] in {"PayBookingSuccess", "PaymentPending", "PaymentDeferred"}, paid
                self.answered[booking_id] = paid["booking"]["status"]
            if number % 2:
                cancelled = await self._sent(partial(Api.cancel, booking_id=booking_id))
                assert cancelled["__typename"] == "CancelBookingSuccess", cancelled
                self.answered[booking_id] = "CANCELLED"

    async def _sent(self, mutation: Callable[..., Awaitable[Json]]) -> Json:
        """The answer, whoever gave it."""
        self._keys += 1
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while time.monotonic() < deadline:
            self.at.append(self.at.pop(0))
            try:
                answer = await mutation(self.at[0].signed_in(self.api.token or ""), key=f"key-{self._keys}")
            except httpx.TransportError:
                continue
            if answer.get("retryable"):
                await asyncio.sleep((answer["retryAfterMs"] or 100) / 1_000)
                continue
            self.answers += 1
            return answer
        raise AssertionError("nobody answers")

    async def is_settled(self) -> None:
        """Every booking came to rest where the last answer said, and there are no others."""

        async def rows() -> dict[str, Json]:
            return {row["bookingId"]: row for row in await self.api.my_rows(first=100)}

        at_rest = await _until(rows, lambda rows: not any(_is_moving(row) for row in rows.values()))
        self.settled = {booking_id: row["status"] for booking_id, row in at_rest.items()}
        assert self.settled.keys() == self.answered.keys()
        for booking_id, status in self.answered.items():
            if status not in {"PAYMENT_PENDING", "PAYMENT_DEFERRED"}:
                assert self.settled[booking_id] == status
            else:
                assert self.settled[booking_id] in {"APPROVED", "AWAITING_PAYMENT", "PAYMENT_DEFERRED"}


def _is_moving(row: Json) -> bool:
    return row["paymentStatus"] in {"PROCESSING", "UNKNOWN", "REFUND_PENDING"} or (
        row["status"] == "CANCELLED" and not row["isFinal"]
    )


async def _answered(buyers: list[Buyer]) -> int:
    return sum(buyer.answers for buyer in buyers)


async def _money_follows(house: House, kept: Counter[str]) -> None:
    """The processor keeps what was paid for bookings that stand, and gave back everything else it took."""
    captured = await house.processor.captured()
    held = [entry for entry in captured if entry["amount_refunded"] == 0]
    assert len(held) == kept["APPROVED"] > 0
    assert len({entry["metadata"]["booking_id"] for entry in held}) == len(held)
    assert all(entry["amount_refunded"] in (0, entry["amount"]) for entry in captured)


async def _serving(served: Running, *, without: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes behind one `serve` that answer requests, without the one that was killed."""
    try:
        children = psutil.Process(served.process.pid).children()
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if child != without and "spawn_main" in " ".join(child.cmdline())]


async def _until(
    read: Callable[[], Awaitable[T]], is_right: Callable[[T], bool], *, nap_s: float = 0.05
) -> T:
    """What is read once it is right and there is somebody to answer."""
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while True:
        try:
            value = await read()
        except (httpx.TransportError, psutil.Error) as error:
            assert time.monotonic() < deadline, error
        else:
            if is_right(value):
                return value
            assert time.monotonic() < deadline, value
        await asyncio.sleep(nap_s)
