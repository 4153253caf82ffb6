"""Bookings of every kind, made and paid and cancelled by the use cases, to be broken by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Table, select

from domain.base import BookingId
from domain.booking import Quantity, Sale
from domain.payment import NotSent
from domain.use_cases.booking import BookConcert, book_concert, close_sale
from infra.db.invariants import broken
from infra.db.promises import PROMISES
from infra.db.tables import metadata
from infra.db.unit import Database
from tests.db_world import a_sale, open_sale, run_sql
from tests.fake_processor import DECLINED, OK, Failure, FakeProcessor, lost
from tests.paying import Shop, customer, running_shop


@dataclass
class Story:
    """Bookings of every kind, by what became of them, with all that they must leave behind."""

    database: Database
    names: dict[str, str]

    async def harm(self, *sql: str) -> None:
        """Break it by hand; `{paid}` is that booking's id."""
        for statement in sql:
            await run_sql(self.database, statement.format(**self.names))

    async def broken(self) -> list[str]:
        """What `frontrow verify` says, with names for ids and for promises."""
        titles = {promise.title: promise.name for promise in PROMISES}
        said = [line async for line in broken(self.database)]
        found = []
        for line in said:
            title = next(title for title in titles if line.startswith(f"{title}: "))
            text = line.removeprefix(f"{title}: ")
            for name, its_id in self.names.items():
                text = text.replace(its_id, name)
            found.append(f"{titles[title]}: {text}")
        return sorted(found)


@dataclass
class Storyteller:
    """Tells the whole story once on each kind of database, and writes down in others what it left.

    For one module: its holds end after ten minutes, and whoever is late with them breaks a promise.
    """

    _told: dict[str, tuple[dict[str, str], list[tuple[Table, list[dict[str, object]]]]]] = field(
        default_factory=dict
    )

    async def tell(self, database: Database) -> Story:
        """All of it stands in the database, which is empty."""
        kind = database.writers.engine.dialect.name
        if kind not in self._told:
            async with a_whole_story(database) as story:
                self._told[kind] = dict(story.names), await _left_by(story)
            return story
        names, left = self._told[kind]
        async with database.writers.transaction() as statements:
            for table, rows in left:
                await statements.change(table.insert(), rows)
            await statements.commit()
        return Story(database, dict(names))


async def _left_by(story: Story) -> list[tuple[Table, list[dict[str, object]]]]:
    """The rows of each table that has some, without the numbers that a database gives out itself."""
    found = []
    async with story.database.readers.transaction() as statements:
        for table in metadata.sorted_tables:
            columns = [column for column in table.c if column is not table.autoincrement_column]
            rows = await statements.rows(select(*columns).order_by(*table.primary_key))
            if rows:
                found.append((table, [dict(row._mapping) for row in rows]))
    return found


@asynccontextmanager
async def a_whole_story(database: Database) -> AsyncIterator[Story]:
    """Ada has 3 of at most 3 tickets: 1 held, 2 paid after a declined attempt. Others went every other way."""
    async with running_shop(database, FakeProcessor()) as shop:
        sale = await open_sale(database, a_sale(capacities=(10, 5), max_tickets_per_user=3))
        held = await keyed(shop, sale, "ada")
        paid = await shop.book(sale, "ada", 2)
        with pytest.raises(Exception, match="declined"):
            await shop.pay(paid, DECLINED)
        await shop.pay(paid, OK, key="pay")
        refunded = await shop.book(sale, "eve", 2)
        await shop.pay(refunded)
        await shop.cancel(refunded)
        await shop.settle_everything()
        expired = await shop.book(sale, "bob")
        await shop.expire(expired.id)
        sent = await shop.book(sale, "bob")
        shop.processor.order("confirm", lost(happens=False))
        await shop.pay(sent)
        deferred = await shop.book(sale, "dan")
        shop.processor.order("create", Failure(NotSent("open", retry_after_ms=1), happens=False))
        await shop.pay(deferred)
        refunding = await shop.book(sale, "eve", 3)
        await shop.pay(refunding)
        await shop.cancel(refunding)
        off = await shop.open_sale()
        live = await shop.book(off, "fay")
        async with database.write() as unit:
            locked = await unit.sales.lock(off.concert_id)
            assert locked is not None
            await close_sale(unit, locked)
            await unit.commit()
        bookings = {"held": held, "paid": paid.id, "refunded": refunded.id, "expired": expired.id}
        bookings |= {
            "sent": sent.id,
            "deferred": deferred.id,
            "refunding": refunding.id,
            "live": live.id,
        }
        names: dict[str, str] = dict(bookings)
        for name, booking_id in bookings.items():
            for number, payment in enumerate(await shop.payments(booking_id), start=1):
                names[f"{name}_pay{number}"] = payment.id
                names[f"{name}_intent{number}"] = payment.intent_id
        yield Story(database, names)


async def keyed(shop: Shop, sale: Sale, who: str) -> BookingId:
    """A booking that was made under a key."""
    wanted = (Quantity(sale.stock[0].ticket_type_id, 1),)
    command = BookConcert(sale.concert_id, wanted, "book")
    return (await book_concert(shop.deps, customer(who), command)).id
