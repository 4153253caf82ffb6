"""Streams that sockets share: one execution for all who ask alike, and to each socket as if it were alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest
import structlog
from graphql import GraphQLObjectType, GraphQLOutputType, get_named_type
from websockets.asyncio.client import ClientConnection

from infra.app.http import SHARED
from infra.graphql_app import Limits
from infra.graphql_app.documents import Documents
from infra.graphql_app.requests import OperationRequest
from infra.telemetry import Metrics
from schema.root import build_schema
from tests.deaf import TEXT, Frame, deaf_client
from tests.toy_clients import (
    Json,
    acknowledged,
    code_of,
    receive,
    send,
    subscribe,
    toy_server,
)
from tests.toy_schema import PATIENCE_S, Serving, Stage, until

pytestmark = pytest.mark.anyio

COUNT = {"query": "subscription { count { version } }"}

# In which JSON needs an escape, or UTF-8 more than a byte.
IDS = ["1", '"', "\\", "\n\t\x00\x7f", "é", "\u2028", "🎻", '","payload":{}}', "}", "x" * 1_000]


@asynccontextmanager
async def watching(up: Serving, number: int, payload: Json = COUNT) -> AsyncIterator[list[ClientConnection]]:
    """So many sockets that have been told the count as it is."""
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(acknowledged(up)) for _ in range(number)]
        for ws in sockets:
            await subscribe(ws, "1", payload)
        for ws in sockets:
            assert (await receive(ws))["type"] == "next"
        yield sockets


def count_of(operation_id: str, version: int) -> Json:
    """The message with this count."""
    return {"type": "next", "id": operation_id, "payload": {"data": {"count": {"version": version}}}}


# ---------------------------------------------------------------- what is shared
async def test_a_change_is_executed_once_for_all_who_ask_alike() -> None:
    """Thirty sockets, one stream, one execution for each change; every socket is told both."""
    stage, metrics = Stage(), Metrics()
    async with toy_server(stage, metrics) as up, watching(up, 30) as sockets:
        assert metrics.registry.get_sample_value("frontrow_subscribers") == 30
        shown = stage.board.shown
        for version in (2, 3):
            stage.board.say(version)
            for ws in sockets:
                assert await receive(ws) == count_of("1", version)
        assert (stage.board.shown, stage.board.open) == (shown + 2, 1)


async def test_each_socket_is_told_under_its_own_id() -> None:
    """Whatever stands in it, first by the snapshot and then by a change."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        for operation_id in IDS:
            await subscribe(ws, operation_id, COUNT)
            assert await receive(ws) == count_of(operation_id, 1)
        stage.board.say(2)
        told = [await receive(ws) for _ in IDS]
        assert told == [count_of(operation_id, 2) for operation_id in IDS]


async def test_different_operations_of_one_document_are_different_streams() -> None:
    """Named by the client; what one of them selects is no concern of the other's."""
    query = "subscription A { count { version } } subscription B { count { dots } } query C { hello }"
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        for name, count in (("A", {"version": 1}), ("B", {"dots": ""}), ("A", {"version": 1})):
            operation_id = f"{name}{stage.board.opened}"
            await subscribe(ws, operation_id, {"query": query, "operationName": name})
            assert (await receive(ws))["payload"] == {"data": {"count": count}}
        await until(lambda: stage.board.open == 2)


async def test_an_idle_socket_with_shared_streams_is_one_task() -> None:
    """However many streams it has: what waits for each of them is an entry in a list."""
    stage = Stage()
    async with toy_server(stage) as up, watching(up, 1), AsyncExitStack() as stack:
        before = len(asyncio.all_tasks())
        for _ in range(10):
            deaf = await stack.enter_async_context(deaf_client(up.http))
            for operation_id in ("1", "2"):
                await deaf.subscribe(operation_id, COUNT["query"])
                assert await deaf.next() == Frame(TEXT, orjson.dumps(count_of(operation_id, 1)))
        await until(lambda: stage.board.open == 1)
        assert len(asyncio.all_tasks()) == before + 10


