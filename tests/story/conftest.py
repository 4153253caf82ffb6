"""Worlds to tell stories in."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import pytest

from infra.settings import Settings
from tests.story.world import World, running_world

BACKENDS = ("embedded", "production")


class NewWorld(Protocol):
    """Starts a world with some settings of the test's own."""

    def __call__(
        self, *, without: frozenset[str] = frozenset(), **facts: Any
    ) -> AbstractAsyncContextManager[World]:
        """Until the block ends."""
        ...


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that name an empty database and an empty read model of one kind."""
    if request.param == "embedded":
        return {"database_url": request.getfixturevalue("sqlite_database_url")}
    redis_url = request.getfixturevalue("redis_url")
    return {"database_url": request.getfixturevalue("postgres_database_url"), "redis_url": redis_url}


@pytest.fixture
def new_world(backend: dict[str, Any]) -> NewWorld:
    """Worlds on the backend, with other settings where a story needs them."""

    def start(*, without: frozenset[str] = frozenset(), **facts: Any) -> AbstractAsyncContextManager[World]:
        # A busy machine is no bad day of the processor: only tests about those have less patience.
        patient = {"payment_timeout_ms": 20_000} | facts
        return running_world(Settings(**backend, demo=False, **patient), without=without)

    return start


@pytest.fixture
async def world(new_world: NewWorld) -> AsyncIterator[World]:
    """A running Frontrow."""
    async with new_world() as running:
        yield running
