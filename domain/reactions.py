"""The whole event flow on one screen: which event leads to what.

Every reaction is idempotent, because the relay delivers at least once; they run in the order written, and a row of
the outbox is deleted only after all of them. Project first, announce second.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from domain.booking import BookingChanged, SaleChanged, SaleClosed
from domain.events import Event, IntentAbandoned, RefundRequested
from domain.ports import Deps
from domain.use_cases.booking import cancel_bookings
from domain.use_cases.my_page import announce, project
from domain.use_cases.settlement import close_intent, refund_payment

# Each value takes the key's events; a dict can't say that in types.
Reaction = Callable[[Deps, Any], Awaitable[None]]

REACTIONS: dict[type[Event], tuple[Reaction, ...]] = {
    BookingChanged: (project, announce),
    SaleChanged: (project, announce),
    SaleClosed: (cancel_bookings,),
    RefundRequested: (refund_payment,),
    IntentAbandoned: (close_intent,),
}


async def react(deps: Deps, event: Event) -> None:
    """All that follows from the event has happened."""
    for reaction in REACTIONS[type(event)]:
        await reaction(deps, event)
