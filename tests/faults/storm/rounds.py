"""Load and faults for a while, rest, judgement; and again."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from infra.app import composed
from infra.db.invariants import broken
from infra.read_model import differences
from infra.settings import Settings
from tests.faults.checker import Evidence, check
from tests.faults.history import Heard, History
from tests.faults.reading import ledger_of, read_final, sampled, until_quiet
from tests.faults.rules import Rule, Violation
from tests.faults.storm.crowd import SALES_AT_ONCE, Account, Market, organise, shop, sign_up
from tests.faults.storm.report import Storm
from tests.faults.storm.weather import Weather
from tests.faults.storm.world import World, running_world
from tests.faults.streams import recorded_count, up_to_date

# Every so many looks at the stock count the bookings, too.
SUMS_EVERY = 20
REST_PATIENCE_S = 120.0


async def run(
    *, seed: int, load_s: float, round_s: float, buyers: int, folder: Path, tell: Callable[[str], None]
) -> Storm:
    """The whole storm; it ends early with the first round that breaks a promise. Raises: TimeoutError without rest."""
    storm, rng = Storm(seed), random.Random(seed)
    async with running_world(folder) as world:
        weather = Weather(world, rng, storm.tallies)
        accounts = await sign_up(world, buyers)
        tell(f"{buyers} buyers are signed up")
        while storm.load_s < load_s and not storm.violations:
            await _round(storm, world, weather, accounts, min(round_s, load_s - storm.load_s), folder=folder)
            done = sum(storm.operations.values())
            tell(
                f"{storm.load_s:.0f} s of load: {done:,} operations, {storm.kills} kills, "
                f"{len(storm.violations)} violations, at rest after {storm.worst_rest_s:.1f} s at worst"
            )
        await _whole_database(storm, world)
    return storm


async def _round(
    storm: Storm, world: World, weather: Weather, accounts: list[Account], for_s: float, *, folder: Path
) -> None:
    history, rng = History(), random.Random(weather.rng.random())
    market, admins = Market(history), await world.admins()
    for _ in range(SALES_AT_ONCE):
        await market.add(admins[0], world.database, rng)
    watched = list(market.open)
    began_s = time.monotonic()
    until_s = began_s + for_s
    async with AsyncExitStack() as stack:
        samples = await stack.enter_async_context(sampled(world.database_url, watched, sums_every=SUMS_EVERY))
        recordings = [
            await stack.enter_async_context(recorded_count(world.apis, concert_id)) for concert_id in watched
        ]
        async with asyncio.TaskGroup() as tasks:
            for account in accounts:
                tasks.create_task(shop(account, market, rng=random.Random(rng.random()), until_s=until_s))
            tasks.create_task(
                organise(admins, market, world.database, rng=random.Random(rng.random()), until_s=until_s)
            )
            tasks.create_task(weather.rage(until_s=until_s))
        storm.load_s += time.monotonic() - began_s
        storm.worst_rest_s = max(
            storm.worst_rest_s, await until_quiet(world.database, patience_s=REST_PATIENCE_S)
        )
        for recording in recordings:
            waited_s = await up_to_date(recording, world.database)
            storm.worst_stream_s = max(storm.worst_stream_s, waited_s)
    storm.count(history.operations)
    storm.looks += len(samples)
    storm.messages += sum(
        isinstance(entry, Heard) and entry.mark is None
        for recording in recordings
        for entry in recording.entries
    )
    evidence = Evidence(
        history=history,
        final=await read_final(world.database),
        ledger=ledger_of(await world.processor.ledger()),
        samples=samples,
        recordings=recordings,
        read_model=await _read_model(world),
    )
    found = check(evidence)
    if found:
        evidence.save(folder / "evidence.jsonl")
    storm.violations += found


async def _read_model(world: World) -> list[str]:
    """Where it differs from the database, two seconds after writes have stopped."""
    await asyncio.sleep(2.0)
    async with composed(Settings(**world.settings)) as frontrow:
        return [line async for line in differences(frontrow.read_model, frontrow.source)]


async def _whole_database(storm: Storm, world: World) -> None:
    """What `frontrow verify` would say, and the sums for the report."""
    storm.violations += [Violation(Rule.COUNTERS, line) async for line in broken(world.database)]
    final = await read_final(world.database)
    ledger = ledger_of(await world.processor.ledger())
    storm.bookings = len(final.bookings)
    storm.captured = sum(row.is_captured for row in ledger)
    storm.refunded = sum(row.is_captured and not row.is_kept for row in ledger)
