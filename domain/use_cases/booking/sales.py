"""Sales, for the concert module: open, change and close one in the concert's own transaction."""

from dataclasses import replace

from domain.booking import CapacityTaken, Sale, SaleChanged, SaleClosed, StockLine
from domain.ports import WriteUnit


async def open_sale(unit: WriteUnit, sale: Sale) -> None:
    """The concert sells from the moment of the commit."""
    await unit.sales.add(sale)
    await unit.outbox.add(SaleChanged(sale))


async def change_sale(unit: WriteUnit, old: Sale, new: Sale) -> Sale:
    """Window, limit, facts and capacities are as in `new`; the sale is locked.

    Raises: CapacityTaken where a capacity is below what is held and sold.
    """
    for line in new.stock:
        if line.available < 0:
            raise CapacityTaken(line.ticket_type_id, line.taken)
    if new == old:
        return old
    changed = replace(new, version=old.version + 1)
    await unit.sales.save(old, changed)
    await unit.outbox.add(SaleChanged(changed))
    return changed


async def close_sale(unit: WriteUnit, sale: Sale) -> None:
    """Nothing is sold from the moment of the commit, and every booking is cancelled from then on."""
    closed = sale.closed()
    await unit.sales.save(sale, closed)
    await unit.outbox.add(SaleChanged(closed))
    await unit.outbox.add(SaleClosed(sale.concert_id))


def with_capacity(line: StockLine, capacity: int) -> StockLine:
    """The line with another capacity; `change_sale` refuses one that is too small."""
    return replace(line, capacity=capacity)
