"""How a websocket ends: the session, a client that does not read, the server."""

import asyncio

import pytest
import structlog

from infra.telemetry import Metrics
from tests.toy_clients import (
    INIT,
    TICKS,
    acknowledged,
    close_code,
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


# ---------------------------------------------------------------- the end of a session
async def test_a_log_out_closes_the_sockets_of_that_session() -> None:
    """4403 within a check or two for both of them; other people's and anonymous ones stay open."""
    stage = Stage()
    for name in ("ann", "bob"):
        stage.sign_in(name)
    ann, bob = {"authorization": "Bearer ann"}, {"authorization": "Bearer bob"}
    async with (
        toy_server(stage, session_check_s=0.02) as up,
        acknowledged(up, ann) as one,
        acknowledged(up, ann) as two,
        acknowledged(up, bob) as other,
        acknowledged(up) as anonymous,
    ):
        await subscribe(one, "1", TICKS)
        assert await receive(one) == next_of("1", {"ticks": "ready"})
        # One question for all of them.
        await until(lambda: stage.session_checks[-1:] == [{"session-ann", "session-bob"}])
        stage.ended.add(stage.viewers["ann"].session.id)
        assert await close_code(one) == (4403, "Forbidden")
        assert await close_code(two) == (4403, "Forbidden")
        await until(lambda: stage.streams_open == 0)
        for ws in (other, anonymous):
            await send(ws, {"type": "ping"})
            assert await receive(ws) == {"type": "pong"}
        await until(lambda: stage.session_checks[-1] == {"session-bob"})


async def test_a_session_that_expires_closes_the_socket() -> None:
    """4403 at the time, also while the database can't be asked."""
    stage = Stage()
    stage.sign_in("ann", lasts_s=0.3)
    async with (
        toy_server(stage, session_check_s=0.02) as up,
        acknowledged(up, {"authorization": "Bearer ann"}) as ws,
    ):
        stage.is_database_away = True
        assert await close_code(ws) == (4403, "Forbidden")


async def test_a_database_that_cannot_be_asked_closes_nothing() -> None:
    """Its absence is logged once, and a log-out meanwhile takes effect when it is back."""
    stage = Stage()
    stage.sign_in("ann")
    async with (
        toy_server(stage, session_check_s=0.01) as up,
        acknowledged(up, {"authorization": "Bearer ann"}) as ws,
    ):
        with structlog.testing.capture_logs() as logs:
            stage.is_database_away = True
            stage.ended.add(stage.viewers["ann"].session.id)
            seen = len(stage.session_checks)
            await until(lambda: len(stage.session_checks) >= seen + 5)
            await send(ws, {"type": "ping"})
            assert await receive(ws) == {"type": "pong"}
        assert len(logs) == 1
        stage.is_database_away = False
        assert await close_code(ws) == (4403, "Forbidden")


# ---------------------------------------------------------------- slow clients and shutdown
async def test_a_client_that_does_not_read_is_given_up() -> None:
    """Its stream is asked for no more than the socket's buffers hold, others go on, and then it is let go."""
    stage, metrics, size = Stage(), Metrics.build(), 50_000
    flood = {"query": "subscription($s: Int!) { flood(size: $s) }", "variables": {"s": size}}
    async with (
        toy_server(stage, metrics, send_timeout_s=0.5) as up,
        acknowledged(up) as reading,
        connect(up) as deaf,
    ):
        deaf.transport.pause_reading()
        await send(deaf, INIT)
        await subscribe(deaf, "1", flood)
        await until(lambda: bool(stage.done))
        async with asyncio.timeout(PATIENCE_S):
            while open_sockets(metrics) == 2:
                await send(reading, {"type": "ping"})
                assert await receive(reading) == {"type": "pong"}
        assert open_sockets(metrics) == 1
        assert metrics.registry.get_sample_value("frontrow_subscribers") == 0
        deaf.transport.abort()
    # 64 KiB in the transport, the rest in the kernel's buffers of a loopback connection.
    assert len(stage.done) * size < 16_000_000


async def test_a_server_that_stops_says_so() -> None:
    """1012, and every stream is let go."""
    stage = Stage()
    async with toy_server(stage) as up, acknowledged(up) as ws:
        await subscribe(ws, "1", TICKS)
        await receive(ws)
        stopping = asyncio.create_task(up.stop())
        assert (await close_code(ws))[0] == 1012
        await stopping
        assert stage.streams_open == 0
