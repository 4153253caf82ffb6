"""What every measurement runs on: PostgreSQL that keeps what it commits, Valkey, Frontrow's processes, people."""

import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from urllib.request import Request, urlopen

import asyncpg

from bench.programs import Program, done, free_port, running
from domain.base import ConcertId, Money, SessionId, TicketTypeId, UserId
from domain.concert import NewTicketType
from domain.ports import Deps
from domain.use_cases.concert import RegisterConcert, register_concert
from domain.user import Session, User, UserRole, Viewer
from infra.app import composed
from infra.db.migrations import migrate
from infra.settings import Settings
from infra.settings.model import LogLevel
from infra.telemetry import configure_logging
from schema.common import Kind, encode_id
from tests.servers import PostgresServer, ValkeyServer, running_postgres, running_valkey

FRONTROW = (sys.executable, "-c", "from infra.cli import main; main()")
# More than the pools of all contestants together.
CONNECTIONS = 600
WEBHOOK_SECRET = "whsec_of_the_bench_only"
CAPACITY = 10_000_000
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PRICE = Money(3_500, "EUR")
# Everything has been told by then, or something is wrong.
TELLING_LIMIT_S = 120.0


@dataclass(frozen=True)
class Ticket:
    """What can be bought: one ticket type of one concert, by the ids of the house."""

    concert_id: ConcertId
    ticket_type_id: TicketTypeId

    @property
    def concert_gid(self) -> str:
        """The concert's id as clients write it."""
        return encode_id(Kind.CONCERT, self.concert_id)

    @property
    def ticket_type_gid(self) -> str:
        """The ticket type's id as clients write it."""
        return encode_id(Kind.TICKET_TYPE, self.ticket_type_id)


@dataclass(frozen=True)
class Frontrow:
    """One API process and one worker at a database of their own."""

    port: int
    api: Program
    worker: Program
    database_url: str
    valkey: ValkeyServer

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name with labels."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        values = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in values}


@dataclass(frozen=True)
class Processor:
    """The sandbox, which can be told to misbehave."""

    port: int
    program: Program

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def control(self, **wanted: object) -> None:
        """Behave like that from now on."""
        request = Request(f"{self.url}/_control", json.dumps(wanted).encode(), method="POST")
        with urlopen(request) as answer:
            assert answer.status == 200, answer.read()


@dataclass(frozen=True)
class Shop:
    """The servers that contestants share, and what is started beside them."""

    postgres: PostgresServer
    folder: Path
    stack: ExitStack

    @property
    def database_program(self) -> Program:
        """PostgreSQL with all its processes."""
        return Program("PostgreSQL", self.postgres.pid)

    def database(self, name: str, *, template: str = "template1") -> str:
        """The URL of a new one, a copy of `template`."""
        name = re.sub(r"\W+", "_", name.lower())
        self.postgres.create_database(name, template=template)
        return self.postgres.url(name)

    def valkey(self) -> ValkeyServer:
        """A new one: channels are shared by all databases of a server."""
        return self.stack.enter_context(running_valkey())

    def processor(self) -> "Processor":
        """A sandbox in a process of its own."""
        port = free_port()
        command = [*FRONTROW, "sandbox", "--port", str(port)]
        return Processor(port, self.start(f"sandbox {port}", command, environ={}, port=port))

    def frontrow(
        self,
        name: str,
        database_url: str,
        *,
        settings: Mapping[str, str] | None = None,
        processes: int = 1,
        is_filled: bool = False,
    ) -> Frontrow:
        """It serves, with a Valkey of its own; where the database is filled the read model is complete before."""
        port, valkey = free_port(), self.valkey()
        environ = environ_of(database_url, valkey.url, settings)
        if is_filled:
            rebuilding = [*FRONTROW, "rebuild-read-model"]
            done(f"{name} rebuild", rebuilding, environ=environ, folder=self.folder)
        command = [*FRONTROW, "serve", "--port", str(port), "--workers", str(processes)]
        api = self.start(f"{name} api", command, environ=environ, port=port, ready_path="/readyz")
        worker = self.start(f"{name} worker", [*FRONTROW, "worker"], environ=environ)
        return Frontrow(port, api, worker, database_url, valkey)

    def start(
        self,
        name: str,
        command: list[str],
        *,
        environ: Mapping[str, str],
        port: int | None = None,
        ready_path: str | None = None,
    ) -> Program:
        """A program that is stopped with the shop."""
        started = running(
            name, command, environ=environ, folder=self.folder, port=port, ready_path=ready_path
        )
        return self.stack.enter_context(started)


@contextmanager
def open_shop() -> Iterator[Shop]:
    """PostgreSQL with fsync and synchronous_commit on; everything is gone afterwards."""
    configure_logging(Settings(log_level=LogLevel.WARNING))
    with ExitStack() as stack:
        # Told to stop, it takes everything with it that it has started.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        stack.callback(signal.signal, signal.SIGTERM, before)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frontrow-bench-")))
        postgres = stack.enter_context(running_postgres(is_durable=True, connections=CONNECTIONS))
        yield Shop(postgres, folder, stack)


