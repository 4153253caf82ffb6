"""SIGTERM in the middle of a rush: nothing that was sent stays without an answer (issue 3, promise 14)."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
import websockets

from tests.client import BOOK, PASSWORD, WATCH_COUNT, Api, Json, socket, ticket_type, until
from tests.shell import Running, Shell
from tests.story.world import WEBHOOK_SECRET, Processor

pytestmark = pytest.mark.anyio

ADMIN = "admin@example.org"
# Payments that are under way when the signal comes take this long, twice: create and confirm.
PAYMENT_MS = 700
DRAIN_S = 1.0
KEEPING, NEWCOMERS, SOCKETS = 6, 20, 40


@dataclass
class Client:
    """Asks again and again until nobody listens any more. What is sent without an answer is remembered."""

    port: int
    request: bytes
    keeps: bool
    answers: list[tuple[float, int, bool]] = field(default_factory=list)  # when, status, told to leave
    broken: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Until no connection can be made."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except (ConnectionRefusedError, ConnectionResetError):
                return  # nothing was sent
            try:
                while await self._ask(reader, writer) and self.keeps:
                    pass
            except (OSError, asyncio.IncompleteReadError) as error:
                self.broken.append(repr(error))
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be kept."""
        writer.write(self.request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        answer = await reader.readexactly(length)
        assert b'"errors"' not in answer, answer
        is_last = "connection: close" in head
        self.answers.append((time.monotonic(), int(head.split()[1]), is_last))
        return not is_last


# As many as possible, so that some are at the door in the moment when it closes.
LOOK_IN = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def booking_request(api: Api, wanted: Json) -> bytes:
    """bookConcert as it goes over the wire."""
    body = json.dumps({"query": BOOK, "variables": {"input": wanted}}).encode()
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def shell(postgres_database_url: str, redis_url: str, stack: ExitStack) -> Shell:
    """On an empty PostgreSQL and Valkey, with a slow processor and an admin."""
    sandbox = stack.enter_context(Shell({}).running("sandbox", "--port", "0"))
    shell = Shell(
        {
            "database_url": postgres_database_url,
            "redis_url": redis_url,
            "demo": "0",
            "log_level": "error",
            "payment_timeout_ms": "20000",
            "shutdown_drain_s": str(DRAIN_S),
            "stripe_api_key": "sk_test_tests",
            "stripe_api_base": sandbox.hears(r"at (http://127\.0\.0\.1:\d+)")[1],
            "stripe_webhook_secret": WEBHOOK_SECRET,
        }
    )
    created = shell.run("create-admin", "--email", ADMIN, "--name", "Admin", given=PASSWORD)
    assert created.exit_code == 0, created.output
    return shell


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_server_that_stops_drops_no_request(shell: Shell, stack: ExitStack, workers: int) -> None:
    """Not ready, everybody who comes is answered and told to leave, payments end, sockets hear 1012 one by one."""
    served = stack.enter_context(shell.running("serve", "--port", "0", "--workers", str(workers)))
    stack.callback(kill_children, served)
    url = served.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
    async with AsyncExitStack() as async_stack:
        http = await async_stack.enter_async_context(httpx.AsyncClient(timeout=60))
        api, processor = Api(url, http), Processor(shell.settings["stripe_api_base"], http)
        admin = await signed_in(api)
        concert = await admin.register(ticketTypes=[ticket_type(capacity=100_000)], maxTicketsPerUser=1_000)
        ann = await api.new_buyer()
        held = [(await ann.booked(concert))["id"] for _ in range(4)]
        sockets = [
            await async_stack.enter_async_context(socket(url, token=ann.token)) for _ in range(SOCKETS)
        ]
        for ws in sockets:
            await ws.send(json.dumps(subscribe(WATCH_COUNT, id=concert.id)))
            await ws.recv()
        items = [{"ticketTypeId": concert.types[0], "quantity": 1}]
        request = booking_request(ann, {"concertId": concert.id, "items": items})
        port = int(url.rsplit(":", 1)[1])
        clients = [Client(port, request, keeps=True) for _ in range(KEEPING)]
        clients += [Client(port, LOOK_IN, keeps=False) for _ in range(NEWCOMERS)]
        rush = [asyncio.create_task(client.run()) for client in clients]
        closings = [asyncio.create_task(closing_of(ws)) for ws in sockets]
        await processor.control(latency_ms=[PAYMENT_MS, PAYMENT_MS])
        payments = [asyncio.create_task(ann.pay(booking_id)) for booking_id in held]
        await until(processor.ledger, lambda entries: len(entries) == len(held))
        await until(lambda: answered(clients), lambda least: least >= 3)

        told_at_s = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        await until(lambda: readiness(url), lambda said: said == (503, "stopping\n"))
        async with asyncio.timeout(60):
            await asyncio.gather(*rush)
            paid = await asyncio.gather(*payments)
            ends = await asyncio.gather(*closings)
    code = await asyncio.to_thread(served.process.wait, 60)

    assert [client.broken for client in clients] == [[] for _ in clients]
    answers = [answer for client in clients for answer in client.answers]
    assert {status for _, status, _ in answers} == {200}
    assert all(any(told for _, _, told in client.answers) for client in clients)
    assert not any(told for at_s, _, told in answers if at_s < told_at_s)
    assert sum(at_s > told_at_s for at_s, *_ in answers) > len(clients)
    assert [answer["__typename"] for answer in paid] == ["PayBookingSuccess"] * len(held)
    assert {(end.code, end.reason) for _, end in ends} == {(1012, "Service restart")}
    # Ten milliseconds from one to the next; two processes do it at the same time.
    times_s = sorted(at_s for at_s, _ in ends)
    assert times_s[-1] - times_s[0] > 0.3 / workers
    assert code == 0


def kill_children(served: Running) -> None:
    """They hold on to the pipe that the test reads from."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(served.process.pid).children(recursive=True):
            child.kill()


async def signed_in(api: Api) -> Api:
    """The admin, once the server answers."""
    query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"

    async def log_in() -> Json:
        try:
            return dict(await api.ask(query, i={"email": ADMIN, "password": PASSWORD}))
        except httpx.TransportError:
            return {}

    return api.signed_in((await until(log_in, bool))["accessToken"])


def subscribe(query: str, **variables: str) -> Json:
    """A message of the protocol."""
    return {"id": "1", "type": "subscribe", "payload": {"query": query, "variables": variables}}


async def closing_of(ws: websockets.ClientConnection) -> tuple[float, websockets.frames.Close]:
    """When the socket was closed, and how."""
    try:
        while True:
            await ws.recv()
    except websockets.ConnectionClosed as closed:
        assert closed.rcvd is not None, "cut off without a word"
        return time.monotonic(), closed.rcvd


async def answered(clients: list[Client]) -> int:
    """How many answers the one with the fewest has."""
    return min(len(client.answers) for client in clients)


async def readiness(url: str) -> tuple[int, str]:
    """What a load balancer hears."""
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/readyz")
    return answer.status_code, answer.text
