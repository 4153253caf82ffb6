"""Where announcements wait: a slot per key, not a queue, so that a burst or a slow client costs no more."""

import asyncio

from domain.ports import Message, Resync

SLOTS_MAX = 1_000


class Slots:
    """At most one waiting Message per key, the newest, in the order the keys came; and at most one Resync.

    With more than `SLOTS_MAX` keys waiting all are dropped for a Resync.
    """

    def __init__(self) -> None:
        self._messages: dict[str, Message] = {}
        self._is_resync_due = False

    def put(self, item: Message | Resync) -> None:
        """`item` waits, unless a newer version of its key does."""
        if isinstance(item, Resync):
            self._is_resync_due = True
            return
        waiting = self._messages.get(item.key)
        if waiting is not None and waiting.version > item.version:
            return
        self._messages[item.key] = item
        if len(self._messages) > SLOTS_MAX:
            self._messages.clear()
            self._is_resync_due = True

    def pop(self) -> Message | Resync | None:
        """Take what comes next, a Resync first; None when nothing waits."""
        if self._is_resync_due:
            self._is_resync_due = False
            return Resync()
        if not self._messages:
            return None
        return self._messages.pop(next(iter(self._messages)))


class Inbox:
    """What a backend received and has not handed on yet, in slots per channel.

    A channel is named once by `next_channel`, and not again before its slots were fetched: that bounds the
    queues behind it, broadcaster's included, which have no limit of their own.
    """

    def __init__(self) -> None:
        self._slots: dict[str, Slots] = {}
        self._channels: asyncio.Queue[str] = asyncio.Queue()

    def put(self, channel: str, item: Message | Resync) -> None:
        """`item` waits to be fetched."""
        slots = self._slots.get(channel)
        if slots is None:
            slots = self._slots[channel] = Slots()
            self._channels.put_nowait(channel)
        slots.put(item)

    async def next_channel(self) -> str:
        """Wait for a channel for which something came."""
        return await self._channels.get()

    def fetch(self, channel: str) -> Slots:
        """Take all that waits for `channel`."""
        return self._slots.pop(channel, Slots())
