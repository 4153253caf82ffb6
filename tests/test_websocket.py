"""graphql-transport-ws on a real socket: exact close codes and exact messages."""

import asyncio
import json

import httpx
import pytest
import structlog
import websockets
from websockets.typing import Subprotocol

from infra.telemetry import Metrics
from tests.toy_clients import (
    INIT,
    PROTOCOL,
    TICKS,
    Json,
    acknowledged,
    close_code,
    code_of,
    connect,
    next_of,
    open_sockets,
    receive,
    send,
    subscribe,
    toy_server,
)
from tests.toy_schema import PATIENCE_S, Stage, until

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- handshake
async def test_only_graphql_transport_ws_is_spoken() -> None:
    """4406 for the old protocol, for an unknown one and for none."""
    async with toy_server() as up:
        for protocols in (["graphql-ws"], ["soap"], None):
            async with websockets.connect(up.ws, subprotocols=protocols, compression=None) as ws:  # type: ignore[arg-type]
                assert await close_code(ws) == (4406, "Subprotocol not acceptable")
        async with connect(up, Subprotocol("graphql-ws"), PROTOCOL) as ws:
            assert ws.subprotocol == PROTOCOL


async def test_a_foreign_origin_is_refused_at_the_handshake() -> None:
    """403 for pages of other origins; listed ones, our own page and clients that are no browser may connect."""
    async with toy_server(allowed_origins=("https://shop.example",)) as up:
        for origin in ("https://evil.example", "null", "https://shop.example.evil.example"):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(up, origin=origin)
            assert refused.value.response.status_code == 403
        for origin in ("https://shop.example", "https://SHOP.example:443", f"http://{up.authority}"):
            async with connect(up, origin=origin):
                pass
        async with connect(up):
            pass
    async with toy_server() as up, connect(up, origin="https://anywhere.example"):
        pass


async def test_beyond_the_limit_of_sockets_one_is_told_to_come_back() -> None:
    """1013 at once; room again as soon as another has gone."""
    metrics = Metrics()
    async with toy_server(metrics=metrics, max_sockets=1) as up:
        async with acknowledged(up):
            assert open_sockets(metrics) == 1
            async with connect(up) as ws:
                assert await close_code(ws) == (1013, "Try again later")
        await until(lambda: open_sockets(metrics) == 0)
        async with acknowledged(up):
            pass


# ---------------------------------------------------------------- initialisation
async def test_anonymous_without_a_payload_with_null_and_with_an_empty_one() -> None:
    """All three are acknowledged, and nobody is signed in."""
    async with toy_server() as up:
        for payload in ("", ', "payload": null', ', "payload": {}', ', "payload": {"authorization": null}'):
            async with connect(up) as ws:
                await send(ws, f'{{"type": "connection_init"{payload}}}')
                assert await receive(ws) == {"type": "connection_ack"}
                await subscribe(ws, "1", {"query": "{ who }"})
                assert await receive(ws) == next_of("1", {"who": None})


async def test_the_token_comes_with_init_or_with_the_handshake() -> None:
    """The payload's wins over the header's."""
    stage = Stage()
    for name in ("ann", "bob"):
        stage.sign_in(name)
    by_payload = {"authorization": "Bearer ann"}
    async with toy_server(stage) as up:
        for payload, headers, name in (
            (by_payload, {}, "ann"),
            (None, {"authorization": "Bearer bob"}, "bob"),
            (by_payload, {"authorization": "Bearer bob"}, "ann"),
            ({"Authorization": "Bearer ann"}, {}, "ann"),
        ):
            async with connect(up, **headers) as ws:
                await send(ws, INIT | {"payload": payload})
                assert await receive(ws) == {"type": "connection_ack"}
                await subscribe(ws, "1", {"query": "{ who }"})
                assert await receive(ws) == next_of("1", {"who": name})


