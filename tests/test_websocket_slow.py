"""Who reads slowly out of a stream that others share: one message waits for each operation, and for a while only."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import ClientConnection

from infra.graphql_app import Limits
from infra.telemetry import Metrics
from tests.deaf import TEXT, DeafClient, Frame, deaf_client
from tests.toy_clients import Json, acknowledged, open_sockets, receive, subscribe
from tests.toy_schema import PATIENCE_S, Serving, Stage, serving, toy_app, until

pytestmark = pytest.mark.anyio

BIG = "subscription($s: Int!) { count(size: $s) { version dots } }"


@asynccontextmanager
async def watching(up: Serving, payload: Json) -> AsyncIterator[ClientConnection]:
    """A socket that reads, and has been told the count as it is."""
    async with acknowledged(up) as ws:
        await subscribe(ws, "1", payload)
        assert _version(await receive(ws)) == 1
        yield ws


async def test_a_slow_reader_waits_with_one_message_and_the_others_do_not_wait() -> None:
    """Once it reads it is told what fitted into small buffers, and then the newest; nothing older follows."""
    stage, size, last = Stage(), 20_000, 60
    app = toy_app(stage, Limits(shared_updates_per_s=1_000))
    payload = {"query": BIG, "variables": {"s": size}}
    async with serving(app) as up, watching(up, payload) as quick, deaf_client(up.http) as deaf:
        await deaf.subscribe("1", BIG, s=size)
        await until(lambda: stage.board.opened == 2)
        for version in range(2, last + 1):
            stage.board.say(version)
            assert _version(await receive(quick)) == version
        versions = await _read_until(deaf, last)
        assert len(versions) < last / 2
        assert versions[:-1] == list(range(1, len(versions)))
        stage.board.say(last + 1)
        assert await _read_until(deaf, last + 1) == [last + 1]


async def test_a_slow_reader_of_several_streams_waits_with_one_message_each() -> None:
    """Also with the end of one: all of it comes in order once it reads."""
    stage, size, last = Stage(), 20_000, 40
    app = toy_app(stage, Limits(shared_updates_per_s=1_000))
    payload = {"query": BIG, "variables": {"s": size}}
    async with serving(app) as up, watching(up, payload) as quick, deaf_client(up.http) as deaf:
        for operation_id in ("1", "2", "3"):
            await deaf.subscribe(operation_id, BIG, s=size)
        await until(lambda: stage.board.opened >= 2)
        for version in range(2, last + 1):
            stage.board.say(version)
            assert _version(await receive(quick)) == version
        stage.board.end()
        assert await receive(quick) == {"type": "complete", "id": "1"}
        told: dict[str, list[object]] = {"1": [], "2": [], "3": []}
        while not all(each[-1:] == ["complete"] for each in told.values()):
            message = _message(await deaf.next())
            is_next = message["type"] == "next"
            told[message["id"]].append(_version(message) if is_next else message["type"])
        for each in told.values():
            assert each[-2:] == [last, "complete"]
            assert len(each) < last / 2


async def test_a_reader_of_a_shared_stream_who_does_not_read_is_given_up() -> None:
    """4410 after its time, with what fitted into small buffers; another one is told all along."""
    stage, metrics, size = Stage(), Metrics(), 20_000
    app = toy_app(stage, Limits(shared_updates_per_s=1_000, send_timeout_s=0.5), metrics)
    payload = {"query": BIG, "variables": {"s": size}}
    async with serving(app) as up, watching(up, payload) as quick, deaf_client(up.http) as deaf:
        await deaf.subscribe("1", BIG, s=size)
        await until(lambda: stage.board.opened == 2)
        version = 1
        async with asyncio.timeout(PATIENCE_S):
            while open_sockets(metrics) == 2:
                stage.board.say(version := version + 1)
                assert _version(await receive(quick)) == version
        assert metrics.registry.get_sample_value("frontrow_subscribers") == 1
        *frames, last = await deaf.until_close()
        assert (last.close_code, last.payload[2:]) == (4410, b"Messages are not read")
        versions = [_version(_message(frame)) for frame in frames]
        assert versions == list(range(1, len(versions) + 1))
        # 64 KiB and a message in the transport, 128 KiB in the kernel, and the client's own buffer.
        assert len(versions) <= 20


async def test_a_slow_reader_who_reads_in_time_is_not_given_up() -> None:
    """The time begins anew whenever it has taken something."""
    stage, metrics, size = Stage(), Metrics(), 20_000
    app = toy_app(stage, Limits(shared_updates_per_s=1_000, send_timeout_s=0.6), metrics)
    async with serving(app) as up, deaf_client(up.http) as deaf:
        await deaf.subscribe("1", BIG, s=size)
        await until(lambda: stage.board.shown == 1)
        version = 1
        for _ in range(4):
            for _ in range(40):
                stage.board.say(version := version + 1)
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.2)
            await _read_until(deaf, version)
        assert open_sockets(metrics) == 1


async def _read_until(deaf: DeafClient, version: int) -> Sequence[int]:
    """The versions of all that it reads, up to this one."""
    versions: list[int] = []
    while versions[-1:] != [version]:
        versions.append(_version(_message(await deaf.next())))
    return versions


def _message(frame: Frame | None) -> Json:
    assert frame is not None and frame.opcode == TEXT, frame
    message: Json = json.loads(frame.payload)
    return message


def _version(message: Json) -> int:
    version: int = message["payload"]["data"]["count"]["version"]
    return version
