"""What does it cost to tell everybody who watches a concert that its count has changed, and how soon do they know?

Crowds of growing size watch one count over graphql-transport-ws. The bench makes a change, waits until everybody has
it, rests for a moment and makes the next: a real booking with us, worker and all; one UPDATE and a message on Redis
with the peers. From commit to the server's last send is the kernel's stamp of the last packet; when the last watcher
has it depends on the crowd, which computes on the same cores. CPU is that of the server's process alone.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic, time_ns

from redis.asyncio import Redis

from bench import node
from bench.crowd import quantile
from bench.peers.sales import CHANGE, CHANNEL, count_of
from bench.plot import lines
from bench.programs import Program, free_port, progress
from bench.questions import WATCH
from bench.sellers import fill_peer
from bench.shop import Shop, Ticket, connect, open_shop, plain, seed, viewer_of
from bench.table import Table, aim, arguments, middle, publish, times
from bench.watchers import Watchers, watching
from domain.booking import Quantity
from domain.use_cases.booking import BookConcert, book_concert
from infra.app import composed
from infra.settings import Settings

SIZES = (100, 500, 2_000, 10_000)
CHANGES_MIN = 5
# Longer than counts are merged for, so that each change is a message of its own.
REST_S = 0.1
# New sockets settle, what was needed only to let them in is given back, and who slept is awake.
SETTLE_S = 1.0
OURS = "Frontrow"
# Our aims.
AIMED_AT, DELIVERY_US, CHEAPER = 2_000, 30, 5
EVERYBODY, SERVED_MS, IDLE_KB = 10_000, 500, 12
COLUMNS = (
    "server",
    "watchers",
    "its CPU against ours",
    "CPU for each delivery, us",
    "deliveries/s",
    "commit to last send, ms p50",
    "p99",
    "until the last has it, ms p50",
    "p99",
    "memory of an idle socket, KB",
    "of one that watches",
)
# Makes a change; its version, and when it was committed in nanoseconds since the epoch.
Change = Callable[[], Awaitable[tuple[int, int]]]


@dataclass(frozen=True)
class House:
    """A server that can be watched, how to change what is watched, and who tells the server."""

    name: str
    port: int
    server: Program
    changing: Callable[[], AbstractAsyncContextManager[Change]]
    worker: Program | None = None


@dataclass(frozen=True)
class Round:
    """Some changes. Milliseconds are from the commit of each to the last of its deliveries."""

    delivery_us: float
    sent_ms: list[float]
    heard_ms: list[float]


@dataclass
class Audience:
    """Everybody who watches one house."""

    house: House
    watchers: Watchers
    change: Change
    idle_kb: float = 0.0
    watching_kb: float = 0.0
    rounds: list[Round] = field(default_factory=list)


# ---------------------------------------------------------------- who can be watched
def frontrow(shop: Shop) -> tuple[House, Ticket]:
    """Ours: a booking changes the count."""
    url = shop.database(OURS)
    (ticket,) = asyncio.run(seed(url, concerts=1, buyers=1))
    running = shop.frontrow(OURS, url)

    @asynccontextmanager
    async def changing() -> AsyncIterator[Change]:
        connection, buyer = await connect(url), 0
        async with composed(Settings(database_url=url, redis_url=running.valkey.url, demo=False)) as parts:

            async def change() -> tuple[int, int]:
                nonlocal buyer
                buyer += 1
                wanted = BookConcert(ticket.concert_id, (Quantity(ticket.ticket_type_id, 1),))
                await book_concert(parts.deps, viewer_of(buyer), wanted)
                committed_ns = time_ns()
                return int(await connection.fetchval("SELECT version FROM sales")), committed_ns

            yield change
        await connection.close()

    return House(OURS, running.port, running.api, changing, running.worker), ticket


def peer(shop: Shop, name: str, command: Sequence[str], ticket: Ticket) -> House:
    """One of the others: whoever changes the count publishes it."""
    url, redis_url, port = shop.database(name), shop.valkey().url, free_port()
    asyncio.run(fill_peer(url, [ticket]))
    arguments_ = ["--port", str(port), "--database", plain(url), "--redis", redis_url]
    if command[0] == "node":
        arguments_ = arguments_[1::2]
    environ = {"NODE_ENV": "production"}
    server = shop.start(name, [*command, *arguments_], port=port, environ=environ)

    @asynccontextmanager
    async def changing() -> AsyncIterator[Change]:
        connection = await connect(url)
        async with Redis.from_url(redis_url) as redis:

            async def change() -> tuple[int, int]:
                row = await connection.fetchrow(CHANGE, ticket.concert_gid)
                committed_ns = time_ns()
                await redis.publish(f"{CHANNEL}{ticket.concert_gid}", json.dumps(count_of(row)))
                return int(row["version"]), committed_ns

            yield change
        await connection.close()

    return House(name, port, server, changing)


def houses(shop: Shop) -> tuple[list[House], Ticket]:
    """Everybody, and what they all have on sale."""
    ours, ticket = frontrow(shop)
    found = [ours]
    command = [sys.executable, "-m", "bench.peers.strawberry_watch"]
    found.append(peer(shop, "strawberry", command, ticket))
    if reason := node.why_not():
        progress(f"graphql-ws on Node: left out, {reason}")
    else:
        found.append(peer(shop, "graphql-ws on Node", node.command("watch.js"), ticket))
    return found, ticket


# ---------------------------------------------------------------- watching them
async def round_of(audience: Audience, *, seconds: float) -> Round:
    """Changes one after the other for so long, but some at least."""
    cpu_s = audience.house.server.cpu_s()
    sent_ms: list[float] = []
    heard_ms: list[float] = []
    ends_s = monotonic() + seconds
    while monotonic() < ends_s or len(sent_ms) < CHANGES_MIN:
        version, committed_ns = await audience.change()
        arrivals = await asyncio.to_thread(audience.watchers.have, version)
        sent_ms.append((arrivals.sent_ns[-1] - committed_ns) / 1e6)
        heard_ms.append((arrivals.heard_ns[-1] - committed_ns) / 1e6)
        await asyncio.sleep(REST_S)
    cpu_s = audience.house.server.cpu_s() - cpu_s
    return Round(1e6 * cpu_s / (len(sent_ms) * audience.watchers.number), sent_ms, heard_ms)


async def join(audience: Audience, more: int) -> None:
    """So many more are there and idle, which is weighed; then they watch, which is weighed again."""
    before = audience.house.server.memory_bytes()
    began_s = monotonic()
    await asyncio.to_thread(audience.watchers.join, more)
    progress(f"{more:6} more sockets, {more / (monotonic() - began_s):,.0f} a second: {audience.house.name}")
    await asyncio.sleep(SETTLE_S)
    audience.idle_kb = (audience.house.server.memory_bytes() - before) / more / 1024
    began_s = monotonic()
    await asyncio.to_thread(audience.watchers.watch)
    progress(f"{more:6} more watch, {more / (monotonic() - began_s):,.0f} a second: {audience.house.name}")
    await asyncio.sleep(SETTLE_S)
    audience.watching_kb = (audience.house.server.memory_bytes() - before) / more / 1024
    audience.rounds.clear()


async def measured(options: argparse.Namespace, found: list[House], ticket: Ticket) -> list["Line"]:
    """Every house at every size."""
    table = []
    async with AsyncExitStack() as stack:
        audiences: list[Audience] = []
        for house in found:
            change = await stack.enter_async_context(house.changing())
            watchers = stack.enter_context(watching(house.port, WATCH, {"id": ticket.concert_gid}))
            audiences.append(Audience(house, watchers, change))
        for size in options.sizes:
            for audience in audiences:
                await join(audience, size - audience.watchers.number)
            for number in range(options.rounds):
                for audience in audiences:
                    worker = audience.house.worker
                    with worker.awake() if worker else nullcontext():
                        await asyncio.sleep(SETTLE_S)
                        took = await round_of(audience, seconds=options.seconds)
                    audience.rounds.append(took)
                    text = f"{took.delivery_us:6.1f} us, {middle(took.sent_ms):7.1f} ms"
                    progress(f"{size:6} watchers, round {number + 1}: {text}  {audience.house.name}")
            table += [Line.of(audience) for audience in audiences]
    return table


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    watchers: int
    delivery_us: float
    sent_ms: list[float]
    heard_ms: list[float]
    idle_kb: float
    watching_kb: float

    @classmethod
    def of(cls, audience: Audience) -> "Line":
        """Medians of its rounds; all their changes in one heap for the quantiles."""
        rounds = audience.rounds
        return cls(
            audience.house.name,
            audience.watchers.number,
            middle([each.delivery_us for each in rounds]),
            sorted(ms for each in rounds for ms in each.sent_ms),
            sorted(ms for each in rounds for ms in each.heard_ms),
            audience.idle_kb,
            audience.watching_kb,
        )

    def cells(self, ours_us: float) -> tuple[str, ...]:
        """As it is printed."""
        return (
            self.name,
            f"{self.watchers:,}",
            times(self.delivery_us, ours_us),
            f"{self.delivery_us:.1f}",
            f"{self.watchers / quantile(self.sent_ms, 0.5) * 1_000:,.0f}",
            *(f"{quantile(ms, part):,.1f}" for ms in (self.sent_ms, self.heard_ms) for part in (0.5, 0.99)),
            f"{self.idle_kb:.1f}",
            f"{self.watching_kb:.1f}",
        )


def table_of(measured: Sequence[Line]) -> Table:
    """The lines by size, ours first, and CPU for each delivery as a picture."""
    ours_us = {line.watchers: line.delivery_us for line in measured if line.name == OURS}
    series: dict[str, list[tuple[float, float]]] = {}
    for line in measured:
        series.setdefault(line.name, []).append((line.watchers, line.delivery_us))
    picture = lines(series, title="CPU for each delivery, us", x_name="watchers", is_log=True)
    rows = tuple(line.cells(ours_us.get(line.watchers, 0.0)) for line in measured)
    note = (
        f"A change {REST_S * 1_000:.0f} ms after the last one reached everybody. Memory is what the server's process "
        "has grown by for each socket that came since the line above, garbage included."
    )
    return Table(
        "fan-out",
        COLUMNS,
        rows,
        (note,),
        _aims(measured),
        picture=picture,
        picture_shows="CPU for each delivery by number of watchers",
    )


def _aims(measured: Sequence[Line]) -> tuple[str, ...]:
    """Which of ours are met, those that can be told."""
    found = {(line.name, line.watchers): line for line in measured}
    aims = []
    if ours := found.get((OURS, AIMED_AT)):
        what, said = (
            f"at most {DELIVERY_US} us for each delivery at {AIMED_AT:,} watchers",
            f"{ours.delivery_us:.1f} us",
        )
        aims.append(aim(what, found=said, is_met=ours.delivery_us <= DELIVERY_US))
        for name, cheaper in (("strawberry", CHEAPER), ("graphql-ws on Node", 1)):
            if other := found.get((name, AIMED_AT)):
                is_met = other.delivery_us > cheaper * ours.delivery_us
                what = (
                    f"less CPU than {name}"
                    if cheaper == 1
                    else f"at least {cheaper} times less CPU than {name}"
                )
                aims.append(aim(what, found=times(other.delivery_us, ours.delivery_us), is_met=is_met))
    if ours := found.get((OURS, EVERYBODY)):
        what = f"at most {IDLE_KB} KB for each idle socket"
        aims.append(aim(what, found=f"{ours.idle_kb:.1f} KB", is_met=ours.idle_kb <= IDLE_KB))
        sent_ms = quantile(ours.sent_ms, 0.5)
        what = f"{EVERYBODY:,} watchers served within {SERVED_MS} ms"
        aims.append(aim(what, found=f"{sent_ms:,.0f} ms", is_met=sent_ms <= SERVED_MS))
    return tuple(aims)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, seconds=2.0, rounds=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="(default: %(default)s)")
    options = parser.parse_args()
    with open_shop() as shop:
        found, ticket = houses(shop)
        publish(table_of(asyncio.run(measured(options, found, ticket))), options)


if __name__ == "__main__":
    main()
