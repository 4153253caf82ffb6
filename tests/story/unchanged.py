"""Proof that a refusal changed nothing: every row of every table is as it was."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import select

from infra.db.tables import metadata
from tests.client import Json
from tests.story.world import World

# Moved by the reconciler's own looking around, whatever people ask for.
RESTLESS = frozenset({"look_at", "asked"})
# Written by whom nobody asked: the processor tells what it told before, the worker notes what it checked.
UNASKED = frozenset({"webhook_events", "promise_checks", "leases"})


@asynccontextmanager
async def nothing_changes(world: World) -> AsyncIterator[None]:
    """The database is the same after the block as before it."""
    await world.outbox_is_empty()
    before = await rows(world)
    yield
    after = await rows(world)
    for name, was in before.items():
        assert after[name] == was, name


async def rows(world: World) -> dict[str, list[Json]]:
    """Every row of every table that requests write."""
    found = {}
    async with world.frontrow.database.patient_readers.transaction() as statements:
        for table in metadata.sorted_tables:
            if table.name in UNASKED:
                continue
            columns = [column for column in table.c if column.name not in RESTLESS]
            read = await statements.rows(select(*columns).order_by(*table.primary_key.columns))
            found[table.name] = [dict(row._mapping) for row in read]
    return found
