"""Filling a read model from the write side, and comparing the two."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields

from domain.base import BookingId, PageQuery
from domain.booking import Booking, ConcertFacts, Sale
from domain.my_page import MyBooking, my_page_key
from infra.read_model.generation import (
    BuyerSnapshot,
    RebuildableReadModel,
    Source,
    batch_of_sales,
    batches_of_buyers,
)

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
    known_concerts = set()
    async for sales in source.sales():
        held = await model.sales([sale.concert_id for sale in sales])
        for sale in sales:
            known_concerts.add(sale.concert_id)
            for line in _compare(
                f"sale {sale.concert_id}", None if held is None else held.get(sale.concert_id), sale
            ):
                yield line
    async for concert_id in model.concert_ids():
        if concert_id not in known_concerts:
            yield f"sale {concert_id}: only in the read model"
    known_buyers = set()
    async for buyers in source.buyers():
        for buyer in buyers:
            known_buyers.add(buyer.user_id)
            async for line in _compare_buyer(model, buyer):
                yield line
    async for user_id in model.user_ids():
        if user_id not in known_buyers:
            yield f"buyer {user_id}: only in the read model"


async def _compare_buyer(model: RebuildableReadModel, buyer: BuyerSnapshot) -> AsyncIterator[str]:
    name = f"buyer {buyer.user_id}"
    held: list[MyBooking] = []
    query = PageQuery(limit=PAGE_ROWS)
    while True:
        view = await model.my_page(buyer.user_id, query, statuses=None)
        if view is None:
            yield NOT_COMPLETE
            return
        held += view.page.rows
        if not view.page.has_next:
            break
        query = PageQuery(limit=PAGE_ROWS, after=my_page_key(view.page.rows[-1]))
    if view.version != buyer.version:
        yield f"{name}.version: {view.version} in the read model, {buyer.version} in the database"
    if view.total != len(buyer.rows):
        yield f"{name}.total: {view.total} in the read model, {len(buyer.rows)} in the database"
    expected = sorted(buyer.rows, key=my_page_key, reverse=True)
    if _ids(held) != _ids(expected):
        yield f"{name}.rows: {_ids(held)} in the read model, {_ids(expected)} in the database"
        return
    for row, wanted in zip(held, expected, strict=True):
        for line in _compare(f"booking {wanted.booking.id}", row.booking, wanted.booking):
            yield line
        for line in _compare(f"facts {wanted.facts.concert_id}", row.facts, wanted.facts):
            yield line


def _ids(rows: list[MyBooking]) -> list[BookingId]:
    return [row.booking.id for row in rows]


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
