"""The least that could serve our bookings: one Starlette route that calls the same use case, and no GraphQL.

`python -m bench.peers.bare_route --port P` with FRONTROW_* as for `frontrow serve`. It believes who the body says
the buyer is, so there is no login in it; everything below the use case is the product's.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.shop import viewer_of
from domain.base import ConcertId, DomainError, TicketTypeId
from domain.booking import Quantity
from domain.use_cases.booking import BookConcert, book_concert
from infra.app import composed
from infra.settings import Command, load_settings


async def book(request: Request) -> Response:
    """One booking; the answer has the shape of GraphQL's."""
    asked = orjson.loads(await request.body())
    command = BookConcert(
        concert_id=ConcertId(asked["concertId"]),
        quantities=tuple(
            Quantity(TicketTypeId(item["ticketTypeId"]), item["quantity"]) for item in asked["items"]
        ),
        idempotency_key=asked["idempotencyKey"],
    )
    try:
        booking = await book_concert(request.app.state.deps, viewer_of(int(asked["buyer"])), command)
    except DomainError as error:
        shown: dict[str, object] = {"code": error.code}
    else:
        total = {"amountMinor": booking.total.amount_minor, "currency": booking.total.currency}
        items = [{"ticketTypeId": item.ticket_type_id, "quantity": item.quantity} for item in booking.items]
        facts = {"id": booking.id, "status": booking.status.value, "payBy": booking.pay_by}
        shown = {
            "__typename": "BookConcertSuccess",
            "booking": facts | {"total": total, "items": items},
        }
    return Response(orjson.dumps({"data": {"bookConcert": shown}}), media_type="application/json")


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    settings = load_settings(command=Command.SERVE)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with composed(settings) as frontrow:
            app.state.deps = frontrow.deps
            yield

    app = Starlette(routes=[Route("/book", book, methods=["POST"])], lifespan=lifespan)
    # The same loop as Frontrow's own.
    uvicorn.run(
        app, port=options.port, loop="asyncio", http="httptools", log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
