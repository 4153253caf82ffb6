"""The viewer's own page, and its live updates."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated

import strawberry

from domain.use_cases.my_page import watch_my_bookings
from resolvers.context import Info
from resolvers.guards import signed_in
from resolvers.streams import shown
from schema.common import given
from schema.my_page import BookingUpdate, MyPage


def my_page(info: Info) -> MyPage:
    """The viewer's page. Raises: Unauthenticated."""
    return MyPage.of(signed_in(info))


# ---------------------------------------------------------------- subscriptions
async def watch_my_booking_updates(
    info: Info,
    since: Annotated[
        datetime | None,
        strawberry.argument(
            description=(
                "Open with every booking changed at or after this, e.g. the newest `occurredAt` you have "
                "seen. Absent or null: with every one that is not final."
            )
        ),
    ] = strawberry.UNSET,
) -> AsyncGenerator[BookingUpdate, None]:
    """The viewer's bookings, then every newer state of any of them. Raises: Unauthenticated."""
    viewer = signed_in(info)
    # Its first state may be long in coming: there may be no booking yet.
    return shown(watch_my_bookings(info.context.deps, viewer, since=given(since)), BookingUpdate.of)
