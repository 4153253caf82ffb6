"""A shop to settle payments in."""

from collections.abc import AsyncIterator

import pytest

from infra.db.unit import Database
from tests.fake_processor import FakeProcessor
from tests.paying import Shop, running_shop


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """A shop whose processor answers as it should, unless ordered otherwise."""
    async with running_shop(database, FakeProcessor()) as shop:
        yield shop
