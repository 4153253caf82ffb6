"""Writing changes of bookings, and what every use case that changes one reads first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from domain.base import BookingId
from domain.booking import Booking, BookingChanged, Sale
from domain.payment import Payment
from domain.ports import WriteUnit
from domain.user import Viewer


@dataclass(frozen=True, slots=True)
class Change:
    """A booking before and after, None before it was made; and its sale after that, a version on if stock moved."""

    old: Booking | None
    new: Booking
    sale: Sale


async def record(unit: WriteUnit, changes: Sequence[Change], *, sale: Sale) -> None:
    """Write the changes of bookings of one sale, which led from `sale` to the last one's, and say so.

    Concurrency: the bookings are locked or new, and so is the sale where stock moved.
    """
    moved = changes[-1].sale
    has_moved = moved.version != sale.version
    made = [change.new for change in changes if change.old is None]
    if made:
        await unit.bookings.add(made)
    known = [(change.old, change.new) for change in changes if change.old is not None]
    if known:
        await unit.bookings.save(known)
    if has_moved:
        await unit.sales.save(sale, moved)
    await unit.bookings.add_events([(each.old, each.new, each.sale.version) for each in changes])
    # Buyer rows are locked after bookings and the sale: only the idempotency keys of bookings come later.
    versions = await unit.bookings.raise_my_page_versions([change.new.user_id for change in changes])
    events = [
        BookingChanged(change.new, change.sale.facts, None, version)
        for change, version in zip(changes, versions, strict=True)
    ]
    # The last event alone needs to carry the stock.
    await unit.outbox.add(*events[:-1], replace(events[-1], sale=moved if has_moved else None))


def showing(booking: Booking, payments: Sequence[Payment]) -> Booking:
    """The booking with the standing of its payments, oldest first."""
    if not payments:
        return booking
    latest = payments[-1]
    return booking.showing(
        latest.id,
        status=latest.status,
        decline_code=latest.decline_code,
        money_may_move=any(payment.is_open for payment in payments),
    )


def may_see(viewer: Viewer, booking: Booking) -> bool:
    """Whether it is the viewer's or the viewer is an admin."""
    return viewer.is_admin or booking.user_id == viewer.user.id


async def lock_visible(unit: WriteUnit, viewer: Viewer, booking_id: BookingId) -> Booking | None:
    """The booking, locked, where it is the viewer's or the viewer is an admin."""
    found = await unit.bookings.lock([booking_id])
    return found[0] if found and may_see(viewer, found[0]) else None


async def lock_sale_of(unit: WriteUnit, booking: Booking) -> Sale:
    """The booking's sale, locked."""
    sale = await unit.sales.lock(booking.concert_id)
    assert sale is not None, "a booking has a sale"
    return sale


async def sale_of(unit: WriteUnit, booking: Booking) -> Sale:
    """The booking's sale as it is now, without a lock."""
    sale = await unit.sales.get(booking.concert_id)
    assert sale is not None, "a booking has a sale"
    return sale


async def as_they_are_now(unit: WriteUnit, references: Sequence[str]) -> dict[str, Booking]:
    """What replayed outcomes name, by id."""
    # Not locked: who replays a booking holds the sale's lock, and everybody else takes the booking's first.
    found = await unit.bookings.get([BookingId(each) for each in references])
    return {booking.id: booking for booking in found}
