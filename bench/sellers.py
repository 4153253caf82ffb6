"""Everybody who sells in the hot sale, each with a database of its own on one PostgreSQL."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench import node
from bench.peers.sales import TABLES
from bench.programs import Program, free_port, progress
from bench.questions import booking
from bench.shop import CAPACITY, FRONTROW, PRICE, Shop, Ticket, connect, environ_of, plain
from bench.wire import NUMBER, post
from infra.settings import Settings

# A commit of a peer that groups bookings takes at most so many.
BATCH_MAX = 100
SWITCH = "booking_batch_max"


@dataclass(frozen=True)
class Seller:
    """A server that takes bookings, and the database in which they are found afterwards."""

    name: str
    port: int
    requests: tuple[bytes, ...]
    server: Program
    database_url: str
    worker: Program | None = None


@dataclass(frozen=True)
class Stall:
    """What somebody who sells needs: servers, a name, what is on sale, and the database of ours to copy."""

    shop: Shop
    name: str
    tickets: Sequence[Ticket]
    template: str


class NotHere(Exception):
    """A seller can't take part; the text says why."""


Opening = Callable[[Stall], Seller]


def frontrow(stall: Stall, settings: Mapping[str, str] | None = None, *, processes: int = 1) -> Seller:
    """Frontrow, the worker in a process of its own."""
    url = stall.shop.database(stall.name, template=stall.template)
    house = stall.shop.frontrow(stall.name, url, settings=settings, processes=processes)
    return Seller(stall.name, house.port, tuple(map(booking, stall.tickets)), house.api, url, house.worker)


def frontrow_one_by_one(stall: Stall) -> Seller:
    """Frontrow with a commit for every booking."""
    if SWITCH not in Settings.model_fields:
        raise NotHere(f"this version has no FRONTROW_{SWITCH.upper()}")
    return frontrow(stall, {SWITCH: "1"})


def bare_route(stall: Stall) -> Seller:
    """One Starlette route that calls our use case."""
    url = stall.shop.database(stall.name, template=stall.template)
    port, environ = free_port(), environ_of(url, stall.shop.valkey().url)
    command = [sys.executable, "-m", "bench.peers.bare_route", "--port", str(port)]
    server = stall.shop.start(stall.name, command, port=port, environ=environ)
    worker = stall.shop.start(f"{stall.name} worker", [*FRONTROW, "worker"], environ=environ)
    return Seller(stall.name, port, tuple(map(_bare_booking, stall.tickets)), server, url, worker)


def _bare_booking(ticket: Ticket) -> bytes:
    number = NUMBER.decode()
    items = [{"ticketTypeId": ticket.ticket_type_id, "quantity": 1}]
    body = {
        "concertId": ticket.concert_id,
        "items": items,
        "idempotencyKey": f"book-{number}",
        "buyer": number,
    }
    return post(body, path="/book")


def strawberry(stall: Stall, *, batch_max: int) -> Seller:
    """Stock strawberry."""
    command = [sys.executable, "-m", "bench.peers.strawberry_server", "--batch-max", str(batch_max)]
    return _peer(stall, lambda port, url: [*command, "--port", port, "--database", url])


def on_node(stall: Stall, *, script: str, batch_max: int) -> Seller:
    """A server on Node."""
    if reason := node.why_not():
        raise NotHere(reason)
    return _peer(stall, lambda port, url: node.command(script, port, url, str(batch_max)))


def _peer(stall: Stall, command: Callable[[str, str], list[str]]) -> Seller:
    url, port = stall.shop.database(stall.name), free_port()
    asyncio.run(fill_peer(url, stall.tickets))
    environ = {"NODE_ENV": "production"}
    server = stall.shop.start(stall.name, command(str(port), plain(url)), port=port, environ=environ)
    return Seller(stall.name, port, tuple(map(booking, stall.tickets)), server, url)


async def fill_peer(url: str, tickets: Sequence[Ticket]) -> None:
    """The tables of a peer, with the same on sale as with us."""
    connection = await connect(url)
    try:
        await connection.execute(TABLES)
        rows = [
            (each.concert_gid, each.ticket_type_gid, PRICE.amount_minor, PRICE.currency, CAPACITY, CAPACITY)
            for each in tickets
        ]
        columns = ["concert_id", "ticket_type_id", "price_minor", "currency", "capacity", "available"]
        await connection.copy_records_to_table("stock", records=rows, columns=columns)
    finally:
        await connection.close()


FRONTROW_NAME = "Frontrow"
ONE_BY_ONE_NAME = "Frontrow, a commit per booking"
BARE_NAME = "Starlette route, same use case"
# By what they are called on the command line: how they are called in a table, and how they open.
EVERYBODY: dict[str, tuple[str, Opening]] = {
    "frontrow": (FRONTROW_NAME, frontrow),
    "two-processes": ("Frontrow, two API processes", partial(frontrow, processes=2)),
    "one-by-one": (ONE_BY_ONE_NAME, frontrow_one_by_one),
    "bare": (BARE_NAME, bare_route),
    "strawberry": ("strawberry, row lock", partial(strawberry, batch_max=1)),
    "yoga": ("graphql-yoga, row lock", partial(on_node, script="yoga.js", batch_max=1)),
    "mercurius": ("mercurius + JIT, row lock", partial(on_node, script="mercurius.js", batch_max=1)),
    "strawberry-grouped": ("strawberry, many per commit", partial(strawberry, batch_max=BATCH_MAX)),
    "yoga-grouped": (
        "graphql-yoga, many per commit",
        partial(on_node, script="yoga.js", batch_max=BATCH_MAX),
    ),
    "mercurius-grouped": (
        "mercurius + JIT, many per commit",
        partial(on_node, script="mercurius.js", batch_max=BATCH_MAX),
    ),
}


def opened(shop: Shop, who: Sequence[str], tickets: Sequence[Ticket], *, template: str) -> list[Seller]:
    """Those of them that can take part; why another can't is said."""
    sellers = []
    for name, opening in (EVERYBODY[each] for each in who):
        try:
            sellers.append(opening(Stall(shop, name, tickets, template)))
        except NotHere as reason:
            progress(f"{name}: left out, {reason}")
    return sellers
