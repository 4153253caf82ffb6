"""A fresh sandbox and a webhook endpoint for each test."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.sandbox import running_sandbox
from infra.sandbox.server import serving

Json = dict[str, "object"]


class Processor:
    """The sandbox as a client of its HTTP API sees it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, *, key: str | None = None, **fields: str) -> httpx.Response:
        headers = {} if key is None else {"idempotency-key": key}
        return await self.http.post(f"/v1/{path}", data=fields, headers=headers)

    async def create(self, **fields: str) -> str:
        answer = await self.post("payment_intents", **{"amount": "4200", "currency": "eur"} | fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def confirm(self, intent_id: str, method: str, **fields: str) -> httpx.Response:
        return await self.post(f"payment_intents/{intent_id}/confirm", payment_method=method, **fields)

    async def paid(self) -> str:
        intent_id = await self.create()
        assert (await self.confirm(intent_id, "pm_card_visa")).status_code == 200
        return intent_id

    async def intent(self, intent_id: str) -> Json:
        answer = await self.http.get(f"/v1/payment_intents/{intent_id}", params={"expand[]": "latest_charge"})
        assert answer.status_code == 200
        intent: Json = answer.json()
        return intent

    async def control(self, **wishes: object) -> httpx.Response:
        return await self.http.post("/_control", json=wishes)

    async def ledger(self) -> list[Json]:
        entries: list[Json] = (await self.http.get("/_ledger")).json()
        return entries


@asynccontextmanager
async def running_processor(state_path: Path | None = None) -> AsyncIterator[Processor]:
    """A fresh sandbox and a client of it."""
    async with running_sandbox("127.0.0.1", 0, state_path=state_path) as url, client(url) as http:
        yield Processor(http)


def client(url: str) -> httpx.AsyncClient:
    """An HTTP client with an API key."""
    return httpx.AsyncClient(
        base_url=url, headers={"authorization": "Bearer sk_test_1"}, transport=httpx.AsyncHTTPTransport()
    )


@pytest.fixture
async def processor(anyio_backend: str) -> AsyncIterator[Processor]:
    """A sandbox that forgets everything after the test."""
    async with running_processor() as processor:
        yield processor


@dataclass
class Inbox:
    """A webhook endpoint; answers with `statuses` in turn, then with 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: "asyncio.Queue[tuple[bytes, str]]" = field(default_factory=asyncio.Queue)

    async def receive(self, request: Request) -> Response:
        self.requests.put_nowait((await request.body(), request.headers["stripe-signature"]))
        return Response(status_code=self.statuses.pop(0) if self.statuses else 200)

    async def next(self) -> Json:
        body, _ = await asyncio.wait_for(self.requests.get(), 10)
        event: Json = json.loads(body)
        return event


@pytest.fixture
async def inbox(anyio_backend: str) -> AsyncIterator[Inbox]:
    """A webhook endpoint on a socket of its own."""
    inbox = Inbox()
    app = Starlette(routes=[Route("/hook", inbox.receive, methods=["POST"])])
    async with serving(app, "127.0.0.1", 0) as url:
        inbox.url = f"{url}/hook"
        yield inbox


def error_of(answer: httpx.Response) -> tuple[int, str, str | None, str | None]:
    """Status, type, code and param of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["type"], error.get("code"), error.get("param")
