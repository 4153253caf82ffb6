"""One running Frontrow with its processor, and the people who use it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
from starlette.applications import Starlette

from domain.use_cases.user import SignUp, create_admin
from infra.app import Frontrow, build_app
from infra.failpoints import Failpoints
from infra.sandbox import running_sandbox
from infra.settings import Settings
from infra.socket_protocol import SocketProtocol
from schema.common import decode_id
from tests.client import HASH_KIB, PASSWORD, Api, Json, until

WEBHOOK_SECRET = "whsec_of_the_tests_only"


@dataclass
class Processor:
    """The sandbox, and what can be asked of it."""

    url: str
    http: httpx.AsyncClient

    async def control(self, **wanted: Any) -> None:
        """Make it behave, or not."""
        answer = await self.http.post(f"{self.url}/_control", json=wanted)
        assert answer.status_code == 200, answer.text

    async def ledger(self) -> list[Json]:
        """Every intent it knows."""
        return list((await self.http.get(f"{self.url}/_ledger")).json())

    async def captured(self) -> list[Json]:
        """Every intent that took money."""
        return [entry for entry in await self.ledger() if entry["status"] == "succeeded"]

    async def refund(self, intent_id: str) -> None:
        """A refund made at the processor, not by us."""
        (await self.http.post(f"{self.url}/_refund/{intent_id}")).raise_for_status()

    async def fail_refund(self, intent_id: str) -> None:
        """The bank sends back a refund that was called through before."""
        (await self.http.post(f"{self.url}/_fail_refund/{intent_id}")).raise_for_status()


@dataclass
class World:
    """Everything a story needs."""

    app: Starlette
    api: Api
    admin: Api
    processor: Processor
    settings: Settings

    @property
    def frontrow(self) -> Frontrow:
        """The parts of the running process."""
        frontrow: Frontrow = self.app.state.frontrow
        return frontrow

    async def outbox_is_empty(self) -> None:
        """Every event has been told."""

        async def depth() -> int:
            return (await self.frontrow.database.outbox.lag())[0]

        await until(depth, lambda n: n == 0)


@asynccontextmanager
async def running_world(
    settings: Settings, *, without: frozenset[str] = frozenset(), failpoints: Failpoints | None = None
) -> AsyncIterator[World]:
    """Processor, API and an admin, until the block ends. `settings` name no processor."""
    async with (
        httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=600)) as http,
        running_sandbox("127.0.0.1", 0) as processor_url,
    ):
        complete = with_processor(settings, processor_url)
        async with running_app(complete, without=without, failpoints=failpoints) as (url, app):
            processor = Processor(processor_url, http)
            await processor.control(webhook_url=f"{url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET)
            api = Api(url, http)
            yield World(app, api, await an_admin(app, api), processor, complete)


def with_processor(settings: Settings, url: str) -> Settings:
    """The same, paying at the processor there."""
    fields = settings.model_dump(exclude_unset=True) | {
        "stripe_api_key": "sk_test_tests",
        "stripe_api_base": url,
        "stripe_webhook_secret": WEBHOOK_SECRET,
        "password_memory_kib": HASH_KIB,
    }
    return Settings(**fields)


@asynccontextmanager
async def running_app(
    settings: Settings, *, without: frozenset[str] = frozenset(), failpoints: Failpoints | None = None
) -> AsyncIterator[tuple[str, Starlette]]:
    """An API process's application on a real socket of this process."""
    app = build_app(settings, without=without, failpoints=failpoints)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws=SocketProtocol
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError("the application did not start")
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        await serving


def raw(global_id: str) -> str:
    """What the house itself calls the thing."""
    return decode_id(global_id)[1]


async def an_admin(app: Starlette, api: Api) -> Api:
    """Somebody who may organise, signed in."""
    email = f"admin-{uuid4().hex[:8]}@example.org"
    await create_admin(app.state.frontrow.deps, SignUp(email, PASSWORD, "Admin"))
    result = await api.ask(
        "mutation($input: LogInInput!) { logIn(input: $input) { ... on SignInSuccess { accessToken } } }",
        input={"email": email, "password": PASSWORD},
    )
    return api.signed_in(result["accessToken"])
