"""Organise: register, change and cancel concerts. The sale is told in the same transaction."""

from dataclasses import dataclass, replace
from datetime import datetime

from domain.base import Checker, ConcertId, NotFound, TicketTypeId
from domain.booking import Sale, StockLine
from domain.concert import (
    CAPACITY_MAX,
    Concert,
    ConcertChange,
    ConcertState,
    ConcertStatus,
    NewTicketType,
    TicketType,
    check_concert,
    check_ticket_types,
)
from domain.ports import Deps, WriteUnit
from domain.use_cases.booking import change_sale, close_sale, open_sale, with_capacity
from domain.use_cases.keys import once, scope_of
from domain.user import Viewer


@dataclass(frozen=True, slots=True)
class RegisterConcert:
    """A concert to sell tickets for."""

    title: str
    performer: str
    description: str
    venue: str
    time_zone: str
    starts_at: datetime
    sales_open_at: datetime
    sales_close_at: datetime
    max_tickets_per_user: int
    ticket_types: tuple[NewTicketType, ...]
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateConcert:
    """What to change of a concert; capacities by ticket type."""

    concert_id: ConcertId
    change: ConcertChange
    capacities: tuple[tuple[TicketTypeId, int], ...] = ()
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class CancelConcert:
    """Call a concert off: every booking is cancelled and every captured payment refunded."""

    concert_id: ConcertId
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class CancelledConcert:
    """How far calling it off has come: bookings still live, refunds pending or failed."""

    concert: Concert
    bookings_to_cancel: int
    refunds_open: int


async def register_concert(deps: Deps, viewer: Viewer, command: RegisterConcert) -> Concert:
    """The concert is in the catalogue and sells within its window. Raises: InvalidInput, IdempotencyMismatch."""
    scope = scope_of(viewer.user.id, "registerConcert", command)
    async with deps.write("register_concert", module="concert") as unit:

        async def act() -> Concert:
            return await _register(deps, unit, command)

        async def replay(reference: str) -> Concert:
            return await _as_it_is_now(unit, ConcertId(reference))

        return await once(unit, scope, act=act, reference=lambda concert: concert.id, replay=replay)


async def _register(deps: Deps, unit: WriteUnit, command: RegisterConcert) -> Concert:
    now = await unit.now()
    concert = Concert(
        id=ConcertId(deps.randomness.new_id()),
        title=command.title.strip(),
        performer=command.performer.strip(),
        description=command.description.strip(),
        venue=command.venue.strip(),
        time_zone=command.time_zone,
        starts_at=command.starts_at,
        sales_open_at=command.sales_open_at,
        sales_close_at=command.sales_close_at,
        max_tickets_per_user=command.max_tickets_per_user,
        status=ConcertStatus.SCHEDULED,
        created_at=now,
    )
    check = check_concert(concert, now)
    check_ticket_types(command.ticket_types, check)
    check.done()
    types = [
        TicketType(
            id=TicketTypeId(deps.randomness.new_id()),
            concert_id=concert.id,
            name=wanted.name.strip(),
            price=wanted.price,
            capacity=wanted.capacity,
        )
        for wanted in command.ticket_types
    ]
    await unit.concerts.add(concert, types)
    stock = tuple(StockLine(t.id, t.name, t.price, t.capacity, held=0, sold=0) for t in types)
    await open_sale(unit, _sale_of(concert, stock))
    return concert


def _sale_of(concert: Concert, stock: tuple[StockLine, ...]) -> Sale:
    return Sale(
        concert_id=concert.id,
        title=concert.title,
        venue=concert.venue,
        starts_at=concert.starts_at,
        sales_open_at=concert.sales_open_at,
        sales_close_at=concert.sales_close_at,
        max_tickets_per_user=concert.max_tickets_per_user,
        is_cancelled=False,
        version=1,
        stock=stock,
    )


