"""What a test says to the toy: requests, and messages of graphql-transport-ws."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from infra.graphql_app import Limits
from infra.telemetry import Metrics
from tests.toy_schema import PATIENCE_S, Serving, Stage, serving, toy_app

JSON = "application/json"
RESPONSE_JSON = "application/graphql-response+json"
HELLO = {"query": "{ hello }"}

PROTOCOL = Subprotocol("graphql-transport-ws")
INIT = {"type": "connection_init"}
TICKS = {"query": "subscription { ticks }"}
Json = dict[str, Any]


# ---------------------------------------------------------------- over HTTP
@asynccontextmanager
async def toy(stage: Stage | None = None, **limits: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Serving]]:
    """A client of a running toy; its base address is the endpoint."""
    async with (
        serving(toy_app(stage or Stage(), Limits(**limits))) as up,
        httpx.AsyncClient(base_url=up.http, timeout=PATIENCE_S) as client,
    ):
        yield client, up


async def post(client: httpx.AsyncClient, body: object, accept: str = JSON, **headers: str) -> httpx.Response:
    """One operation by POST."""
    return await client.post("/graphql", json=body, headers={"accept": accept, **headers})


def codes(response: httpx.Response) -> list[str]:
    """The codes of all errors, each of which carries the response's request id."""
    errors = response.json()["errors"]
    assert {error["extensions"]["requestId"] for error in errors} == {response.headers["x-request-id"]}
    return [error["extensions"]["code"] for error in errors]


# ---------------------------------------------------------------- over a websocket
@asynccontextmanager
async def toy_server(
    stage: Stage | None = None, metrics: Metrics | None = None, **limits: Any
) -> AsyncIterator[Serving]:
    """A running toy."""
    async with serving(toy_app(stage or Stage(), Limits(**limits), metrics)) as up:
        yield up


def connect(up: Serving, *protocols: Subprotocol, **headers: str) -> websockets.connect:
    """A socket, not initialised yet."""
    return websockets.connect(
        up.ws,
        subprotocols=list(protocols or (PROTOCOL,)),
        additional_headers=headers,
        origin=headers.pop("origin", None),  # type: ignore[arg-type]
        compression=None,
    )


async def send(ws: ClientConnection, message: object) -> None:
    """One message, as JSON in a text frame unless it is text or bytes already."""
    await ws.send(message if isinstance(message, str | bytes) else json.dumps(message))


async def receive(ws: ClientConnection) -> Json:
    """The next message, which came in a text frame."""
    text = await asyncio.wait_for(ws.recv(), PATIENCE_S)
    assert isinstance(text, str), "a binary frame"
    message: Json = json.loads(text)
    return message


async def subscribe(ws: ClientConnection, operation_id: str, payload: Json) -> None:
    """Ask for an operation."""
    await send(ws, {"type": "subscribe", "id": operation_id, "payload": payload})


async def close_code(ws: ClientConnection) -> tuple[int | None, str | None]:
    """How the server closed, whatever it still sent before."""
    with pytest.raises(websockets.ConnectionClosed):
        while True:
            await asyncio.wait_for(ws.recv(), PATIENCE_S)
    return ws.close_code, ws.close_reason


@asynccontextmanager
async def acknowledged(up: Serving, payload: Json | None = None) -> AsyncIterator[ClientConnection]:
    """A socket that has been acknowledged."""
    async with connect(up) as ws:
        await send(ws, INIT if payload is None else INIT | {"payload": payload})
        assert await receive(ws) == {"type": "connection_ack"}
        yield ws


def open_sockets(metrics: Metrics) -> float | None:
    """How many sockets the server holds."""
    return metrics.registry.get_sample_value("frontrow_open_sockets")


def next_of(operation_id: str, data: Json) -> Json:
    """The message that carries this data."""
    return {"type": "next", "id": operation_id, "payload": {"data": data}}


def code_of(message: Json) -> tuple[str, str, str]:
    """Type and id of a message and the code of its one error."""
    errors = message["payload"] if message["type"] == "error" else message["payload"]["errors"]
    (error,) = errors
    assert len(error["extensions"]["requestId"]) == 32
    return message["type"], message["id"], error["extensions"]["code"]
