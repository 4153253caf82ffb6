"""Who runs in the storm: two API processes, two workers, PostgreSQL, Valkey and the processor, all of them real."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import make_url

from domain.base import DomainError
from domain.use_cases.user import SignUp, create_admin
from infra.app import composed
from infra.db.migrations import migrate
from infra.db.unit import Database
from infra.sandbox import running_sandbox
from infra.settings import Settings
from tests.client import HASH_KIB, PASSWORD, Api, Json
from tests.faults.fork_server import Child, ForkServer, running_fork_server
from tests.faults.proxy import Proxy, running_proxy
from tests.servers import PostgresServer, ValkeyServer, running_postgres, running_valkey
from tests.story.world import WEBHOOK_SECRET, Processor

ADMIN = "admin@example.org"
HOLD_S = 8
SETTINGS: Json = {
    "worker": "off",
    "demo": False,
    "hold_s": HOLD_S,
    "log_level": "error",
    "stripe_api_key": "sk_test_storm",
    "stripe_webhook_secret": WEBHOOK_SECRET,
    "password_memory_kib": HASH_KIB,
}
PATIENCE_S = 60.0
NAP_S = 0.02


@dataclass
class Post:
    """A place that a process fills, and that is filled again when it has died. Workers have no address."""

    name: str
    start: Callable[[], Child]
    url: str | None
    child: Child = field(init=False)
    is_left_empty: bool = False

    async def is_ready(self, http: httpx.AsyncClient) -> bool:
        """It answers; a worker's word is that it runs."""
        if self.url is None:
            return self.child.is_alive
        try:
            return (await http.get(f"{self.url}/readyz", timeout=2.0)).status_code == 200
        except httpx.TransportError:
            return False


@dataclass
class World:
    """Everything that can break. One API process and one worker reach their servers through proxies."""

    posts: list[Post]
    postgres: PostgresServer
    valkey: ValkeyServer
    to_postgres: Proxy
    to_valkey: Proxy
    processor: Processor
    database_url: str
    settings: Json
    database: Database
    http: httpx.AsyncClient

    @property
    def apis(self) -> list[Api]:
        """The API processes, as nobody."""
        return [Api(post.url, self.http) for post in self.posts if post.url is not None]

    @property
    def workers(self) -> list[Post]:
        """The worker processes."""
        return [post for post in self.posts if post.url is None]

    async def admins(self) -> list[Api]:
        """Somebody who may organise, at each API process."""
        query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
        token = (await self.apis[0].ask(query, i={"email": ADMIN, "password": PASSWORD}))["accessToken"]
        return [api.signed_in(token) for api in self.apis]

    async def keep_filled(self) -> None:
        """For ever: whoever has died is followed, unless the place is to stay empty for a while."""
        while True:
            for post in self.posts:
                if not post.child.is_alive and not post.is_left_empty:
                    post.child = post.start()
            await asyncio.sleep(NAP_S)

    async def until_well(self) -> float:
        """Every process answers and every API process reads a count from the database; how long that took, seconds.

        Raises: TimeoutError.
        """
        began_s = time.monotonic()
        for post in self.posts:
            while not await post.is_ready(self.http):
                if time.monotonic() - began_s > PATIENCE_S:
                    raise TimeoutError(f"{post.name} does not come back")
                await asyncio.sleep(NAP_S)
        return time.monotonic() - began_s


@asynccontextmanager
async def running_world(folder: Path, **facts: Any) -> AsyncIterator[World]:
    """All of it, until the block ends. `facts` are settings of every process."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(running_postgres(is_durable=True))
        valkey = stack.enter_context(running_valkey())
        server = stack.enter_context(running_fork_server())
        database_url = postgres.url("postgres")
        await migrate(database_url)
        http = await stack.enter_async_context(
            httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=600))
        )
        processor_url = await stack.enter_async_context(running_sandbox("127.0.0.1", 0))
        to_postgres = await stack.enter_async_context(running_proxy(postgres.port))
        to_valkey = await stack.enter_async_context(running_proxy(valkey.port))
        direct = (
            SETTINGS
            | facts
            | {
                "database_url": database_url,
                "redis_url": valkey.url,
                "stripe_api_base": processor_url,
            }
        )
        proxied = direct | {
            "database_url": make_url(database_url)
            .set(port=to_postgres.port)
            .render_as_string(hide_password=False),
            "redis_url": f"redis://127.0.0.1:{to_valkey.port}/0",
        }
        async with composed(Settings(**direct)) as frontrow:
            await create_admin(frontrow.deps, SignUp(ADMIN, PASSWORD, "Admin"))
        posts = [
            _api_post("api 1", server, direct, port=stack.enter_context(_reserved()), folder=folder),
            _api_post("api 2", server, proxied, port=stack.enter_context(_reserved()), folder=folder),
            _worker_post("worker 1", server, direct, folder=folder),
            _worker_post("worker 2", server, proxied, folder=folder),
        ]
        database, processor = Database(database_url), Processor(processor_url, http)
        stack.push_async_callback(database.close)
        lines = (to_postgres, to_valkey)
        world = World(posts, postgres, valkey, *lines, processor, database_url, direct, database, http)
        await world.processor.control(
            webhook_url=f"{posts[0].url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET, latency_ms=[5, 60]
        )
        for post in posts:
            post.child = post.start()
        keeping = asyncio.create_task(world.keep_filled())
        try:
            await world.until_well()
            yield world
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            for post in posts:
                post.child.kill()


def _api_post(name: str, server: ForkServer, settings: Json, *, port: "_Reserved", folder: Path) -> Post:
    def start() -> Child:
        return server.serve(settings, port=port.number, log=folder / f"{name}.log")

    return Post(name, start, f"http://127.0.0.1:{port.number}")


def _worker_post(name: str, server: ForkServer, settings: Json, *, folder: Path) -> Post:
    return Post(name, lambda: server.work(settings, log=folder / f"{name}.log"), None)


class _Reserved(socket.socket):
    """A port of loopback that nobody else is given, while this socket is open."""

    @property
    def number(self) -> int:
        """The port."""
        port: int = self.getsockname()[1]
        return port


def _reserved() -> _Reserved:
    reservation = _Reserved()
    # On Linux a second socket with this option, as servers set it, may listen on the port all the same.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


async def until_answering(world: World) -> float:
    """PostgreSQL answers; how long that took, seconds. Raises: TimeoutError."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < PATIENCE_S:
        with suppress(DomainError):
            await world.database.reads.now()
            return time.monotonic() - began_s
        await asyncio.sleep(NAP_S)
    raise TimeoutError("PostgreSQL does not come back")
