"""Hold seats: everybody who wants the same concert while one transaction is in flight shares the next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from domain.base import (
    PAYMENT_MAX_MINOR,
    BookingId,
    Checker,
    ConcertId,
    DomainError,
    Money,
    NotFound,
    UserId,
)
from domain.booking import (
    ITEMS_MAX,
    QUANTITY_MAX,
    Booking,
    BookingItem,
    BookingStatus,
    Quantities,
    Sale,
    TicketLimit,
    check_seats,
    check_window,
)
from domain.ports import Deps, KeyScope, WriteUnit
from domain.use_cases.booking.recording import Change, as_they_are_now, record
from domain.use_cases.keys import once_each, scope_of
from domain.use_cases.sharing import apart, unless_overtaken
from domain.user import Viewer


@dataclass(frozen=True, slots=True)
class BookConcert:
    """Hold seats of one or several ticket types."""

    concert_id: ConcertId
    quantities: Quantities
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    """What one person asks for."""

    user_id: UserId
    quantities: Quantities
    scope: KeyScope | None


async def book_concert(deps: Deps, viewer: Viewer, command: BookConcert) -> Booking:
    """The seats are held until `pay_by`, all or none.

    Concurrency: group commit. Who comes while a transaction of the concert is in flight shares the next one, in the
    order they came; each is answered after the commit, with an outcome of its own.
    Raises: NotFound, InvalidInput, SalesClosed, TicketLimit, SoldOut, IdempotencyMismatch, TooManyAttempts,
    Overloaded.
    """
    scope = scope_of(viewer.user.id, "bookConcert", command)
    await deps.limiter.admit("book", who=viewer.user.id)
    wish = _Wish(viewer.user.id, command.quantities, scope)
    return await deps.together(command.concert_id, wish, partial(_book, deps, command.concert_id))


async def _book(deps: Deps, concert_id: ConcertId, wishes: Sequence[_Wish]) -> Sequence[Booking | Exception]:
    """The outcome of each; who repeats another's key hears of that one's outcome, once it is committed."""

    def keys(wish: _Wish) -> Sequence[object]:
        return [] if wish.scope is None else [wish.scope.identity]

    return await apart(wishes, names=keys, commit=partial(_book_at_once, deps, concert_id))


async def _book_at_once(
    deps: Deps, concert_id: ConcertId, wishes: Sequence[_Wish]
) -> Sequence[Booking | DomainError]:
    """The outcome of each, after one commit. No two have the same key.

    Concurrency: the sale's lock comes first, and everything is decided on what is committed then. The keys are the
    last locks, so that only the same person's same key waits for one.
    """

    async def attempt() -> Sequence[Booking | DomainError] | None:
        async with deps.write("book") as unit:
            return await _booked(deps, unit, concert_id, wishes)

    return await unless_overtaken(attempt)


async def _booked(
    deps: Deps, unit: WriteUnit, concert_id: ConcertId, wishes: Sequence[_Wish]
) -> Sequence[Booking | DomainError] | None:
    sale = await unit.sales.lock(concert_id)

    async def act(positions: Sequence[int]) -> Sequence[Booking | DomainError]:
        return await _hold(deps, unit, sale, [wishes[position] for position in positions])

    return await once_each(
        unit,
        [wish.scope for wish in wishes],
        act=act,
        reference=lambda booking: booking.id,
        replay=partial(as_they_are_now, unit),
    )


async def _hold(
    deps: Deps, unit: WriteUnit, sale: Sale | None, wishes: Sequence[_Wish]
) -> list[Booking | DomainError]:
    """Decide one after the other, then write what was granted all at once."""
    if sale is None:
        return [NotFound("concert") for _ in wishes]
    now = await unit.now()
    owned = Counter(
        await unit.bookings.live_ticket_quantities([wish.user_id for wish in wishes], sale.concert_id)
    )
    outcomes: list[Booking | DomainError] = []
    changes: list[Change] = []
    left = sale
    for wish in wishes:
        try:
            booking = _granted(deps, left, wish, owned=owned[wish.user_id], now=now)
        except DomainError as refusal:
            outcomes.append(refusal)
            continue
        owned[wish.user_id] += booking.ticket_quantity
        left = left.with_held(wish.quantities)
        changes.append(Change(None, booking, left))
        outcomes.append(booking)
    if changes:
        await record(unit, changes, sale=sale)
    return outcomes


def _granted(deps: Deps, sale: Sale, wish: _Wish, *, owned: int, now: datetime) -> Booking:
    """The booking. Raises: what the person is refused for."""
    items = _items(sale, wish.quantities)
    check_window(sale, now)
    remaining = max(0, sale.max_tickets_per_user - owned)
    if sum(item.quantity for item in items) > remaining:
        raise TicketLimit(sale.max_tickets_per_user, remaining)
    check_seats(sale, wish.quantities)
    return Booking(
        id=BookingId(deps.randomness.new_id()),
        user_id=wish.user_id,
        concert_id=sale.concert_id,
        items=items,
        total=Money(_total_minor(items), items[0].unit_price.currency),
        status=BookingStatus.AWAITING_PAYMENT,
        is_final=False,
        hold_until=min(now + timedelta(seconds=deps.rules.hold_s), sale.starts_at),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=1,
        created_at=now,
        updated_at=now,
    )


def _items(sale: Sale, quantities: Quantities) -> tuple[BookingItem, ...]:
    """The lines with today's names and prices. Raises: NotFound for a foreign ticket type, InvalidInput."""
    items = []
    for wanted in quantities:
        line = sale.line(wanted.ticket_type_id)
        if line is None:
            raise NotFound("ticket type")
        items.append(BookingItem(line.ticket_type_id, line.name, wanted.quantity, line.price))
    check = Checker()
    check.require(1 <= len(items) <= ITEMS_MAX, ("items",), f"must have from 1 to {ITEMS_MAX} entries")
    seen = set()
    for position, item in enumerate(items):
        path = ("items", str(position))
        check.whole(item.quantity, (*path, "quantity"), at_least=1, at_most=QUANTITY_MAX)
        is_new = item.ticket_type_id not in seen
        check.require(is_new, (*path, "ticketTypeId"), "must not appear twice in one booking")
        seen.add(item.ticket_type_id)
    check.done()
    check.require(
        _total_minor(items) <= PAYMENT_MAX_MINOR, ("items",), "cost more than one card payment may be"
    )
    check.done()
    return tuple(items)


def _total_minor(items: Sequence[BookingItem]) -> int:
    return sum(item.quantity * item.unit_price.amount_minor for item in items)
