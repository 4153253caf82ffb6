"""What is done under three times the load, what is refused, and how fast a refusal comes.

`python -m tests.faults.overload_bench` starts a PostgreSQL of its own that keeps what it commits and one `frontrow
serve` on it. People book one hot concert: 400 of them, one booking after the other, which is the peak; then three
times as many, and six times, who come back when they are told to; then as many who come back after 50 ms; then as many
who ask three times as often as the peak, together, whatever they are told. One more looks at the count ten times a
second. Prints a table and stops by itself within four minutes.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import random
from threading import Thread
from uuid import uuid4

import psutil  # type: ignore[import-untyped]

from domain.base import SessionId, TicketTypeId, UserId
from domain.booking import Sale
from domain.user import Session, User, UserRole
from infra.auth import SystemRandomness
from infra.db.migrations import migrate
from infra.db.unit import Database
from schema.common import Kind, encode_id
from tests.client import BOOK, GET_COUNT
from tests.db_world import a_sale, open_sale
from tests.servers import running_postgres
from tests.shell import Running, Shell

# More people than these get no more done.
PEAK = 400
# More than may wait, so that some are refused.
RUSH = 2_400
TIMES = 3
WARM_UP_S = 5.0
MEASURED_S = 12.0
IMPATIENT_S = 0.05
LOOK_EVERY_S = 0.1
COLUMNS = (
    "who",
    "done/s",
    "ms p50",
    "p99",
    "answers/s",
    "refused %",
    "ms p50",
    "p99",
    "looks ms p50",
    "p99",
    "server CPU",
)


@dataclass
class Person:
    """Somebody with a connection of their own."""

    token: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def post(self, body: bytes) -> bytes:
        """The body of the answer. A tenth of what a whole client costs, which shares two cores with the server."""
        head = (
            "POST /graphql HTTP/1.1\r\nhost: frontrow\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {self.token}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        headers = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
        return await self.reader.readexactly(length)


@dataclass
class Seen:
    """What was answered, and after how long."""

    codes: Counter[str] = field(default_factory=Counter)
    done_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    looks_s: list[float] = field(default_factory=list)

    def add(self, code: str, took_s: float) -> None:
        """One answer to a booking."""
        self.codes[code] += 1
        if code == "BookConcertSuccess":
            self.done_s.append(took_s)
        elif code == "OVERLOADED":
            self.refused_s.append(took_s)


@dataclass
class Rush:
    """People at work on one server. `seen` is begun anew when it is time to measure."""

    book: bytes
    look: bytes
    is_patient: bool = True
    # How often each asks, whatever it is told; None: again when the last one is answered.
    every_s: float | None = None
    seen: Seen = field(default_factory=Seen)

    async def buy(self, person: Person) -> None:
        """One ticket after the other, until cancelled."""
        next_s = time.perf_counter() + random() * (self.every_s or 1.0)
        await asyncio.sleep(next_s - time.perf_counter())
        while True:
            began_s = time.perf_counter()
            answer = json.loads(await person.post(self.book))
            took_s = time.perf_counter() - began_s
            facts = answer["errors"][0]["extensions"] if "errors" in answer else answer["data"]["bookConcert"]
            code = facts.get("code") or facts["__typename"]
            self.seen.add(code, took_s)
            if self.every_s is not None:
                # Whoever was kept waiting asks at once, but not for what was missed.
                next_s = max(next_s + self.every_s, time.perf_counter())
                await asyncio.sleep(next_s - time.perf_counter())
            elif code != "BookConcertSuccess":
                await asyncio.sleep(facts["retryAfterMs"] / 1_000 if self.is_patient else IMPATIENT_S)

    async def browse(self, person: Person) -> None:
        """Look at the count, until cancelled. A refusal took for ever."""
        while True:
            began_s = time.perf_counter()
            is_shown = b'"errors"' not in await person.post(self.look)
            self.seen.looks_s.append(time.perf_counter() - began_s if is_shown else math.inf)
            await asyncio.sleep(LOOK_EVERY_S)


async def measure(who: str, rush: Rush, people: list[Person], server: psutil.Process) -> tuple[str, ...]:
    """One line of the table."""
    tasks = [asyncio.create_task(rush.buy(person)) for person in people[1:]]
    tasks.append(asyncio.create_task(rush.browse(people[0])))
    await asyncio.sleep(WARM_UP_S)
    seen = rush.seen = Seen()
    cpu_s, began_s = _cpu_s(server), time.perf_counter()
    await asyncio.sleep(MEASURED_S)
    took_s = time.perf_counter() - began_s
    cpu_s = _cpu_s(server) - cpu_s
    for task in tasks:
        task.cancel()
    failures = [
        each for each in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(each, Exception)
    ]
    assert failures == []
    answers = sum(seen.codes.values())
    return (
        who,
        f"{len(seen.done_s) / took_s:.1f}",
        *(_ms(seen.done_s, part) for part in (0.5, 0.99)),
        f"{answers / took_s:.0f}",
        f"{100 * len(seen.refused_s) / max(1, answers):.1f}",
        *(_ms(seen.refused_s, part) for part in (0.5, 0.99)),
        *(_ms(seen.looks_s, part) for part in (0.5, 0.99)),
        f"{cpu_s / took_s:.2f}",
    )


def _cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def _ms(took_s: list[float], part: float) -> str:
    """The quantile in milliseconds."""
    if not took_s:
        return "-"
    at = sorted(took_s)[min(len(took_s) - 1, math.floor(part * len(took_s)))]
    return "refused" if at == math.inf else f"{at * 1_000:,.0f}"


# ---------------------------------------------------------------- what it runs on
async def fill(database: Database) -> tuple[Sale, list[str]]:
    """A concert that never sells out, and the tokens of people who are signed in."""
    sale = a_sale(str(uuid4()), capacities=(1_000_000,), max_tickets_per_user=1_000_000)
    line = replace(sale.stock[0], ticket_type_id=TicketTypeId(str(uuid4())))
    await open_sale(database, replace(sale, stock=(line,)))
    randomness, tokens = SystemRandomness(), []
    async with database.write("fill") as unit:
        now = await unit.now()
        for _ in range(RUSH + 1):
            name, token = randomness.new_id(), randomness.new_token()
            user = User(UserId(name), f"{name}@example.org", "One of many", UserRole.CUSTOMER, now)
            await unit.users.add(user, password_hash="none")
            session = Session(SessionId(name), user.id, now, now + timedelta(days=1))
            await unit.users.add_session(session, token_hash=randomness.token_hash(token))
            tokens.append(token)
        await unit.commit()
    return replace(sale, stock=(line,)), tokens


def questions(sale: Sale) -> tuple[bytes, bytes]:
    """The bodies of a booking and of a look at the count."""
    concert_id = encode_id(Kind.CONCERT, sale.concert_id)
    items = [{"ticketTypeId": encode_id(Kind.TICKET_TYPE, sale.stock[0].ticket_type_id), "quantity": 1}]
    book = {"query": BOOK, "variables": {"input": {"concertId": concert_id, "items": items}}}
    look = {"query": GET_COUNT, "variables": {"id": concert_id}}
    return json.dumps(book).encode(), json.dumps(look).encode()


@asynccontextmanager
async def connected(tokens: list[str], port: int) -> AsyncIterator[list[Person]]:
    """People with connections."""
    people = [Person(token, *await asyncio.open_connection("127.0.0.1", port)) for token in tokens]
    try:
        yield people
    finally:
        for person in people:
            person.writer.close()


def _read_on(served: Running) -> None:
    """A server whose log nobody reads stands still once the pipe is full."""
    Thread(target=lambda: served.said.extend(served.process.stdout or ()), daemon=True).start()


async def main() -> None:
    """Print the table."""
    with running_postgres(is_durable=True) as postgres:
        postgres.create_database("frontrow")
        url = postgres.url("frontrow")
        await migrate(url)
        database = Database(url)
        sale, tokens = await fill(database)
        await database.close()
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
        book, look = questions(sale)
        peak, _ = await _show(f"{PEAK}: peak", url, tokens[: PEAK + 1], Rush(book, look))
        for number in (TIMES * PEAK, RUSH):
            await _show(f"{number}, patient", url, tokens[: number + 1], Rush(book, look))
        await _show(f"{RUSH}, impatient", url, tokens, Rush(book, look, is_patient=False))
        often = Rush(book, look, every_s=RUSH / (TIMES * peak))
        await _show(f"{RUSH}, {TIMES * peak:.0f}/s", url, tokens, often)


async def _show(who: str, url: str, tokens: list[str], rush: Rush) -> tuple[float, float]:
    """Print a line of the table, on a server of its own: bookings and answers a second."""
    shell = Shell({"database_url": url, "demo": "0", "log_level": "error"})
    with shell.running("serve", "--port", "0") as served:
        port = int(served.hears(r"http://127\.0\.0\.1:(\d+)/graphql")[1])
        _read_on(served)
        async with connected(tokens, port) as people:
            line = await measure(who, rush, people, psutil.Process(served.process.pid))
    print("| " + " | ".join(line) + " |", flush=True)
    return len(rush.seen.done_s) / MEASURED_S, sum(rush.seen.codes.values()) / MEASURED_S


if __name__ == "__main__":
    asyncio.run(main())
