"""A rebuild fills a new generation beside the old one and loses nothing meanwhile."""

import random

import pytest
from hypothesis import HealthCheck, given, settings

from domain.booking import (
    BookingStatus,
)
from infra.read_model import (
    Progress,
    RebuildableReadModel,
    rebuild,
)
from tests.test_read_model.write_side import (
    BUYERS,
    CONCERTS,
    WriteSide,
    act,
    chances,
    choices,
    differences_of,
    opened,
    rows_of,
    version_of,
)

pytestmark = pytest.mark.anyio


async def test_rebuild_equals_the_write_side_and_tells_how_far_it_is(model: RebuildableReadModel) -> None:
    """A rebuild alone, without one event, gives every count, row and version."""
    writes = opened()
    for number in range(450):
        writes.book(BUYERS[number % 3 // 2], CONCERTS[number % 2], minute=number)
    told: list[Progress] = []

    assert await rebuild(model, writes, told.append) is True

    assert await differences_of(model, writes) == []
    assert told == [Progress(1, 0), Progress(2, 0), Progress(2, 1), Progress(2, 2)]
    assert await model.check() is False


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=choices, during=choices, chance=chances)
async def test_rebuild_loses_nothing_that_is_projected_meanwhile(
    model: RebuildableReadModel, before: list[int], during: list[int], chance: random.Random
) -> None:
    """Changes and their late, shuffled projections between a rebuild's batches all arrive."""
    await rebuild(model, WriteSide())
    writes = opened()
    for choice in before:
        act(writes, choice)
    # The relay has told some of it before the rebuild begins. The rest waits in the outbox.
    waiting = list(writes.events)
    chance.shuffle(waiting)
    told, waiting = waiting[: len(waiting) // 2], waiting[len(waiting) // 2 :]
    await model.project(told)
    remaining = list(during)

    async def change_and_project() -> None:
        nonlocal waiting
        known = len(writes.events)
        for _ in range(min(4, len(remaining))):
            act(writes, remaining.pop())
        waiting += writes.events[known:]
        chance.shuffle(waiting)
        size = chance.randint(0, 8)
        await model.project(waiting[:size])
        waiting = waiting[size:]

    writes.before_snapshot = writes.after_snapshot = change_and_project
    assert await rebuild(model, writes) is True
    writes.before_snapshot = writes.after_snapshot = None
    await model.project(waiting)

    assert await differences_of(model, writes) == []


@pytest.mark.parametrize("told_count", [1, 2])
async def test_change_that_overtakes_its_buyers_snapshot_is_kept(
    model: RebuildableReadModel, told_count: int
) -> None:
    """The snapshot has one change; before it arrives the second is projected, or both are."""
    await rebuild(model, WriteSide())
    writes = opened()
    booking_id = writes.book(BUYERS[0], CONCERTS[0])

    async def overtake() -> None:
        if len(snapshots) == len(CONCERTS):
            writes.change(booking_id, BookingStatus.APPROVED)
            await model.project(writes.events[-told_count:])
        snapshots.append(1)

    snapshots: list[int] = []
    writes.after_snapshot = overtake
    await rebuild(model, writes)

    assert await version_of(model, BUYERS[0]) == 2
    assert await rows_of(model, BUYERS[0]) == writes.page(BUYERS[0])


async def test_readers_see_the_old_generation_until_the_new_one_is_whole(model: RebuildableReadModel) -> None:
    """In the middle of a rebuild the page is what it was, with what was projected since."""
    writes = opened()
    booking_id = writes.book(BUYERS[0], CONCERTS[0])
    await rebuild(model, writes)
    seen = []

    async def look() -> None:
        seen.append([row.booking.status for row in await rows_of(model, BUYERS[0])])
        writes.change(booking_id, BookingStatus.APPROVED)
        await model.project(writes.events[-1:])

    writes.before_snapshot = look
    await rebuild(model, writes)

    waiting, approved = [BookingStatus.AWAITING_PAYMENT], [BookingStatus.APPROVED]
    assert seen == [waiting, approved, approved]


async def test_lower_versions_of_a_restored_backup_replace_higher_ones(model: RebuildableReadModel) -> None:
    """After the database went back in time a rebuild shows its older state; the differences are named before."""
    backup = opened()
    booking_id = backup.book(BUYERS[0], CONCERTS[0])
    lost = opened()
    lost.book(BUYERS[0], CONCERTS[0])
    lost.change(booking_id, BookingStatus.APPROVED)
    lost.book(BUYERS[1], CONCERTS[0])
    await rebuild(model, lost)

    before = await differences_of(model, backup)
    await rebuild(model, backup)

    assert [line.split(":")[0] for line in before] == [
        "sale concert-a.version",
        "sale concert-a.stock",
        "facts concert-a.version",
        "buyer ada.version",
        "booking booking-0001.status",
        "booking booking-0001.version",
        "buyer bob",
    ]
    assert await differences_of(model, backup) == []


async def test_rebuild_that_fails_changes_nothing_and_the_next_one_works(model: RebuildableReadModel) -> None:
    """The database dies half-way: readers keep the old generation, and nobody has to wait for a lease."""
    writes = opened()
    writes.book(BUYERS[0], CONCERTS[0])
    await rebuild(model, writes)
    writes.book(BUYERS[0], CONCERTS[0])

    async def die() -> None:
        if len(failed) == 2:
            raise OSError("gone")
        failed.append(1)

    failed: list[int] = []
    writes.before_snapshot = die
    with pytest.raises(OSError, match="gone"):
        await rebuild(model, writes)
    writes.before_snapshot = None

    assert len(await rows_of(model, BUYERS[0])) == 1
    assert await rebuild(model, writes) is True
    assert len(await rows_of(model, BUYERS[0])) == 2


async def test_only_one_rebuild_runs_at_a_time(model: RebuildableReadModel) -> None:
    """Whoever comes while one runs is told so; the first one still finishes."""
    writes = opened()
    answers = []

    async def also_try() -> None:
        answers.append(await rebuild(model, WriteSide()))

    writes.before_snapshot = also_try

    assert await rebuild(model, writes) is True
    assert answers == [False, False]
    assert await differences_of(model, WriteSide(writes.sales_by_id)) == []
