"""Strawberry as it comes, watched: its own graphql-transport-ws, one Redis connection for all who watch.

`python -m bench.peers.strawberry_watch --port P --database URL --redis URL`. A change is decoded once and handed to
everybody's queue; executing and encoding it for each of them is strawberry's own.
"""

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import strawberry
import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from strawberry.asgi import GraphQL
from strawberry.types import Info

from bench.peers.sales import CHANNEL, COUNT, count_of


@strawberry.type
class Money:
    """An amount."""

    amount_minor: int
    currency: str


@strawberry.type
class TicketTypeCount:
    """The seats of one type."""

    ticket_type_id: strawberry.ID
    name: str
    capacity: int
    available: int
    held: int
    sold: int
    price: Money


@strawberry.type
class TicketCount:
    """The seats of a concert."""

    concert_id: strawberry.ID
    status: str
    capacity: int
    available: int
    held: int
    sold: int
    version: int
    ticket_types: list[TicketTypeCount]


@dataclass
class Hub:
    """Everybody's queues by concert."""

    redis: Redis
    queues: defaultdict[str, set[asyncio.Queue[TicketCount]]] = field(
        default_factory=lambda: defaultdict(set)
    )

    async def listen(self) -> None:
        """Hand on what is published, for ever."""
        async with self.redis.pubsub() as pubsub:
            await pubsub.psubscribe(f"{CHANNEL}*")
            async for message in pubsub.listen():
                if message["type"] == "pmessage":
                    count = _shown(json.loads(message["data"]))
                    for queue in self.queues[count.concert_id]:
                        queue.put_nowait(count)


@strawberry.type
class Query:
    """GraphQL wants one."""

    ok: bool = True


@strawberry.type
class Subscription:
    """Watching."""

    @strawberry.subscription
    async def ticket_count(self, info: Info, concert_id: strawberry.ID) -> AsyncGenerator[TicketCount, None]:
        """The count now, then every change."""
        state = info.context["request"].app.state
        queue: asyncio.Queue[TicketCount] = asyncio.Queue()
        queues = state.hub.queues[concert_id]
        queues.add(queue)
        try:
            row = await state.pool.fetchrow(COUNT, concert_id)
            yield _shown(count_of(row))
            while True:
                yield await queue.get()
        finally:
            queues.discard(queue)


def _shown(count: dict[str, Any]) -> TicketCount:
    (line,) = count["ticketTypes"]
    price = Money(amount_minor=line["price"]["amountMinor"], currency=line["price"]["currency"])
    seats = {name: count[name] for name in ("capacity", "available", "held", "sold")}
    ticket_type = TicketTypeCount(
        ticket_type_id=line["ticketTypeId"], name=line["name"], price=price, **seats
    )
    return TicketCount(
        concert_id=count["concertId"],
        status=count["status"],
        version=count["version"],
        ticket_types=[ticket_type],
        **seats,
    )


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--redis", required=True)
    options = parser.parse_args()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with asyncpg.create_pool(options.database) as pool, Redis.from_url(options.redis) as redis:
            app.state.pool, app.state.hub = pool, Hub(redis)
            listening = asyncio.create_task(app.state.hub.listen())
            yield
            listening.cancel()
            await asyncio.wait([listening])

    graphql = GraphQL[None, None](strawberry.Schema(Query, subscription=Subscription))
    app = Starlette(routes=[WebSocketRoute("/graphql", graphql)], lifespan=lifespan)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
