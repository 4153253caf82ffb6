"""People who do all there is to do while a server is away, and a judge of every single answer that they get."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import httpx

from infra.app import composed
from infra.db.unit import Database
from infra.settings import Settings
from schema.common import Kind as IdKind
from schema.common import encode_id
from tests.client import (
    CANCEL_CONCERT,
    GET_BOOKING,
    GET_COUNT,
    MY_PAGE,
    PASSWORD,
    UPDATE,
    WATCH_COUNT,
    Api,
    Concert,
    Json,
)
from tests.faults.buyers import OverHttp, RecordedBuyer, raw
from tests.faults.checker import Evidence, assert_healthy
from tests.faults.history import History, Mark, Outcome, Recording, Sample
from tests.faults.history import Operation as Recorded
from tests.faults.house import PATIENCE_S, insist, let_holds_pass, until_true
from tests.faults.reading import differences_in_the_end, ledger_of, read_final, sampled, until_quiet
from tests.faults.storm.crowd import METHODS, TICKETS_MAX, Account, Market
from tests.faults.storm.world import ADMIN, World
from tests.faults.streams import heard_count, recorded_count, up_to_date

SALES = 6
THINK_S = 0.4
LOOK_EVERY_S = 0.2
LOOKS = 2
# What everything at once, the processor's part included, takes a machine that is not busy.
WORK_S = 1.5
# All that may be answered by way of an error while a server is away.
TURNED_AWAY = {"RETRYABLE", "OVERLOADED"}
GET_CONCERT = "query($id: ID!) { concert(id: $id) { id ticketTypes { id } } }"


# Something to ask until it works.
Operation = Callable[[], Awaitable[object]]


# ---------------------------------------------------------------- every answer
@dataclass
class Judge:
    """Sees every request to the endpoint and its answer.

    `wrong`: what should never have been answered. `turned_away_s`: when those had asked who were told to come again.
    """

    asked: int = 0
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    turned_away_s: list[float] = field(default_factory=list)

    async def see(self, request: httpx.Request) -> None:
        """It is about to be sent."""
        self.asked += request.url.path == "/graphql"
        request.extensions["asked_s"] = time.monotonic()

    async def hear(self, response: httpx.Response) -> None:
        """It was answered."""
        if response.request.url.path != "/graphql":
            return
        self.answered += 1
        await response.aread()
        try:
            body = response.json()
            codes = [_code_of(error["extensions"]) for error in body.get("errors", ())]
            values = list((body.get("data") or {}).values())
        except (ValueError, AttributeError, KeyError):
            codes, values = ["this is no GraphQL"], []
        if codes and set(codes) <= TURNED_AWAY:
            self.turned_away_s.append(response.request.extensions["asked_s"])
        elif codes or response.status_code != 200 or not all(_is_right(value) for value in values):
            self.wrong.append(f"HTTP {response.status_code}: {response.text[:1_000]}")


def _code_of(facts: Json) -> str:
    """The error's code; one that doesn't say when to come again is another one."""
    code = str(facts["code"])
    return code if facts.get("retryAfterMs", 0) > 0 else f"{code} for ever"


def _is_right(value: Any) -> bool:
    """It is there, and a refusal for now says when to come again."""
    return isinstance(value, dict) and (not value.get("retryable") or value["retryAfterMs"] > 0)


# ---------------------------------------------------------------- many people
@dataclass
class Rush:
    """Buyers at all API processes, a subscriber at each, and the record of what they did, heard and read."""

    market: Market
    recordings: list[Recording] = field(default_factory=list)
    judge: Judge = field(default_factory=Judge)
    reads: list[Recording] = field(default_factory=list)
    looks: list[Sample] = field(default_factory=list)
    is_over: bool = False

    def done(self) -> int:
        """Operations that have ended well."""
        return sum(operation.outcome is Outcome.OK for operation in self.market.history.operations)

    async def goes_on(self, operations: int) -> None:
        """So many more have ended well. Raises: TimeoutError."""
        wanted = self.done() + operations

        async def are_done() -> bool:
            return self.done() >= wanted

        await until_true(are_done)

    async def person(self, account: Account, rng: random.Random) -> None:
        """Book, pay, cancel and look, until it is over: then nothing new is begun."""
        apis = account.apis[:]
        rng.shuffle(apis)
        buyer = RecordedBuyer(self.market.history, OverHttp(apis), account.user_id)
        while not self.is_over:
            concert_id = rng.choice(list(self.market.open))
            types = rng.sample(self.market.open[concert_id], rng.randint(1, 2))
            operation = await buyer.book(concert_id, {kind: rng.randint(1, TICKETS_MAX) for kind in types})
            if operation.seen is not None:
                booking_id = operation.seen.booking_id
                await self._find_on_page(rng.choice(apis), operation)
                if rng.random() < 0.6 and not self.is_over:
                    (method,) = rng.choices(list(METHODS), list(METHODS.values()))
                    operation = await buyer.pay(booking_id, method)
                    await self._find_on_page(rng.choice(apis), operation)
                if rng.random() < 0.7 and not self.is_over:
                    operation = await buyer.cancel(booking_id)
                    await self._find_on_page(rng.choice(apis), operation)
            await self._read(rng.choice(apis), concert_id)
            if not self.is_over:
                await asyncio.sleep(rng.uniform(0, 2 * THINK_S))

    async def look_on(self, apis: list[Api]) -> None:
        """One look after the other at the counts, while nothing but the database can answer.

        Each must be as new as anything that was answered before it.
        """
        for _ in range(LOOKS):
            for api, concert_id in product(apis, self.market.open):
                began_s = time.monotonic()
                seen = heard_count(await api.ask(GET_COUNT, id=encode_id(IdKind.CONCERT, concert_id)))
                self.looks.append(Sample(concert_id, began_s, seen.at_s, seen.version, seen.stock))

    async def _find_on_page(self, api: Api, operation: Recorded) -> None:
        """My page shows at least what the buyer was told of the booking."""
        page = await _value(api, MY_PAGE)
        if page is not None and operation.seen is not None:
            rows = [edge["node"] for edge in page["bookings"]["edges"]]
            versions = {raw(row["bookingId"]): row["version"] for row in rows}
            assert versions.get(operation.seen.booking_id, 0) >= operation.seen.version, (operation, page)

    async def _read(self, api: Api, concert_id: str) -> None:
        global_id = encode_id(IdKind.CONCERT, concert_id)
        count = await _value(api, GET_COUNT, id=global_id)
        if count is not None:
            # In a recording of its own: it must be a state that there was, the newest or not.
            self.reads.append(Recording("a read of the count", (), [heard_count(count)]))
        concert = await _value(api, GET_CONCERT, id=global_id)
        if concert is not None:
            types = [raw(each["id"]) for each in concert["ticketTypes"]]
            assert (concert["id"], types) == (global_id, self.market.open[concert_id])


async def _value(api: Api, query: str, **variables: str) -> Json | None:
    """What is answered, None for an error: the judge has seen it."""
    answer = (await api.post(query, **variables)).json()
    return None if "errors" in answer else dict(next(iter(answer["data"].values())))


@asynccontextmanager
async def a_rush(world: World, accounts: list[Account], *, keep_in: Path) -> AsyncIterator[Rush]:
    """It goes on until the block ends. Then all that was answered and is left was right, and every process lives."""
    children = [post.child for post in world.posts]
    rng, market = random.Random(12), Market(History())
    (admin, *_) = await world.admins()
    for _ in range(SALES):
        await market.add(admin, world.database, rng)
    rush = Rush(market)
    async with AsyncExitStack() as stack:
        looking = sampled(world.database_url, list(market.open), every_s=LOOK_EVERY_S)
        samples = await stack.enter_async_context(looking)
        for concert_id, api in zip(market.open, world.apis, strict=False):
            rush.recordings.append(await stack.enter_async_context(recorded_count([api], concert_id)))
        async with _judged(world.http, rush.judge), asyncio.TaskGroup() as people:
            for account in accounts:
                people.create_task(rush.person(account, random.Random(rng.random())))
            await rush.goes_on(len(accounts))
            yield rush
            rush.is_over = True
        await until_quiet(world.database)
        for recording in rush.recordings:
            await up_to_date(recording, world.database)
    evidence = Evidence(
        history=market.history,
        final=await read_final(world.database),
        ledger=ledger_of(await world.processor.ledger()),
        samples=samples,
        recordings=[*rush.recordings, *rush.reads],
        read_model=await _read_model(world),
    )
    assert_healthy(evidence, keep_in=keep_in)
    if rush.looks:
        assert_healthy(replace(evidence, samples=rush.looks), keep_in=keep_in)
    for recording in rush.recordings:
        assert [entry.mark for entry in recording.entries].count(Mark.CONNECTED) == 1, recording
    assert all(
        post.child is child and child.is_alive for post, child in zip(world.posts, children, strict=True)
    )


@asynccontextmanager
async def _judged(http: httpx.AsyncClient, judge: Judge) -> AsyncIterator[None]:
    """Every request is answered, and rightly."""
    http.event_hooks = {"request": [judge.see], "response": [judge.hear]}
    try:
        yield
    finally:
        http.event_hooks = {}
    assert judge.wrong == [], judge.wrong[:5]
    assert judge.answered == judge.asked, "somebody got no answer"


async def _read_model(world: World) -> list[str]:
    """Where it differs from the database in the end."""
    async with composed(Settings(**world.settings)) as frontrow:
        return await differences_in_the_end(frontrow)


# ---------------------------------------------------------------- everything there is, once
@dataclass
class Visitor:
    """Somebody at one API process who can do everything once, at any moment. `to_...`: bookings of `concert`."""

    api: Api
    database: Database
    admin: Api
    leaving: Api
    buyer: Api
    concert: Concert
    called_off: Concert
    to_pay: str
    to_cancel: str
    to_expire: str
    to_refund: str
    # Available, held by what was booked anew, sold by what was paid for.
    in_the_end: ClassVar[tuple[int, int, int]] = (8, 1, 1)

    @classmethod
    async def prepared(cls, api: Api, database: Database) -> "Visitor":
        """With accounts, concerts and bookings of their own."""
        admin, leaving, buyer = await _admin(api), await _admin(api), await api.new_buyer()
        concert, called_off = await admin.register(), await admin.register()
        booked = [(await buyer.booked(concert))["id"] for _ in range(4)]
        await _succeed(buyer.pay(booked[-1]))
        return cls(api, database, admin, leaving, buyer, concert, called_off, *booked)

    async def ask_back(self) -> None:
        """The money of the one that is paid for is being asked back."""
        await _succeed(self.buyer.cancel(self.to_refund))

    async def hear(self) -> None:
        """What `operations` do to the count is heard on a stream, once all is done."""
        seats = None
        async with asyncio.timeout(PATIENCE_S), self.api.watching(WATCH_COUNT, id=self.concert.id) as counts:
            while seats != self.in_the_end:
                with suppress(TimeoutError):  # nothing to say for a while
                    now = await counts.next()
                    seats = now["available"], now["held"], now["sold"]

    def operations(self) -> dict[str, Operation]:
        """Every kind there is by name, each to be repeated until it works."""
        ann, admin, concert_id = self.buyer, self.admin, self.concert.id
        change = {"concertId": concert_id, "title": "Day Trains"}
        close = {"concertId": self.called_off.id, "idempotencyKey": self.called_off.id}
        return {
            "readiness": self._ready,
            "signUp": self.api.new_buyer,
            "logIn": partial(_admin, self.api),
            "logOut": partial(self.leaving.ask, "mutation { logOut { __typename } }"),
            "registerConcert": admin.register,
            "updateConcert": lambda: _succeed(admin.ask(UPDATE, input=change)),
            "cancelConcert": lambda: _succeed(admin.ask(CANCEL_CONCERT, input=close)),
            "bookConcert": lambda: _succeed(ann.book(self.concert, key="book")),
            "payBooking": lambda: _succeed(ann.pay(self.to_pay, key="pay")),
            "cancelBooking": lambda: _succeed(ann.cancel(self.to_cancel, key="cancel")),
            "expiry": self._expire,
            "viewer": lambda: _find(ann, "{ viewer { id } }"),
            "myPage": lambda: _find(ann, MY_PAGE),
            "booking": lambda: _find(ann, GET_BOOKING, id=self.to_pay),
            "node": lambda: _find(ann, "query($id: ID!) { node(id: $id) { id } }", id=self.to_pay),
            "ticketCount": lambda: _find(ann, GET_COUNT, id=concert_id),
            "concert": lambda: _find(self.api, GET_CONCERT, id=concert_id),
            "concerts": lambda: _find(self.api, "{ concerts(first: 1) { edges { node { id } } } }"),
        }

    async def _expire(self) -> None:
        """The worker has seen that a hold has passed, and the others are done."""
        await let_holds_pass(self.database, [raw(self.to_expire)])
        assert await self.api.seats(self.concert) == self.in_the_end

    async def _ready(self) -> None:
        assert (await self.api.http.get(f"{self.api.url}/readyz")).status_code == 200


async def timed(operations: Mapping[str, Operation], *, world: World) -> dict[str, float]:
    """All at once, each asked until it works: how many seconds that took, less those that others took of the cores."""
    pids = [post.child.pid for post in world.posts]
    began_s, began = time.monotonic(), [_schedule(pid) for pid in pids]
    took_s: dict[str, float] = {}

    async def do(name: str, ask: Operation) -> None:
        await insist(ask)
        slowness = max(_slowness(before, _schedule(pid)) for before, pid in zip(began, pids, strict=True))
        took_s[name] = time.monotonic() - began_s - WORK_S * (slowness - 1)

    async with asyncio.TaskGroup() as tasks:
        for name, ask in operations.items():
            tasks.create_task(do(name, ask))
    return took_s


def _schedule(pid: int) -> tuple[int, int]:
    """For how long so far the process was on a core, and waited for one. Source: Linux, scheduler/sched-stats.rst."""
    statistics = Path(f"/proc/{pid}/schedstat")
    run_ns, waited_ns, *_ = map(int, statistics.read_text().split()) if statistics.exists() else (0, 0)
    return run_ns, waited_ns


def _slowness(before: tuple[int, int], now: tuple[int, int]) -> float:
    """How many times longer everything took the process than if it had a core to itself."""
    run_ns, waited_ns = now[0] - before[0], now[1] - before[1]
    return 1 + waited_ns / max(run_ns, 1)


async def _admin(api: Api) -> Api:
    query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
    return api.signed_in((await api.ask(query, i={"email": ADMIN, "password": PASSWORD}))["accessToken"])


async def _succeed(asked: Awaitable[Json]) -> None:
    result = await asked
    assert result["__typename"].endswith("Success"), result


async def _find(api: Api, query: str, **variables: str) -> None:
    assert await api.ask(query, **variables) is not None
