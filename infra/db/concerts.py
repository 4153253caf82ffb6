"""The catalogue. Its tables may be locked or gone: that is Unavailable here and nobody else's trouble."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select, update

from domain.base import ConcertId, Money, TicketTypeId
from domain.concert import Concert, ConcertStatus, TicketType
from infra.db.statements import Statements
from infra.db.tables import concerts, ticket_types


class SqlConcertStore:
    """`domain.ports.ConcertStore` in one transaction. Raises (all methods): Unavailable."""

    def __init__(self, statements: Statements, *, lock_s: float | None) -> None:
        self._statements = statements
        self._lock_s = lock_s

    async def add(self, concert: Concert, types: Sequence[TicketType]) -> None:
        """Add an entry with its ticket types in the order given."""
        rows = [
            {
                "id": ticket_type.id,
                "concert_id": concert.id,
                "position": position,
                "name": ticket_type.name,
                "price_minor": ticket_type.price.amount_minor,
                "currency": ticket_type.price.currency,
                "capacity": ticket_type.capacity,
            }
            for position, ticket_type in enumerate(types)
        ]
        async with self._statements.catalogue(lock_s=self._lock_s):
            await self._statements.change(concerts.insert(), _row_of(concert))
            await self._statements.change(ticket_types.insert(), rows)

    async def lock(self, concert_id: ConcertId) -> Concert | None:
        """The entry, locked with its ticket types until the transaction ends.

        Whoever locks the sale next never waits for the catalogue with everyone who books behind them.
        """
        async with self._statements.catalogue(lock_s=self._lock_s):
            row = await self._statements.row(
                select(concerts).where(concerts.c.id == concert_id).with_for_update()
            )
            await self._statements.rows(
                select(ticket_types.c.id)
                .where(ticket_types.c.concert_id == concert_id)
                .order_by(ticket_types.c.id)
                .with_for_update()
            )
        return None if row is None else concert_from(row)

    async def save(self, concert: Concert, capacities: Mapping[TicketTypeId, int]) -> None:
        """Write a locked entry and the new capacities of its ticket types."""
        async with self._statements.catalogue(lock_s=self._lock_s):
            changed = await self._statements.change(
                update(concerts).where(concerts.c.id == concert.id).values(_row_of(concert))
            )
            assert changed == 1, "the concert was locked before"
            for ticket_type_id, capacity in sorted(capacities.items()):
                changed = await self._statements.change(
                    update(ticket_types)
                    .where(ticket_types.c.id == ticket_type_id, ticket_types.c.concert_id == concert.id)
                    .values(capacity=capacity)
                )
                assert changed == 1, "the ticket type is the concert's"


def concert_from(row: Row[*tuple[Any, ...]]) -> Concert:
    """The entry in a row of `concerts`."""
    return Concert(
        id=ConcertId(row.id),
        title=row.title,
        performer=row.performer,
        description=row.description,
        venue=row.venue,
        time_zone=row.time_zone,
        starts_at=row.starts_at,
        sales_open_at=row.sales_open_at,
        sales_close_at=row.sales_close_at,
        max_tickets_per_user=row.max_tickets_per_user,
        status=ConcertStatus(row.status),
        created_at=row.created_at,
    )


def ticket_type_from(row: Row[*tuple[Any, ...]]) -> TicketType:
    """The ticket type in a row of `ticket_types`."""
    return TicketType(
        id=TicketTypeId(row.id),
        concert_id=ConcertId(row.concert_id),
        name=row.name,
        price=Money(row.price_minor, row.currency),
        capacity=row.capacity,
    )


def _row_of(concert: Concert) -> dict[str, object]:
    return {
        "id": concert.id,
        "title": concert.title,
        "performer": concert.performer,
        "description": concert.description,
        "venue": concert.venue,
        "time_zone": concert.time_zone,
        "starts_at": concert.starts_at,
        "sales_open_at": concert.sales_open_at,
        "sales_close_at": concert.sales_close_at,
        "max_tickets_per_user": concert.max_tickets_per_user,
        "status": concert.status.value,
        "created_at": concert.created_at,
        "search_text": "\n".join((concert.title, concert.performer, concert.venue)).casefold(),
    }