async def update_concert(deps: Deps, viewer: Viewer, command: UpdateConcert) -> Concert:
    """Catalogue and sale are as wanted; held and sold seats are never touched.

    Raises: NotFound, ConcertState, InvalidInput, CapacityTaken, IdempotencyMismatch.
    """
    scope = scope_of(viewer.user.id, "updateConcert", command)
    async with deps.write("update_concert", module="concert") as unit:
        concert = await unit.concerts.lock(command.concert_id)

        async def act() -> Concert:
            return await _update(unit, concert, command)

        async def replay(reference: str) -> Concert:
            return await _as_it_is_now(unit, ConcertId(reference))

        return await once(unit, scope, act=act, reference=lambda changed: changed.id, replay=replay)


async def _update(unit: WriteUnit, concert: Concert | None, command: UpdateConcert) -> Concert:
    now = await unit.now()
    concert = _changeable(concert, now)
    sale = await _lock_sale(unit, concert)
    for ticket_type_id, _ in command.capacities:
        if sale.line(ticket_type_id) is None:
            raise NotFound("ticket type")
    changed = command.change.applied_to(concert)
    changed = replace(
        changed,
        title=changed.title.strip(),
        performer=changed.performer.strip(),
        description=changed.description.strip(),
        venue=changed.venue.strip(),
    )
    check = check_concert(changed, now)
    _check_capacities(command, check)
    check.done()
    capacities = dict(command.capacities)
    stock = tuple(
        with_capacity(line, capacities.get(line.ticket_type_id, line.capacity)) for line in sale.stock
    )
    wanted = replace(_sale_of(changed, stock), version=sale.version, halted_at=sale.halted_at)
    await change_sale(unit, sale, wanted)
    await unit.concerts.save(changed, capacities)
    return changed


def _check_capacities(command: UpdateConcert, check: Checker) -> None:
    seen: set[TicketTypeId] = set()
    for position, (ticket_type_id, capacity) in enumerate(command.capacities):
        path = ("capacities", str(position))
        check.whole(capacity, (*path, "capacity"), at_least=0, at_most=CAPACITY_MAX)
        check.require(ticket_type_id not in seen, (*path, "ticketTypeId"), "must not appear twice")
        seen.add(ticket_type_id)


async def cancel_concert(deps: Deps, viewer: Viewer, command: CancelConcert) -> CancelledConcert:
    """The concert is called off, nothing of it sells any more, and its bookings are being cancelled and refunded.

    Concurrency: asking again answers how far that has come. Raises: NotFound, ConcertState once it has started.
    """
    scope = scope_of(viewer.user.id, "cancelConcert", command)
    async with deps.write("cancel_concert", module="concert") as unit:
        concert = await unit.concerts.lock(command.concert_id)

        async def act() -> CancelledConcert:
            return await _cancel(unit, concert)

        async def replay(reference: str) -> CancelledConcert:
            return await _progress(unit, await _as_it_is_now(unit, ConcertId(reference)))

        return await once(unit, scope, act=act, reference=lambda done: done.concert.id, replay=replay)


async def _cancel(unit: WriteUnit, concert: Concert | None) -> CancelledConcert:
    if concert is None or concert.status is not ConcertStatus.CANCELLED:
        concert = replace(_changeable(concert, await unit.now()), status=ConcertStatus.CANCELLED)
        await close_sale(unit, await _lock_sale(unit, concert))
        await unit.concerts.save(concert, {})
    return await _progress(unit, concert)


async def _progress(unit: WriteUnit, concert: Concert) -> CancelledConcert:
    bookings, refunds = await unit.sales.unsettled(concert.id)
    return CancelledConcert(concert, bookings_to_cancel=bookings, refunds_open=refunds)


def _changeable(concert: Concert | None, now: datetime) -> Concert:
    if concert is None:
        raise NotFound("concert")
    if concert.status is ConcertStatus.CANCELLED:
        raise ConcertState(concert.id, "CONCERT_CANCELLED")
    if concert.starts_at <= now:
        raise ConcertState(concert.id, "CONCERT_STARTED")
    return concert


async def _lock_sale(unit: WriteUnit, concert: Concert) -> Sale:
    sale = await unit.sales.lock(concert.id)
    assert sale is not None, "a concert has a sale"
    return sale


async def _as_it_is_now(unit: WriteUnit, concert_id: ConcertId) -> Concert:
    concert = await unit.concerts.lock(concert_id)
    assert concert is not None, "a stored outcome names a concert that exists"
    return concert
