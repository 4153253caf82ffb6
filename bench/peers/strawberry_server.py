"""Strawberry as it comes: `strawberry.asgi.GraphQL` on uvicorn, asyncpg with its own pool of ten.

`python -m bench.peers.strawberry_server --port P --database URL [--batch-max 100]`. No login, no idempotency, no
limit per person, no events: the bearer token is the buyer's name, and nobody checks it.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

import asyncpg
import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from strawberry.asgi import GraphQL
from strawberry.types import Info

from bench.peers.sales import Booked, Order, booking_of


@strawberry.interface
class Problem:
    """What can go wrong."""

    code: str
    message: str


@strawberry.type
class SoldOutProblem(Problem):
    """Nothing left."""


@strawberry.type
class Money:
    """An amount."""

    amount_minor: int
    currency: str


@strawberry.type
class BookingItem:
    """Tickets of one type."""

    ticket_type_id: strawberry.ID
    quantity: int


@strawberry.type
class Booking:
    """What was booked."""

    id: strawberry.ID
    status: str
    pay_by: datetime
    total: Money
    items: list[BookingItem]


@strawberry.type
class BookConcertSuccess:
    """The tickets are held."""

    booking: Booking


@strawberry.input
class BookingItemInput:
    """Tickets wanted of one type."""

    ticket_type_id: strawberry.ID
    quantity: int


@strawberry.input
class BookConcertInput:
    """What is wanted; the key is taken and ignored."""

    concert_id: strawberry.ID
    items: list[BookingItemInput]
    idempotency_key: str | None = None


BookConcertResult = Annotated[BookConcertSuccess | SoldOutProblem, strawberry.union("BookConcertResult")]


@strawberry.type
class Query:
    """GraphQL wants one."""

    ok: bool = True


@strawberry.type
class Mutation:
    """Booking."""

    @strawberry.mutation
    async def book_concert(self, info: Info, input: BookConcertInput) -> BookConcertResult:
        """One order of one ticket type."""
        request = info.context["request"]
        (item,) = input.items
        order = Order(input.concert_id, request.headers["authorization"], item.quantity)
        booked = await request.app.state.book(order)
        if booked is None:
            return SoldOutProblem(code="SOLD_OUT", message="Sold out.")
        return BookConcertSuccess(booking=_shown(booked, item))


def _shown(booked: Booked, item: BookingItemInput) -> Booking:
    return Booking(
        id=strawberry.ID(booked.id),
        status="AWAITING_PAYMENT",
        pay_by=booked.created_at,
        total=Money(amount_minor=booked.total_minor, currency=booked.currency),
        items=[BookingItem(ticket_type_id=item.ticket_type_id, quantity=item.quantity)],
    )


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--batch-max", type=int, default=1, help="bookings per commit")
    options = parser.parse_args()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with asyncpg.create_pool(options.database) as pool:
            app.state.book = booking_of(pool, options.batch_max)
            yield

    graphql = GraphQL[None, None](strawberry.Schema(Query, Mutation))
    app = Starlette(routes=[Route("/graphql", graphql)], lifespan=lifespan)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
