"""Many people at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import httpx

from domain.base import SessionId, UserId
from domain.user import Session, User, UserRole
from infra.db.invariants import broken
from tests.client import Api, Json
from tests.story.world import World

# A client's cost per request grows with its open connections, and it runs on the server's own event loop.
PEOPLE_PER_CLIENT = 10


@asynccontextmanager
async def a_crowd(world: World, size: int) -> AsyncIterator[list[Api]]:
    """So many people signed in, without a password hash for each of them."""
    deps = world.frontrow.deps
    async with AsyncExitStack() as stack:
        people = []
        async with deps.write("look") as unit:
            now = await unit.now()
            for n in range(size):
                if n % PEOPLE_PER_CLIENT == 0:
                    client = httpx.AsyncClient(timeout=60, verify=False, trust_env=False)
                    http = await stack.enter_async_context(client)
                name, token = deps.randomness.new_id(), deps.randomness.new_token()
                user = User(UserId(name), f"{name}@example.org", "One of many", UserRole.CUSTOMER, now)
                await unit.users.add(user, password_hash="none")
                session = Session(SessionId(name), user.id, now, now + timedelta(days=1))
                await unit.users.add_session(session, token_hash=deps.randomness.token_hash(token))
                people.append(Api(world.api.url, http, token))
            await unit.commit()
        yield people


async def at_once(calls: Iterable[Awaitable[Json]]) -> list[Json]:
    """All answers, in the order of the calls."""
    return list(await asyncio.gather(*calls))


def told(answers: Iterable[Json]) -> Counter[str]:
    """How often each code, or each success's type, was answered."""
    return Counter(answer.get("code") or answer["__typename"] for answer in answers)


async def assert_promises_hold(world: World) -> None:
    """`frontrow verify` would find nothing in the database."""
    assert [text async for text in broken(world.frontrow.database)] == []