def environ_of(
    database_url: str, redis_url: str, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a process of Frontrow: every default, but a worker in a process of its own."""
    facts = {
        "database_url": database_url,
        "redis_url": redis_url,
        "worker": "off",
        "demo": "0",
        "log_level": "warning",
        "stripe_api_key": "sk_test_bench",
        "stripe_api_base": "http://127.0.0.1:9",  # nobody pays unless a measurement names a processor
        "stripe_webhook_secret": WEBHOOK_SECRET,
    } | dict(settings or {})
    return {f"FRONTROW_{name.upper()}": value for name, value in facts.items()}


# ---------------------------------------------------------------- who is there, and what is sold
def user_id_of(number: int) -> UserId:
    """A buyer's id: shaped like a real one, and later ones sort later."""
    return UserId(f"{number:08x}-0000-7000-8000-{number:012x}")


def token_of(number: str) -> str:
    """A buyer's token; `number` has twelve digits or is `wire.NUMBER`."""
    return f"bench-{number}-of-forty-three-chars-all-told"


def viewer_of(number: int) -> Viewer:
    """A buyer to the use cases, who know nothing of tokens."""
    user = User(user_id_of(number), f"{number}@example.org", "One of many", UserRole.CUSTOMER, EPOCH)
    return Viewer(user, Session(SessionId(user.id), user.id, EPOCH, EPOCH))


async def seed(database_url: str, *, concerts: int, buyers: int, tickets_per_buyer: int = 6) -> list[Ticket]:
    """A migrated database with these on sale and so many people signed in."""
    await migrate(database_url)
    async with composed(Settings(database_url=database_url, demo=False)) as frontrow:
        tickets = [
            await _on_sale(frontrow.deps, number, tickets_per_buyer=tickets_per_buyer)
            for number in range(concerts)
        ]
    await sign_in(database_url, buyers)
    return tickets


async def _on_sale(deps: Deps, number: int, *, tickets_per_buyer: int) -> Ticket:
    now = datetime.now(UTC).replace(microsecond=0)
    command = RegisterConcert(
        title=f"Night Trains {number}",
        performer="The Signal Keepers",
        description="",
        venue="Paradiso",
        time_zone="Europe/Amsterdam",
        starts_at=now + timedelta(days=30),
        sales_open_at=now - timedelta(days=1),
        sales_close_at=now + timedelta(days=29),
        max_tickets_per_user=tickets_per_buyer,
        ticket_types=(NewTicketType("Standing", PRICE, CAPACITY),),
    )
    concert = await register_concert(deps, viewer_of(0), command)
    types = await deps.reads.ticket_types_of([concert.id])
    return Ticket(concert.id, types[concert.id][0].id)


async def sign_in(database_url: str, buyers: int) -> None:
    """People with the numbers from 0 on have accounts, and sessions that their tokens open."""
    now = datetime.now(UTC)
    connection = await connect(database_url)
    try:
        people = (
            (user_id_of(n), f"{n}@example.org", "One of many", "CUSTOMER", "-", now) for n in range(buyers)
        )
        columns = ["id", "email", "name", "role", "password_hash", "created_at"]
        await connection.copy_records_to_table("users", records=people, columns=columns)
        ends = now + timedelta(days=1)
        sessions = (
            (user_id_of(n), user_id_of(n), sha256(token_of(f"{n:012d}").encode()).digest(), now, ends)
            for n in range(buyers)
        )
        columns = ["id", "user_id", "token_hash", "created_at", "expires_at"]
        await connection.copy_records_to_table("sessions", records=sessions, columns=columns)
        await connection.execute("ANALYZE users, sessions")
    finally:
        await connection.close()


# ---------------------------------------------------------------- what is in the database
async def connect(database_url: str) -> asyncpg.Connection:
    """A connection of the measurement's own."""
    return await asyncpg.connect(plain(database_url))


def plain(database_url: str) -> str:
    """The URL as others than SQLAlchemy write it."""
    return database_url.replace("postgresql+asyncpg://", "postgresql://", 1)


async def ask(database_url: str, sql: str) -> int:
    """One number."""
    connection = await connect(database_url)
    try:
        return int(await connection.fetchval(sql))
    finally:
        await connection.close()


async def until_told(database_url: str) -> float:
    """The worker has told every event; how long that took from now, seconds. Raises: TimeoutError."""
    began_s = time.monotonic()
    connection = await connect(database_url)
    try:
        while await connection.fetchval("SELECT EXISTS (SELECT 1 FROM outbox)"):
            if time.monotonic() - began_s > TELLING_LIMIT_S:
                raise TimeoutError(f"events still wait after {TELLING_LIMIT_S:.0f} s")
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
    return time.monotonic() - began_s
