"""One Frontrow process on real PostgreSQL and Redis that is started again whenever it has died."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from domain.base import DomainError
from domain.use_cases.user import SignUp, create_admin
from infra.app import composed
from infra.db.unit import Database
from infra.failpoints import Action
from infra.sandbox import running_sandbox
from infra.settings import Settings
from tests.client import HASH_KIB, PASSWORD, Api, Json
from tests.db_world import run_sql
from tests.faults.fork_server import Child, ForkServer
from tests.faults.reading import until_quiet
from tests.story.world import WEBHOOK_SECRET, Processor

T = TypeVar("T")

ADMIN = "admin@example.org"
PATIENCE_S = 60.0
# What waits for a lease, a back-off or a look at an open payment is brought forward, so that no test waits for it.
BROUGHT_FORWARD = ("outbox.due_at", "payment_intents.look_at", "payments.created_at")


@dataclass
class House:
    """The process, its neighbours, and the ways to disturb it."""

    settings: Json
    port: int
    server: ForkServer
    processor: Processor
    database: Database
    http: httpx.AsyncClient
    log: Path
    child: Child = field(init=False)
    deaths: int = 0

    @property
    def api(self) -> Api:
        """As nobody."""
        return Api(f"http://127.0.0.1:{self.port}", self.http)

    async def admin(self) -> Api:
        """Somebody who may organise."""
        query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
        answer = await self.api.ask(query, i={"email": ADMIN, "password": PASSWORD})
        return self.api.signed_in(answer["accessToken"])

    async def start(self, armed: dict[str, Action] | None = None) -> None:
        """A new process answers."""
        self.child = self.server.serve(self.settings, port=self.port, log=self.log, armed=armed)
        await self.until_ready()

    async def until_ready(self) -> None:
        """It answers, or has died."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.child.is_alive:
            with suppress(httpx.TransportError):
                if (await self.http.get(f"{self.api.url}/readyz")).status_code == 200:
                    return
            if time.monotonic() > deadline_s:
                raise TimeoutError(self.log.read_text()[-3000:])
            await asyncio.sleep(0.01)

    async def keep_alive(self) -> None:
        """For ever: a process that has ended is followed by a new one, and what the old one held is due."""
        while True:
            if not self.child.is_alive:
                self.deaths += 1
                await self.start()
                await self.bring_forward()
            await asyncio.sleep(0.005)

    async def bring_forward(self) -> None:
        """Half a minute passes for whatever waits and is not being worked on."""
        for column in BROUGHT_FORWARD:
            table, name = column.split(".")
            free = f"SELECT ctid FROM {table} FOR UPDATE SKIP LOCKED"
            await run_sql(
                self.database,
                f"UPDATE {table} SET {name} = {name} - INTERVAL '31 s' WHERE ctid = ANY(ARRAY({free}))",
            )

    async def until_quiet(self) -> None:
        """Nothing waits to be told, settled or refunded. Raises: TimeoutError with what still does."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                await until_quiet(self.database, patience_s=1.0)
                return
            except TimeoutError:
                if time.monotonic() > deadline_s:
                    raise
            await self.bring_forward()


async def let_holds_pass(database: Database, booking_ids: list[str]) -> None:
    """Their time to pay is over. May repeat."""
    named = ", ".join(f"'{booking_id}'" for booking_id in booking_ids)
    await run_sql(
        database,
        f"UPDATE bookings SET hold_until = clock_timestamp() - INTERVAL '1 s' "
        f"WHERE id IN ({named}) AND hold_until > clock_timestamp()",
    )


async def until_true(
    read: Callable[[], Awaitable[bool]], *, between: Callable[[], Awaitable[object]] | None = None
) -> None:
    """It holds. `between` is done every half second while it does not. Raises: TimeoutError."""
    deadline_s = time.monotonic() + PATIENCE_S
    next_s = time.monotonic() + 0.5
    while not await read():
        now_s = time.monotonic()
        if now_s > deadline_s:
            raise TimeoutError(f"still not so after {PATIENCE_S} s")
        if between is not None and now_s > next_s:
            await between()
            next_s = now_s + 0.5
        await asyncio.sleep(0.02)


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """What it answers once it does: for what belongs to the test itself, not to the people in it."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except (httpx.TransportError, DomainError, AssertionError, KeyError, ValueError):
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(0.05)


@asynccontextmanager
async def running_house(
    server: ForkServer, *, database_url: str, redis_url: str, log: Path, **facts: Any
) -> AsyncIterator[House]:
    """The house with an admin in it, kept alive until the block ends."""
    async with (
        httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=600)) as http,
        running_sandbox("127.0.0.1", 0) as processor_url,
        _reserved_port() as port,
    ):
        settings: Json = {
            "database_url": database_url,
            "redis_url": redis_url,
            "demo": False,
            "log_level": "error",
            # A busy machine is no bad day of the processor: only tests about those have less patience.
            "payment_timeout_ms": 5_000,
            # All of it is taken by a step that stands still until it is cancelled, where a process is told to stop.
            "shutdown_grace_s": 1,
            "stripe_api_key": "sk_test_tests",
            "stripe_api_base": processor_url,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "password_memory_kib": HASH_KIB,
        } | facts
        async with composed(Settings(**settings)) as frontrow:
            await create_admin(frontrow.deps, SignUp(ADMIN, PASSWORD, "Admin"))
        database = Database(database_url)
        processor = Processor(processor_url, http)
        await processor.control(
            webhook_url=f"http://127.0.0.1:{port}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET
        )
        house = House(settings, port, server, processor, database, http, log)
        await house.start()
        keeping = asyncio.create_task(house.keep_alive())
        try:
            yield house
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            house.child.kill()
            await house.child.ends()
            await database.close()


@asynccontextmanager
async def _reserved_port() -> AsyncIterator[int]:
    """A port of loopback that nobody else is given: a process that is started again keeps its address."""
    with socket.socket() as reservation:
        # On Linux a second socket with this option, as servers set it, may listen on the port all the same.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]
