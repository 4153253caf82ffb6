"""PostgreSQL and Redis go away under a rush and come back: nobody hears anything wrong (issue 3, promise 12)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.db.tables import outbox
from infra.db.unit import Database
from tests.faults.house import insist
from tests.faults.outage import Operation, Visitor, a_rush, timed
from tests.faults.storm.crowd import Account, sign_up
from tests.faults.storm.world import World, running_world

pytestmark = pytest.mark.anyio

BUYERS = 20
# A refund that was asked for is at the processor then.
UNTIL_ASKED_S = 0.15
AWAY_S = 2.0
# Longer than it takes to give up connecting.
STANDSTILL_S = 6.0
BACK_WITHIN_S = 3.0


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Two API processes and two workers, which live through everything that happens here."""
    # A busy machine is no bad day of the processor, and what was never sent there need not wait half a minute.
    facts = {"payment_timeout_ms": 5_000, "payment_settle_after_s": 6, "hold_s": 600}
    async with running_world(tmp_path_factory.mktemp("logs"), **facts) as world:
        # So slow that at any moment some payments and refunds are under way there.
        await world.processor.control(latency_ms=[200, 600])
        yield world


@pytest.fixture(scope="module")
async def accounts(world: World) -> list[Account]:
    """The buyers."""
    return await sign_up(world, BUYERS)


async def killed(world: World) -> None:
    """kill -9 of all its processes."""
    world.postgres.kill()
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(world.postgres.start)


async def restarted(world: World) -> None:
    """In good order, which ends every connection at once."""
    await asyncio.to_thread(world.postgres.restart)


async def frozen(world: World) -> None:
    """Nothing answers, neither what is open nor what one API process and one worker must open meanwhile."""
    world.postgres.pause()
    world.to_postgres.cut()
    await asyncio.sleep(STANDSTILL_S)
    world.postgres.resume()


@pytest.mark.parametrize("fault", [killed, restarted, frozen])
async def test_everybody_hears_the_truth_or_retryable_while_postgresql_is_away(
    fault: Callable[[World], Awaitable[None]], world: World, accounts: list[Account], tmp_path: Path
) -> None:
    """Three seconds after it is back everything works again, at each process, and what waited has been told."""
    guests = await visitors(world)
    async with a_rush(world, accounts, keep_in=tmp_path) as rush:
        assert rush.judge.turned_away_s == []
        await asyncio.gather(*(guest.ask_back() for guest in guests))
        await asyncio.sleep(UNTIL_ASKED_S)
        await fault(world)
        back_s = time.monotonic()
        waiting = {"what waited is told": await what_waits(world.database)}
        took_s = await timed(everything(guests) | heard(guests) | waiting, world=world)
        await asyncio.sleep(max(0, back_s + BACK_WITHIN_S - time.monotonic()))
        await rush.goes_on(BUYERS)
    assert rush.judge.turned_away_s != []
    assert [at_s for at_s in rush.judge.turned_away_s if at_s > back_s + BACK_WITHIN_S] == []
    assert late(took_s) == {}


async def test_everybody_is_served_while_redis_is_away(
    world: World, accounts: list[Account], tmp_path: Path
) -> None:
    """Nobody is turned away, each look finds the newest count, and streams go on once it is back, empty."""
    guests = await visitors(world)
    async with a_rush(world, accounts, keep_in=tmp_path) as rush:
        await asyncio.gather(*(guest.ask_back() for guest in guests))
        world.valkey.kill()
        took_s, _, _ = await asyncio.gather(
            timed(everything(guests), world=world), rush.goes_on(BUYERS), rush.look_on(world.apis)
        )
        await asyncio.to_thread(world.valkey.start)
        back_s = time.monotonic()

        async def all_hear() -> None:
            assert all(recording.entries[-1].at_s > back_s for recording in rush.recordings)

        took_s |= await timed({"streams": all_hear}, world=world)
        await rush.goes_on(BUYERS)
    assert rush.judge.turned_away_s == []
    assert late(took_s) == {}


# ---------------------------------------------------------------- helpers
async def visitors(world: World) -> list[Visitor]:
    """One at each API process."""
    return [await Visitor.prepared(api, world.database) for api in world.apis]


def everything(visitors: list[Visitor]) -> dict[str, Operation]:
    """Every kind of operation at each process."""
    return {
        f"{name} at api {number}": ask
        for number, visitor in enumerate(visitors, start=1)
        for name, ask in visitor.operations().items()
    }


def heard(visitors: list[Visitor]) -> dict[str, Operation]:
    """What they do is heard at each process."""
    return {f"stream at api {number}": visitor.hear for number, visitor in enumerate(visitors, start=1)}


async def what_waits(database: Database) -> Operation:
    """Works once all is told that was committed until now."""
    now = await insist(database.reads.now)

    async def all_told() -> None:
        async with database.patient_readers.transaction() as statements:
            assert await statements.rows(select(outbox.c.kind).where(outbox.c.created_at <= now)) == []

    return all_told


def late(took_s: dict[str, float]) -> dict[str, float]:
    """What took longer than three seconds."""
    return {name: s for name, s in took_s.items() if s > BACK_WITHIN_S}
