"""Filling a read model from the write side, and comparing the two."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from domain.base import BookingId, PageQuery, UserId
from domain.booking import Booking, BookingStatus, ConcertFacts, Sale
from infra.read_model.generation import (
    BuyerSnapshot,
    RebuildableReadModel,
    Source,
    batch_of_sales,
    batches_of_buyers,
    booking_key,
)

T = TypeVar("T")

# One batch holds up everyone who reads; 200 rows take Redis about 2 ms.
ROWS_PER_BATCH_MAX = 200
PAGE_ROWS = 100
NOT_COMPLETE = "the read model is not complete"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild has come."""

    sales: int
    buyers: int


async def rebuild(
    model: RebuildableReadModel, source: Source, progress: Callable[[Progress], None] = lambda _: None
) -> bool:
    """The read model is complete and equals the write side; False where somebody else is rebuilding it now.

    What is projected meanwhile is kept: the generation opens before the first snapshot is taken, so a change
    is in a snapshot, is projected into it, or both. Until the end readers see the old generation, if any.
    Raises: GenerationLost, ConnectionError; nothing has changed then.
    """
    generation = await model.begin()
    if generation is None:
        return False
    try:
        sale_count = buyer_count = 0
        async for sales in source.sales():
            await generation.add(batch_of_sales(sales))
            sale_count += len(sales)
            progress(Progress(sale_count, buyer_count))
        async for buyers in source.buyers():
            for batch in batches_of_buyers(buyers, rows_max=ROWS_PER_BATCH_MAX):
                await generation.add(batch)
            buyer_count += len(buyers)
            progress(Progress(sale_count, buyer_count))
        await generation.switch()
    finally:
        await generation.close()
    return True


async def differences(model: RebuildableReadModel, source: Source) -> AsyncIterator[str]:
    """Every field in which the read model is not what the write side says, one line each.

    Only once writes have stopped and the relay is idle does a line mean a mistake. Raises: ConnectionError.
    """
    if await model.sales(()) is None:
        yield NOT_COMPLETE
        return
    async for sales in _ahead(source.sales()):
        async for line in _compare_sales(model, sales):
            yield line
    async for concert_ids in model.concert_ids():
        for concert_id in await source.unknown_sales(concert_ids):
            yield f"sale {concert_id}: only in the read model"
    async for digests in _ahead(source.digests()):
        for start in range(0, len(digests), ROWS_PER_BATCH_MAX):
            suspects = await model.unlike(digests[start : start + ROWS_PER_BATCH_MAX])
            if suspects is None:
                yield NOT_COMPLETE
                return
            for buyer in await source.buyers_of(suspects) if suspects else ():
                async for line in _compare_buyer(model, buyer):
                    yield line
    async for user_ids in _ahead(model.user_ids()):
        for user_id in await source.unknown_buyers(user_ids):
            yield f"buyer {user_id}: only in the read model"


async def _ahead(batches: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same batches, each next one fetched while somebody works on the last."""

    async def fetch() -> T | None:
        return await anext(batches, None)

    fetching = asyncio.create_task(fetch())
    try:
        while (batch := await fetching) is not None:
            fetching = asyncio.create_task(fetch())
            yield batch
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def _compare_sales(model: RebuildableReadModel, sales: Sequence[Sale]) -> AsyncIterator[str]:
    ids = [sale.concert_id for sale in sales]
    held, facts = await model.sales(ids), await model.facts(ids)
    for sale in sales:
        held_sale = None if held is None else held.get(sale.concert_id)
        held_facts = None if facts is None else facts.get(sale.concert_id)
        for line in _compare(f"sale {sale.concert_id}", held_sale, sale):
            yield line
        for line in _compare(f"facts {sale.concert_id}", held_facts, sale.facts):
            yield line


async def _compare_buyer(model: RebuildableReadModel, buyer: BuyerSnapshot) -> AsyncIterator[str]:
    name = f"buyer {buyer.user_id}"
    pages = await _pages(model, buyer.user_id, None)
    if pages is None:
        yield f"{name}: can't be read"
        return
    version, total, held = pages
    if version != buyer.version:
        yield f"{name}.version: {version} in the read model, {buyer.version} in the database"
    if total != len(buyer.bookings):
        yield f"{name}.total: {total} in the read model, {len(buyer.bookings)} in the database"
    expected = sorted(buyer.bookings, key=booking_key, reverse=True)
    if _ids(held) != _ids(expected):
        yield f"{name}.rows: {_ids(held)} in the read model, {_ids(expected)} in the database"
        return
    for booking, wanted in zip(held, expected, strict=True):
        for line in _compare(f"booking {wanted.id}", booking, wanted):
            yield line
    for status in BookingStatus:
        pages = await _pages(model, buyer.user_id, status)
        shown = [] if pages is None else _ids(pages[2])
        if shown != (right := _ids([booking for booking in held if booking.status is status])):
            yield f"{name}.{status.value}: {shown} on the page of that status, {right} by their own"


async def _pages(
    model: RebuildableReadModel, user_id: UserId, status: BookingStatus | None
) -> tuple[int, int, list[Booking]] | None:
    """Version, total and all bookings, of one status or of all."""
    held: list[Booking] = []
    statuses = None if status is None else frozenset({status})
    query = PageQuery(limit=PAGE_ROWS)
    while True:
        view = await model.my_page(user_id, query, statuses=statuses)
        if view is None:
            return None
        held += [row.booking for row in view.page.rows]
        if not view.page.has_next:
            return view.version, view.total, held
        query = PageQuery(limit=PAGE_ROWS, after=booking_key(held[-1]))


def _ids(bookings: list[Booking]) -> list[BookingId]:
    return [booking.id for booking in bookings]


def _compare(
    name: str, held: Sale | Booking | ConcertFacts | None, wanted: Sale | Booking | ConcertFacts
) -> Iterator[str]:
    if held is None:
        yield f"{name}: missing in the read model"
        return
    for field in fields(wanted):
        ours, theirs = getattr(held, field.name), getattr(wanted, field.name)
        if ours != theirs:
            yield f"{name}.{field.name}: {ours!r} in the read model, {theirs!r} in the database"
