"""Mistakes in what is asked of the database, and when."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import update

from domain.base import ConcertId, DomainError
from domain.booking import Booking, BookingChanged, BookingStatus, Sale
from domain.events import Event
from domain.ports import Deps, Doors, LiveUpdates, Outbox, WriteUnit
from domain.use_cases.booking import Change, lock_sale_of, record
from infra.db.sales import SqlSaleStore
from infra.db.statements import Statements
from infra.db.tables import sale_stock, sales
from infra.db.unit import SqlWriteUnit


# ---------------------------------------------------------------- read-then-write
class ReadThenWrite(SqlSaleStore):
    """Reads the stock, decides, and writes what it decided, whoever wrote meanwhile."""

    def __init__(self, statements: Statements, both_have_read: asyncio.Barrier) -> None:
        super().__init__(statements)
        self._read_and_write = statements
        self._both_have_read = both_have_read

    async def lock(self, concert_id: ConcertId) -> Sale | None:
        """Locks nothing."""
        sale = await self.get(concert_id)
        await self._both_have_read.wait()
        return sale

    async def save(self, old: Sale, new: Sale) -> None:
        """Overwrites."""
        of_sale, version = sales.c.concert_id == new.concert_id, {"version": new.version}
        await self._read_and_write.change(update(sales).where(of_sale), version)
        for line in new.stock:
            of_line, taken = (
                sale_stock.c.ticket_type_id == line.ticket_type_id,
                {"held": line.held, "sold": line.sold},
            )
            await self._read_and_write.change(update(sale_stock).where(of_line), taken)


def read_then_write(buyers: int) -> Any:
    """For a story in which so many book at once."""
    both_have_read = asyncio.Barrier(buyers)

    def plant(unit: SqlWriteUnit, name: str, live: LiveUpdates) -> None:
        if name == "book":
            unit.sales = ReadThenWrite(unit._statements, both_have_read)

    return plant


# ---------------------------------------------------------------- no owner check at expiry
async def expire_whatever_was_due(deps: Deps) -> int:
    """What was due when it was looked for is expired, whatever it has become since."""
    async with deps.write("expire.find") as unit:
        due = await unit.bookings.due(await unit.now(), limit=100)
    for _, booking_id in due:
        async with deps.write("expire") as unit:
            (booking,) = await unit.bookings.lock([booking_id])
            sale = await lock_sale_of(unit, booking)
            expired = _expired(booking)
            moved = sale.with_hold_released(booking.quantities)
            await record(unit, [Change(booking, expired, moved)], sale=sale)
            await unit.commit()
    return len(due)


def _expired(booking: Booking) -> Booking:
    return replace(booking, status=BookingStatus.EXPIRED, is_final=True, version=booking.version + 1)


# ---------------------------------------------------------------- publish before commit
class AnnouncesAtOnce:
    """An outbox that tells the subscribers right away, to be faster."""

    def __init__(self, inner: Outbox, live: LiveUpdates) -> None:
        self._inner = inner
        self._live = live

    async def add(self, event: Event) -> None:
        """Told, then kept to be told."""
        if isinstance(event, BookingChanged):
            await self._live.announce(event)
        await self._inner.add(event)


def publish_before_commit(unit: SqlWriteUnit, name: str, live: LiveUpdates) -> None:
    """In every transaction."""
    unit.outbox = cast(Any, AnnouncesAtOnce(unit.outbox, live))


# ---------------------------------------------------------------- acknowledged before commit
class AnsweredFirst:
    """A unit whose commit only notes that it is wanted."""

    def __init__(self, inner: WriteUnit) -> None:
        self._inner = inner
        self.is_wanted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self) -> None:
        """Later."""
        self.is_wanted = True


class CommitsLater:
    """Commits bookings behind the client's back, once it has its answer. `done` waits for that."""

    def __init__(self) -> None:
        self._commits: list[asyncio.Task[None]] = []

    def doors(self, inner: Doors) -> Doors:
        """In front of the real ones."""

        @asynccontextmanager
        async def write(name: str, /, *, module: str = "booking") -> AsyncIterator[WriteUnit]:
            if name != "book":
                async with inner(name, module=module) as unit:
                    yield unit
                return
            async with AsyncExitStack() as stack:
                unit = await stack.enter_async_context(inner(name, module=module))
                answered_first = AnsweredFirst(unit)
                yield cast(WriteUnit, answered_first)
                if answered_first.is_wanted:
                    self._do(_commit(unit, stack.pop_all()))

        return write

    async def done(self) -> None:
        """Every commit was tried."""
        await asyncio.gather(*self._commits)

    def _do(self, commit: Coroutine[Any, Any, None]) -> None:
        self._commits.append(asyncio.create_task(commit))


async def _commit(unit: WriteUnit, transaction: AsyncExitStack) -> None:
    async with transaction:
        with suppress(DomainError):  # nobody is there any more who could be told
            await unit.commit()
