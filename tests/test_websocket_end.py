"""How a websocket ends: the session, a client that does not read, the server."""

import asyncio

import pytest
import structlog

from infra.graphql_app import Limits
from infra.socket_protocol import SocketProtocol
from infra.telemetry import Metrics
from tests.deaf import PING, PONG, TEXT, Frame, deaf_client, masked
from tests.toy_clients import (
    TICKS,
    acknowledged,
    close_code,
    next_of,
    open_sockets,
    receive,
    send,
    subscribe,
    toy_server,
)
from tests.toy_schema import PATIENCE_S, Stage, serving, toy_app, until

pytestmark = pytest.mark.anyio

FLOOD = "subscription($s: Int!) { flood(size: $s) }"


class QuickProtocol(SocketProtocol):
    """Cuts off soon what is closed, and notes how much it ever held for a client."""

    linger_s = 0.2
    buffered_max = 0

    def data_received(self, data: bytes) -> None:
        """As ever."""
        super().data_received(data)
        QuickProtocol.buffered_max = max(QuickProtocol.buffered_max, self.transport.get_write_buffer_size())


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
    """Its stream is asked for no more than small buffers hold, others go on, and it finds 4410 at the end."""
    stage, metrics, size = Stage(), Metrics(), 50_000
    async with (
        toy_server(stage, metrics, send_timeout_s=0.5) as up,
        acknowledged(up) as reading,
        deaf_client(up.http) as deaf,
    ):
        await deaf.subscribe("1", FLOOD, s=size)
        await until(lambda: bool(stage.done))
        async with asyncio.timeout(PATIENCE_S):
            while open_sockets(metrics) == 2:
                await send(reading, {"type": "ping"})
                assert await receive(reading) == {"type": "pong"}
        assert open_sockets(metrics) == 1
        assert metrics.registry.get_sample_value("frontrow_subscribers") == 0
        *messages, last = await deaf.until_close()
        assert (last.close_code, last.payload[2:]) == (4410, b"Messages are not read")
    # 64 KiB and a message in the transport, 128 KiB in the kernel and the client's own buffer.
    assert len(messages) <= len(stage.done) <= 10


async def test_what_a_client_never_takes_is_thrown_away() -> None:
    """A closed connection whose peer neither reads nor leaves is cut off: no buffer of it stays behind."""
    stage, metrics = Stage(), Metrics()
    app = toy_app(stage, Limits(send_timeout_s=0.1), metrics)
    async with (
        serving(app, ws=QuickProtocol) as up,
        deaf_client(up.http) as deaf,
        acknowledged(up) as reading,
    ):
        await deaf.subscribe("1", FLOOD, s=50_000)
        await until(lambda: open_sockets(metrics) == 1)
        await until(lambda: len(up.server.server_state.connections) == 1)
        await send(reading, {"type": "ping"})
        assert await receive(reading) == {"type": "pong"}
        assert (await deaf.until_close())[-1:] != []


async def test_a_client_that_answers_no_pings_is_cut_off() -> None:
    """Nothing waits for it to read what it never will: the socket and its streams end with the connection."""
    stage, metrics = Stage(), Metrics()
    app = toy_app(stage, Limits(send_timeout_s=60), metrics)
    async with serving(app, ping_s=0.1) as up, deaf_client(up.http) as deaf:
        await deaf.subscribe("1", FLOOD, s=50_000)
        await until(lambda: bool(stage.done))
        await until(lambda: not up.server.server_state.connections)
        await until(lambda: open_sockets(metrics) == 0)


async def test_a_client_that_only_sends_fills_no_memory() -> None:
    """Who does not take the answers is not listened to; once they are read, each ping has been answered."""
    pings, size = 40_000, 125
    ten = masked(PING, b"." * size) * 10
    for some in (ten, ten + masked(TEXT, b'{"type":"pong"}')):
        QuickProtocol.buffered_max = 0
        async with serving(toy_app(Stage()), ws=QuickProtocol) as up, deaf_client(up.http) as deaf:
            sending = asyncio.create_task(deaf.send(some * (pings // 10)))
            # Time for all of it to arrive, if it were let in.
            await asyncio.wait([sending], timeout=1)
            answers = [await deaf.next() for _ in range(pings)]
            assert answers == [Frame(PONG, b"." * size)] * pings
            await sending
        assert 0 < QuickProtocol.buffered_max < pings * size / 5


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
