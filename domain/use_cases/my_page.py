"""The read side: my page, live counts, and the streams that push both.

The read model answers where it is complete and new enough; else the database does. It never decides anything.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from domain.base import BadUserInput, BookingId, ConcertId, DomainError, NotFound, PageQuery, UserId
from domain.booking import BookingChanged, BookingStatus, Sale, SaleChanged
from domain.my_page import MyBooking, MyPageView
from domain.ports import Deps, Resync
from domain.user import Viewer

T = TypeVar("T")

# How long a reader waits for the projection of their own write (DESIGN.md, "One event").
OWN_WRITE_WAIT_S = 0.2
FIRST_NAP_S = 0.005
# A stream opens with at most this many bookings.
SINCE_MAX = 10_000
# After a lost connection the snapshot is tried this often, this far apart, before the stream ends with the error.
SNAPSHOT_TRIES = 20
SNAPSHOT_NAP_S = 0.5
# A change is dated before its commit; looking this much further back finds one that committed late.
OVERLAP = timedelta(seconds=60)


# ---------------------------------------------------------------- projections (reactions)
async def project(deps: Deps, event: BookingChanged | SaleChanged) -> None:
    """Reaction: the read model says what the event says. Idempotent; newest wins."""
    await deps.read_model.project([event])


async def announce(deps: Deps, event: BookingChanged | SaleChanged) -> None:
    """Reaction: everyone who listens is told. After `project`: who hears of a change finds it on my page."""
    await deps.live.announce(event)


# ---------------------------------------------------------------- reads
async def live_sales(deps: Deps, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
    """The live counts of the concerts that exist."""
    try:
        found = dict(await deps.read_model.sales(ids) or {})
    except ConnectionError:
        found = {}
    missing = [concert_id for concert_id in ids if concert_id not in found]
    if missing:
        found.update(await deps.reads.sales(missing))
    return found


async def my_page(
    deps: Deps, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
) -> MyPageView:
    """The buyer's page with every change that was committed before the question."""
    wanted = await deps.reads.my_page_version(user_id)
    nap_s = FIRST_NAP_S
    try:
        async with asyncio.timeout(OWN_WRITE_WAIT_S):
            while (view := await deps.read_model.my_page(user_id, query, statuses=statuses)) is not None:
                if view.version >= wanted:
                    return view
                await asyncio.sleep(nap_s)
                nap_s *= 2
    except (TimeoutError, ConnectionError):
        pass  # late or away: the database knows
    return await deps.reads.my_page(user_id, query, statuses=statuses)


# ---------------------------------------------------------------- streams
async def watch_sale(deps: Deps, concert_id: ConcertId) -> AsyncIterator[Sale]:
    """The count now, then every newer one. Raises: NotFound before the first."""
    async with deps.live.listen_sale(concert_id) as heard:
        latest = await _sale_now(deps, concert_id)
        yield latest
        async for said in heard:
            sale = await _again(partial(_sale_now, deps, concert_id)) if isinstance(said, Resync) else said
            if sale.version > latest.version:
                latest = sale
                yield latest


async def _sale_now(deps: Deps, concert_id: ConcertId) -> Sale:
    found = await deps.reads.sales([concert_id])
    if concert_id not in found:
        raise NotFound("concert")
    return found[concert_id]


async def watch_booking(deps: Deps, viewer: Viewer, booking_id: BookingId) -> AsyncIterator[MyBooking]:
    """The booking now, then every newer state until it is final.

    Raises: NotFound before the first, also for somebody else's booking.
    """
    owner_id = (await _booking_now(deps, viewer, booking_id)).booking.user_id
    async with deps.live.listen_buyer(owner_id) as heard:
        latest = await _booking_now(deps, viewer, booking_id)
        yield latest
        if latest.booking.is_final:
            return
        async for said in heard:
            if isinstance(said, Resync):
                row = await _again(partial(_booking_now, deps, viewer, booking_id))
            elif said.booking.id == booking_id:
                row = said
            else:
                continue
            if row.booking.version > latest.booking.version:
                latest = row
                yield latest
            if latest.booking.is_final:
                return


async def _booking_now(deps: Deps, viewer: Viewer, booking_id: BookingId) -> MyBooking:
    row = (await deps.reads.my_bookings([booking_id])).get(booking_id)
    if row is None or not (viewer.is_admin or row.booking.user_id == viewer.user.id):
        raise NotFound("booking")
    return row


async def watch_my_bookings(
    deps: Deps, viewer: Viewer, *, since: datetime | None
) -> AsyncIterator[MyBooking]:
    """The viewer's bookings changed since then (or all that are not final), then every newer state of any."""
    user_id = viewer.user.id
    async with deps.live.listen_buyer(user_id) as heard:
        versions: dict[BookingId, int] = {}
        opened_at = heard_until = await deps.reads.now()
        for row in await _changes(deps, user_id, since):
            versions[row.booking.id] = row.booking.version
            yield row
        async for said in heard:
            rows: Sequence[MyBooking]
            if isinstance(said, Resync):
                lost_since, heard_until = heard_until - OVERLAP, await _again(deps.reads.now)
                rows = await _again(partial(_changes, deps, user_id, lost_since))
            elif said.booking.id not in versions and said.booking.created_at < opened_at:
                # Left out of the snapshot, and what is told of it may be a state of long ago told again.
                rows = [await _again(partial(_booking_now, deps, viewer, said.booking.id))]
            else:
                rows = [said]
            for row in rows:
                if row.booking.version > versions.get(row.booking.id, 0):
                    versions[row.booking.id] = row.booking.version
                    yield row


async def _changes(deps: Deps, user_id: UserId, since: datetime | None) -> Sequence[MyBooking]:
    rows = await deps.reads.my_changes(user_id, since=since, limit=SINCE_MAX + 1)
    if len(rows) > SINCE_MAX:
        raise BadUserInput(f"More than {SINCE_MAX} bookings changed since then. Choose a later time.")
    return rows


async def _again(read: Callable[[], Awaitable[T]]) -> T:
    """Read a snapshot after a lost connection; the database may be on its way back too."""
    for _ in range(SNAPSHOT_TRIES):
        try:
            return await read()
        except DomainError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(SNAPSHOT_NAP_S)
    return await read()