async def test_a_bad_token_closes_the_socket() -> None:
    """4403, whatever is wrong with it."""
    stage = Stage()
    stage.ended.add(stage.sign_in("ended").session.id)
    async with toy_server(stage) as up:
        bad: list[object] = ["", "ann", "Basic ann", "Bearer", "Bearer unknown", "Bearer ended", 3, [], {}]
        for token in bad:
            async with connect(up) as ws:
                await send(ws, INIT | {"payload": {"authorization": token}})
                assert await close_code(ws) == (4403, "Forbidden"), token
        async with connect(up, authorization="Bearer unknown") as ws:
            await send(ws, INIT)
            assert await close_code(ws) == (4403, "Forbidden")


async def test_a_token_that_cannot_be_looked_up_is_to_be_tried_later() -> None:
    """1013 and no word of why."""
    stage = Stage(is_database_away=True)
    async with toy_server(stage) as up, connect(up) as ws:
        await send(ws, INIT | {"payload": {"authorization": "Bearer ann"}})
        assert await close_code(ws) == (1013, "Try again later")


async def test_who_does_not_initialise_is_closed() -> None:
    """4408 after the time for it; whoever did in time stays."""
    async with toy_server(init_timeout_s=0.2) as up, acknowledged(up) as initialised, connect(up) as ws:
        await send(ws, {"type": "ping"})
        assert await close_code(ws) == (4408, "Connection initialisation timeout")
        await send(initialised, {"type": "ping"})
        assert await receive(initialised) == {"type": "pong"}


async def test_the_order_of_messages_is_kept() -> None:
    """4429 for a second init, 4401 for an operation before the acknowledgement, 4409 for an id in use."""
    async with toy_server() as up:
        async with acknowledged(up) as ws:
            await send(ws, INIT)
            assert await close_code(ws) == (4429, "Too many initialisation requests")
        async with connect(up) as ws:
            await subscribe(ws, "1", TICKS)
            assert await close_code(ws) == (4401, "Unauthorized")
        async with acknowledged(up) as ws:
            await subscribe(ws, "1", TICKS)
            await subscribe(ws, "1", TICKS)
            assert await close_code(ws) == (4409, "Subscriber for 1 already exists")
        async with acknowledged(up) as ws:
            await subscribe(ws, "é" * 200, TICKS)
            await subscribe(ws, "é" * 200, TICKS)
            assert (await close_code(ws))[0] == 4409


# ---------------------------------------------------------------- malformed messages
MALFORMED: list[object] = [
    "",
    "{",
    "null",
    "3",
    "[]",
    '"ping"',
    "{}",
    b'{"type": "ping"}',
    b"\xff",
    '{"type": NaN}',
    "[" * 50_000,
    {"type": None},
    {"type": ["ping"]},
    {"type": "start"},
    {"type": "ping", "payload": 3},
    {"type": "pong", "payload": "x"},
    {"type": "connection_init", "payload": []},
    {"type": "complete"},
    {"type": "complete", "id": 1},
    {"type": "subscribe", "payload": TICKS},
    {"type": "subscribe", "id": "", "payload": TICKS},
    {"type": "subscribe", "id": 1, "payload": TICKS},
    {"type": "subscribe", "id": None, "payload": TICKS},
    {"type": "subscribe", "id": "1"},
    {"type": "subscribe", "id": "1", "payload": None},
    {"type": "subscribe", "id": "1", "payload": []},
    {"type": "subscribe", "id": "1", "payload": "{ hello }"},
    {"type": "subscribe", "id": "1", "payload": {}},
    {"type": "subscribe", "id": "1", "payload": {"query": 3}},
    {"type": "subscribe", "id": "1", "payload": TICKS | {"variables": "x"}},
    {"type": "subscribe", "id": "1", "payload": TICKS | {"variables": []}},
    {"type": "subscribe", "id": "1", "payload": TICKS | {"operationName": 3}},
    {"type": "subscribe", "id": "1", "payload": TICKS | {"extensions": "x"}},
]


async def test_a_malformed_message_closes_the_socket() -> None:
    """4400 with the reason, instead of a 1006 that tells nothing; no stream is left open behind it."""
    stage = Stage()
    async with toy_server(stage) as up:
        for message in MALFORMED:
            async with acknowledged(up) as ws:
                await subscribe(ws, "open", TICKS)
                assert await receive(ws) == next_of("open", {"ticks": "ready"})
                await send(ws, message)
                code, reason = await close_code(ws)
                assert (code, bool(reason)) == (4400, True), message
        await until(lambda: stage.streams_open == 0)


