"""What subscribers hear, over the bus of one process."""

import asyncio

import pytest

from domain.booking import SaleChanged
from domain.ports import Message, Resync
from infra.event_stream import memory_event_stream
from infra.live_updates import StreamedUpdates
from tests.db_world import a_sale

pytestmark = pytest.mark.anyio


async def test_what_another_release_announces_is_read_from_the_database() -> None:
    """A body that can't be decoded here ends no stream: a fresh snapshot is asked for, and the next one is heard."""
    sale = a_sale()
    async with memory_event_stream() as stream, asyncio.timeout(10):
        live = StreamedUpdates(stream)
        async with live.listen_sale(sale.concert_id) as heard:
            await stream.publish(f"concert:{sale.concert_id}", Message("sale", 2, b'{"concert": 1}'))
            assert await anext(heard) == Resync()
            await live.announce(SaleChanged(sale))
            assert await anext(heard) == sale