async def test_different_variables_are_different_streams() -> None:
    """Their order is no difference, nor are none at all and empty ones; too deep to compare is not shared."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    query = "subscription($s: Int, $r: JSON) { count(size: $s, rest: $r) { version dots } }"
    alike = ({"s": 2, "r": 1}, {"r": 1, "s": 2})
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        asked = [
            (alike[0], "..", 1),
            (alike[1], "..", 1),
            ({"s": 3, "r": 1}, "...", 2),
            ({}, "", 3),
            (None, "", 3),
            ({"r": deep}, "", 4),
            ({"r": deep}, "", 5),
        ]
        for number, (variables, dots, streams) in enumerate(asked):
            await subscribe(ws, str(number), {"query": query, "variables": variables})
            message = await receive(ws)
            assert message["payload"] == {"data": {"count": {"version": 1, "dots": dots}}}
            await until(lambda: stage.board.open == streams)  # noqa: B023 - awaited within the loop


DEPENDS = [
    "subscription { count { version seen { by } } }",
    "subscription { count { ...Part } } fragment Part on Count { seen { ... on SeenByViewer { by } } }",
    "subscription { ...Root } fragment Root on Subscription { count { seen { by } } }",
]


@pytest.mark.parametrize("query", DEPENDS)
async def test_what_may_depend_on_the_viewer_is_not_shared(query: str) -> None:
    """Each is shown what is theirs to see, out of a stream of their own."""
    stage = Stage()
    names = ["ann", "bob", "nobody"]
    async with toy_server(stage) as up, AsyncExitStack() as stack:
        for name in names[:2]:
            stage.sign_in(name)
        tokens = [{"authorization": f"Bearer {name}"} for name in names[:2]]
        sockets = [await stack.enter_async_context(acknowledged(up, token)) for token in [*tokens, {}]]
        for ws in sockets:
            await subscribe(ws, "1", {"query": query})
        for ws, name in zip(sockets, names, strict=True):
            seen = (await receive(ws))["payload"]["data"]["count"]["seen"]
            assert seen == {"by": name}
        assert stage.board.open == 3


async def test_what_does_not_depend_on_the_viewer_is_executed_as_nobody() -> None:
    """Signed in or not, all share it: what only some may see can't be in it."""
    stage = Stage()
    stage.sign_in("ann")
    query = "subscription { c: count { ...Part } } fragment Part on Count { version seen { __typename } }"
    async with (
        toy_server(stage) as up,
        acknowledged(up, {"authorization": "Bearer ann"}) as ann,
        acknowledged(up) as nobody,
    ):
        for ws in (ann, nobody):
            await subscribe(ws, "1", {"query": query})
            data = (await receive(ws))["payload"]["data"]
            assert data == {"c": {"version": 1, "seen": {"__typename": "SeenByViewer"}}}
        await until(lambda: stage.board.open == 1)


# ---------------------------------------------------------------- coming and going
async def test_a_late_joiner_is_told_the_state_of_now() -> None:
    """What is committed by then, though nobody has been told; whoever watched before hears of it once."""
    stage = Stage()
    async with toy_server(stage) as up, watching(up, 1) as (early,), acknowledged(up) as late:
        stage.board.committed = 5
        await subscribe(late, "1", COUNT)
        assert await receive(late) == count_of("1", 5)
        stage.board.announce(5)
        stage.board.say(6)
        assert await receive(late) == count_of("1", 6)
        assert [await receive(early), await receive(early)] == [count_of("1", 5), count_of("1", 6)]


async def test_one_leaves_and_the_others_stay() -> None:
    """By `complete`, by closing and by being cut off; the id is free at once, the last one ends the stream."""
    stage, metrics = Stage(), Metrics()
    async with toy_server(stage, metrics) as up:
        async with watching(up, 4) as (completing, closing, cut, staying):
            await send(completing, {"type": "complete", "id": "1"})
            await closing.close()
            cut.transport.abort()
            await until(lambda: metrics.registry.get_sample_value("frontrow_subscribers") == 1)
            stage.board.say(2)
            assert await receive(staying) == count_of("1", 2)
            await subscribe(completing, "1", COUNT)
            assert await receive(completing) == count_of("1", 2)
            stage.board.say(3)
            assert await receive(staying) == await receive(completing) == count_of("1", 3)
        await until(lambda: stage.board.open == 0)
        assert metrics.registry.get_sample_value("frontrow_subscribers") == 0