async def test_a_message_beyond_the_limit_closes_the_socket() -> None:
    """1009; the limit itself is allowed."""
    ping = json.dumps({"type": "ping", "payload": {"x": "y" * 900}})
    async with toy_server(max_body_bytes=len(ping)) as up, acknowledged(up) as ws:
        await send(ws, ping)
        assert await receive(ws) == {"type": "pong"}
        await send(ws, ping + " ")
        assert await close_code(ws) == (1009, "Message too big")


# ---------------------------------------------------------------- operations
async def test_a_stream_runs_until_it_completes() -> None:
    """Every value in a message of its own, then `complete`; the id can be used again."""
    stage = Stage()
    metrics = Metrics()
    async with toy_server(stage, metrics) as up, acknowledged(up) as ws:
        for _ in range(2):
            await subscribe(ws, "1", TICKS)
            assert await receive(ws) == next_of("1", {"ticks": "ready"})
            assert metrics.registry.get_sample_value("frontrow_subscribers") == 1
            for tick in (1, 2, -1):
                stage.ticks.put_nowait(tick)
            assert await receive(ws) == next_of("1", {"ticks": "1"})
            assert await receive(ws) == next_of("1", {"ticks": "2"})
            assert await receive(ws) == {"type": "complete", "id": "1"}
        assert (stage.streams_open, metrics.registry.get_sample_value("frontrow_subscribers")) == (0, 0)


async def test_the_client_completes_a_stream() -> None:
    """Its resources are let go, nothing more comes under its id, the others go on and the id is free."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        await subscribe(ws, "1", TICKS)
        assert await receive(ws) == next_of("1", {"ticks": "ready"})
        await send(ws, {"type": "complete", "id": "1"})
        await send(ws, {"type": "complete", "id": "unknown"})
        await until(lambda: stage.streams_open == 0)
        await subscribe(ws, "1", TICKS)
        assert await receive(ws) == next_of("1", {"ticks": "ready"})
        stage.ticks.put_nowait(7)
        assert await receive(ws) == next_of("1", {"ticks": "7"})


async def test_a_client_that_leaves_leaves_nothing_open() -> None:
    """Also when it is cut off without a close."""
    stage = Stage()
    async with toy_server(stage) as up:
        async with acknowledged(up) as ws:
            for operation_id in ("1", "2"):
                await subscribe(ws, operation_id, TICKS)
                await receive(ws)
            assert stage.streams_open == 2
            ws.transport.abort()
        await until(lambda: stage.streams_open == 0)


async def test_every_operation_has_a_context_of_its_own() -> None:
    """Loaders in a shared one would go stale."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        for operation_id in ("1", "2"):
            await subscribe(ws, operation_id, TICKS)
            await receive(ws)
        first, second = stage.contexts
        assert first is not second
        assert first.request_id != second.request_id
        assert first.client == "127.0.0.1"


