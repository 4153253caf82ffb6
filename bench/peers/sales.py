"""The tables of the peers, and their booking: a row lock each as anybody would write it, or many per commit."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

TABLES = """
CREATE TABLE stock (
  concert_id text PRIMARY KEY, ticket_type_id text NOT NULL, price_minor integer NOT NULL, currency text NOT NULL,
  capacity integer NOT NULL, available integer NOT NULL CHECK (available >= 0), version integer NOT NULL DEFAULT 1
);
CREATE TABLE bookings (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(), concert_id text NOT NULL REFERENCES stock, buyer text NOT NULL,
  quantity integer NOT NULL, total_minor integer NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
"""
LOCK = "SELECT available, price_minor, currency FROM stock WHERE concert_id = $1 FOR UPDATE"
TAKE = "UPDATE stock SET available = available - $2, version = version + 1 WHERE concert_id = $1"
ADD = """INSERT INTO bookings (concert_id, buyer, quantity, total_minor) VALUES ($1, $2, $3, $4)
RETURNING id::text, created_at"""
ADD_MANY = """INSERT INTO bookings (concert_id, buyer, quantity, total_minor)
SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::integer[]) RETURNING id::text, created_at"""

# Where changes of a concert's count are published, its id behind it.
CHANNEL = "count:"
COUNT = "SELECT * FROM stock WHERE concert_id = $1"
CHANGE = "UPDATE stock SET available = available - 1, version = version + 1 WHERE concert_id = $1 RETURNING *"


@dataclass(frozen=True)
class Order:
    """What somebody wants."""

    concert_id: str
    buyer: str
    quantity: int


@dataclass(frozen=True)
class Booked:
    """What somebody has."""

    id: str
    total_minor: int
    currency: str
    created_at: datetime


Book = Callable[[Order], Awaitable[Booked | None]]


async def book_one(pool: "asyncpg.Pool[asyncpg.Record]", order: Order) -> Booked | None:
    """Lock the row, look, take, insert, commit; None where it is sold out."""
    async with pool.acquire() as connection, connection.transaction():
        stock = await connection.fetchrow(LOCK, order.concert_id)
        if stock is None or stock["available"] < order.quantity:
            return None
        total_minor = stock["price_minor"] * order.quantity
        await connection.execute(TAKE, order.concert_id, order.quantity)
        row = await connection.fetchrow(ADD, order.concert_id, order.buyer, order.quantity, total_minor)
        assert row is not None
    return Booked(row["id"], total_minor, stock["currency"], row["created_at"])


async def book_many(
    pool: "asyncpg.Pool[asyncpg.Record]", concert_id: str, orders: list[Order]
) -> list[Booked | None]:
    """The same for many orders of one concert in one transaction, first come, first served."""
    async with pool.acquire() as connection, connection.transaction():
        stock = await connection.fetchrow(LOCK, concert_id)
        available = 0 if stock is None else stock["available"]
        takers = []
        for order in orders:
            if order.quantity <= available:
                available -= order.quantity
                takers.append(order)
        if stock is None or not takers:
            return [None] * len(orders)
        quantities = [order.quantity for order in takers]
        totals = [stock["price_minor"] * quantity for quantity in quantities]
        await connection.execute(TAKE, concert_id, sum(quantities))
        buyers = [order.buyer for order in takers]
        rows = await connection.fetch(ADD_MANY, concert_id, buyers, quantities, totals)
    booked = {
        id(order): Booked(row["id"], total_minor, stock["currency"], row["created_at"])
        for order, total_minor, row in zip(takers, totals, rows, strict=True)
    }
    return [booked.get(id(order)) for order in orders]


class GroupCommit:
    """While one transaction of a concert runs, its orders wait together for the next. No queue has an end."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", batch_max: int) -> None:
        self._pool, self._batch_max = pool, batch_max
        self._waiting: dict[str, deque[tuple[Order, asyncio.Future[Booked | None]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def book(self, order: Order) -> Booked | None:
        """Answered after the commit; None where it is sold out."""
        answer: asyncio.Future[Booked | None] = asyncio.get_running_loop().create_future()
        if order.concert_id in self._waiting:
            self._waiting[order.concert_id].append((order, answer))
        else:
            self._waiting[order.concert_id] = deque([(order, answer)])
            task = asyncio.create_task(self._work(order.concert_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _work(self, concert_id: str) -> None:
        waiting = self._waiting[concert_id]
        while waiting:
            batch = [waiting.popleft() for _ in range(min(len(waiting), self._batch_max))]
            try:
                booked = await book_many(self._pool, concert_id, [order for order, _ in batch])
            except Exception as error:  # whoever waits must hear of it
                for _, answer in batch:
                    answer.set_exception(error)
                continue
            for (_, answer), each in zip(batch, booked, strict=True):
                answer.set_result(each)
        del self._waiting[concert_id]


def count_of(row: asyncpg.Record) -> dict[str, object]:
    """The live count in a row of `stock`, as clients see it."""
    seats = {
        "capacity": row["capacity"],
        "available": row["available"],
        "held": row["capacity"] - row["available"],
        "sold": 0,
    }
    price = {"amountMinor": row["price_minor"], "currency": row["currency"]}
    ticket_type = {"ticketTypeId": row["ticket_type_id"], "name": "Standing", "price": price} | seats
    facts = {"concertId": row["concert_id"], "status": "ON_SALE", "version": row["version"]}
    return facts | seats | {"ticketTypes": [ticket_type]}


def booking_of(pool: "asyncpg.Pool[asyncpg.Record]", batch_max: int) -> Book:
    """How to book: one per commit, or up to `batch_max`."""
    if batch_max > 1:
        return GroupCommit(pool, batch_max).book
    return lambda order: book_one(pool, order)