async def test_a_shared_stream_counts_among_the_operations_of_its_socket() -> None:
    """One more than allowed is RATE_LIMITED; one that was completed makes room, and an id in use is refused."""
    stage = Stage()
    async with toy_server(stage, max_subscriptions_per_socket=2) as up, watching(up, 1) as (ws,):
        await subscribe(ws, "2", COUNT)
        assert await receive(ws) == count_of("2", 1)
        await subscribe(ws, "3", COUNT)
        assert code_of(await receive(ws)) == ("error", "3", "RATE_LIMITED")
        await send(ws, {"type": "complete", "id": "2"})
        await subscribe(ws, "3", COUNT)
        assert await receive(ws) == count_of("3", 1)
        await subscribe(ws, "3", COUNT)
        await asyncio.wait_for(ws.wait_closed(), PATIENCE_S)
        assert (ws.close_code, ws.close_reason) == (4409, "Subscriber for 3 already exists")


async def test_each_clients_operation_is_counted_when_it_ends() -> None:
    """With its code, however few executions there were."""
    stage, metrics = Stage(), Metrics()

    def ended(code: str) -> float | None:
        labels = {"type": "subscription", "code": code}
        return metrics.registry.get_sample_value("frontrow_graphql_operations_total", labels)

    async with toy_server(stage, metrics) as up:
        async with watching(up, 3):
            pass
        await until(lambda: ended("CANCELLED") == 3)
        async with watching(up, 2) as sockets:
            stage.board.end()
            for ws in sockets:
                assert await receive(ws) == {"type": "complete", "id": "1"}
        assert (ended("OK"), ended("CANCELLED")) == (2, 3)


# ---------------------------------------------------------------- errors
async def test_a_refusal_to_open_reaches_everybody_who_asked() -> None:
    """As it reaches one alone; the sockets stay open, and ask again with success."""
    stage = Stage()
    stage.board.is_away = True
    async with toy_server(stage) as up, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(acknowledged(up)) for _ in range(3)]
        for ws in sockets:
            await subscribe(ws, "1", COUNT)
        for ws in sockets:
            assert code_of(await receive(ws)) == ("error", "1", "OVERLOADED")
        stage.board.is_away = False
        for ws in sockets:
            await subscribe(ws, "1", COUNT)
            assert await receive(ws) == count_of("1", 1)


async def test_a_shared_stream_that_breaks_ends_for_everybody() -> None:
    """Masked, and logged once under the id that all of them are given."""
    stage = Stage()
    async with toy_server(stage) as up, watching(up, 3) as sockets:
        with structlog.testing.capture_logs() as logs:
            stage.board.end(RuntimeError("redis://10.0.0.1 went away"))
            messages = [await receive(ws) for ws in sockets]
        assert [code_of(message) for message in messages] == [("error", "1", "INTERNAL")] * 3
        (line,) = logs
        ids = {message["payload"][0]["extensions"]["requestId"] for message in messages}
        assert ids == {line["request_id"]}
        await send(sockets[0], {"type": "ping"})
        assert await receive(sockets[0]) == {"type": "pong"}


# ---------------------------------------------------------------- the schema that sells
@pytest.mark.parametrize(
    ("root", "is_shared"),
    [
        ('ticketCount(concertId: "x")', True),
        ('bookingStatus(bookingId: "x")', False),
        ("myBookingUpdates", False),
    ],
)
def test_counts_are_shared_and_what_is_somebodys_own_is_not(root: str, is_shared: bool) -> None:
    """With all their fields: one that knew who asks would end the sharing of counts, and this test."""
    schema = build_schema()._schema
    assert schema.subscription_type is not None
    field = schema.subscription_type.fields[root.partition("(")[0]]
    query = f"subscription {{ {root} {_all_fields(field.type)} }}"
    operation = Documents(schema, Limits(), SHARED).find(OperationRequest(query, None, None, None))
    assert operation.is_shared is is_shared


def _all_fields(kind: GraphQLOutputType) -> str:
    named = get_named_type(kind)
    if not isinstance(named, GraphQLObjectType):
        return ""
    return f"{{ {' '.join(f'{name} {_all_fields(each.type)}' for name, each in named.fields.items())} }}"
