"""Holds that nobody paid in time end, and their seats are on sale again."""

from collections import defaultdict
from collections.abc import Sequence

from domain.base import BookingId, ConcertId
from domain.booking import PAYABLE, Action
from domain.ports import Deps
from domain.use_cases.booking.cancelling import BATCH, abandon_intents, payments_of
from domain.use_cases.booking.recording import Change, lock_sale_of, record, showing


async def expire_due(deps: Deps, *, limit: int = 500) -> int:
    """Holds that passed are EXPIRED and their seats on sale again; how many it were.

    Concurrency: any number may sweep at once; a booking that somebody else changed meanwhile is left alone.
    Raises: what the first concert that could not be swept raised, after the others were.
    """
    async with deps.write("expire.find") as unit:
        due = await unit.bookings.due(await unit.now(), limit=limit)
    by_concert: defaultdict[ConcertId, list[BookingId]] = defaultdict(list)
    for concert_id, booking_id in due:
        by_concert[concert_id].append(booking_id)
    expired = 0
    failures: list[Exception] = []
    for booking_ids in by_concert.values():
        try:
            for start in range(0, len(booking_ids), BATCH):
                expired += await _expire(deps, booking_ids[start : start + BATCH])
        except Exception as error:  # one concert's locked or broken rows must not keep others' seats held
            failures.append(error)
    if failures:
        raise failures[0]
    return expired


async def _expire(deps: Deps, booking_ids: Sequence[BookingId]) -> int:
    async with deps.write("expire") as unit:
        locked = await unit.bookings.lock(sorted(booking_ids))
        now = await unit.now()
        passed = [b for b in locked if b.status in PAYABLE and b.hold_until <= now]
        if not passed:
            return 0
        sale = await lock_sale_of(unit, passed[0])
        payments = await payments_of(unit, passed)
        moved = sale
        changes: list[Change] = []
        for booking in passed:
            moved = moved.with_hold_released(booking.quantities)
            expired = showing(booking.after(Action.EXPIRE, now), payments.get(booking.id, []))
            changes.append(Change(booking, expired, moved))
        await record(unit, changes, sale=sale)
        await abandon_intents(unit, passed)
        await unit.commit()
    return len(passed)
