"""Stop the sales of a concert whose stock is broken, and go on once it is right.

Only what takes seats off the stock stops: paying and cancelling what is booked goes on.
"""

from collections.abc import Sequence
from dataclasses import replace

from domain.base import ConcertId, NotFound
from domain.booking import Sale, SaleChanged
from domain.ports import Deps, WriteUnit


async def halt_sales(deps: Deps, concert_id: ConcertId) -> Sequence[str]:
    """Nothing more is sold of the concert if its stock is broken: what is wrong, empty where nothing was done.

    Concurrency: looked at again under the sale's lock, so a stock that moves meanwhile never looks broken. May
    repeat: sales that are halted or over stay as they are.
    """
    async with deps.write("halt_sales") as unit:
        sale = await unit.sales.lock(concert_id)
        if sale is None or sale.is_cancelled or sale.halted_at is not None:
            return []
        faults = await unit.sales.faults(concert_id)
        if faults:
            await _change(unit, sale, replace(sale, halted_at=await unit.now()))
            await unit.commit()
    return faults


async def resume_sales(deps: Deps, concert_id: ConcertId) -> Sequence[str]:
    """The concert sells again, and everybody hears how many seats there are: empty; or what is still wrong.

    Concurrency: may repeat. Raises: NotFound.
    """
    async with deps.write("resume_sales") as unit:
        sale = await unit.sales.lock(concert_id)
        if sale is None:
            raise NotFound("concert")
        faults = await unit.sales.faults(concert_id)
        if not faults and sale.halted_at is not None:
            await _change(unit, sale, replace(sale, halted_at=None))
            await unit.commit()
    return faults


async def _change(unit: WriteUnit, old: Sale, new: Sale) -> None:
    changed = replace(new, version=old.version + 1)
    await unit.sales.save(old, changed)
    await unit.outbox.add(SaleChanged(changed))