REFUSALS: list[tuple[Json, str]] = [
    ({"query": "{"}, "GRAPHQL_PARSE_FAILED"),
    ({"query": "subscription { nosuch }"}, "GRAPHQL_VALIDATION_FAILED"),
    ({"query": "subscription { a: ticks b: ticks }"}, "GRAPHQL_VALIDATION_FAILED"),
    ({"query": "query A { hello } query B { hello }"}, "BAD_USER_INPUT"),
    ({"query": "query A { hello }", "operationName": "B"}, "BAD_USER_INPUT"),
    ({"query": "subscription($s: Int) { ticks(size: $s) }", "variables": {"s": "x"}}, "BAD_USER_INPUT"),
    ({"query": "subscription($s: Int) { ticks(size: $s) }", "variables": {"s": None}}, "BAD_USER_INPUT"),
    ({"query": "query($t: Int) { hello(times: $t) }", "variables": {"t": "x"}}, "BAD_USER_INPUT"),
    ({"query": "subscription { nothingThere }"}, "NOT_FOUND"),
    ({"query": 'mutation { write(what: "x") }'}, "BAD_USER_INPUT"),
    (
        {"query": "{ who }", "extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}},
        "BAD_USER_INPUT",
    ),
]


async def test_a_refused_operation_leaves_the_socket_open() -> None:
    """An `error` for its id with the code it has over HTTP; the streams beside it go on, nothing is written."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        await subscribe(ws, "stream", TICKS)
        assert await receive(ws) == next_of("stream", {"ticks": "ready"})
        for payload, code in REFUSALS:
            await subscribe(ws, "1", payload)
            assert code_of(await receive(ws)) == ("error", "1", code), payload
        stage.ticks.put_nowait(1)
        assert await receive(ws) == next_of("stream", {"ticks": "1"})
    assert stage.done == []


async def test_a_stream_that_breaks_ends_with_an_error() -> None:
    """Masked, logged with its id, and the socket stays open."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        await subscribe(ws, "1", TICKS)
        await receive(ws)
        with structlog.testing.capture_logs() as logs:
            stage.ticks.put_nowait(-2)
            message = await receive(ws)
        assert code_of(message) == ("error", "1", "INTERNAL")
        assert message["payload"][0]["message"] == "Internal error"
        (line,) = logs
        assert line["request_id"] == message["payload"][0]["extensions"]["requestId"]
        await send(ws, {"type": "ping"})
        assert await receive(ws) == {"type": "pong"}


async def test_queries_run_on_a_socket_too() -> None:
    """One `next`, with the errors of single fields in it, then `complete`."""
    async with toy_server() as up, acknowledged(up) as ws:
        await subscribe(ws, "1", {"query": "{ hello missing }"})
        message = await receive(ws)
        assert message["payload"]["data"] == {"hello": "hello world", "missing": None}
        assert code_of(message) == ("next", "1", "NOT_FOUND")
        assert await receive(ws) == {"type": "complete", "id": "1"}


async def test_queries_on_sockets_share_the_room_with_requests() -> None:
    """The limit in flight can't be walked around."""
    stage = Stage()
    async with (
        toy_server(stage, max_in_flight=1) as up,
        acknowledged(up) as ws,
        httpx.AsyncClient() as client,
    ):
        await subscribe(ws, "1", {"query": "{ slow }"})
        await asyncio.wait_for(stage.began.wait(), PATIENCE_S)
        await subscribe(ws, "2", {"query": "{ hello }"})
        assert code_of(await receive(ws)) == ("error", "2", "OVERLOADED")
        response = await client.post(f"{up.http}/graphql", json={"query": "{ hello }"})
        assert response.status_code == 503
        stage.may_finish.set()
        assert await receive(ws) == next_of("1", {"slow": "query"})


async def test_a_socket_runs_only_so_many_operations() -> None:
    """One more is RATE_LIMITED and changes nothing for the others."""
    stage = Stage()
    async with toy_server(stage, max_subscriptions_per_socket=2) as up, acknowledged(up) as ws:
        for operation_id in ("1", "2"):
            await subscribe(ws, operation_id, TICKS)
            assert await receive(ws) == next_of(operation_id, {"ticks": "ready"})
        await subscribe(ws, "3", TICKS)
        assert code_of(await receive(ws)) == ("error", "3", "RATE_LIMITED")
        await send(ws, {"type": "complete", "id": "1"})
        await until(lambda: stage.streams_open == 1)
        await subscribe(ws, "3", TICKS)
        assert await receive(ws) == next_of("3", {"ticks": "ready"})


async def test_ping_is_answered_before_and_after_init() -> None:
    """With and without a payload; an unasked pong is fine."""
    async with toy_server() as up, connect(up) as ws:
        for message in (
            {"type": "ping"},
            {"type": "ping", "payload": {"at": 1}},
            {"type": "ping", "payload": None},
        ):
            await send(ws, {"type": "pong"})
            await send(ws, message)
            assert await receive(ws) == {"type": "pong"}
            if message == {"type": "ping"}:
                await send(ws, INIT)
                assert await receive(ws) == {"type": "connection_ack"}
