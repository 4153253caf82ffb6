"""What stands behind `broadcaster`: the bus within one process, and what every bus of ours has in common.

`broadcaster` 0.3.1 loses one of two first subscribers if `subscribe` waits, and its queues have no limit. So
`subscribe` and `unsubscribe` here never wait, and an event carries no message: it only names a channel whose
inbox has something.
"""

from broadcaster import BroadcastBackend, Event

from domain.ports import Message
from infra.event_stream.inbox import Inbox


class Backend(BroadcastBackend):
    """A bus that puts what it receives into `inbox`."""

    def __init__(self) -> None:
        self.inbox = Inbox()

    @property
    def is_connected(self) -> bool:
        """Whether announcements arrive now."""
        raise NotImplementedError

    async def wait_registered(self, channel: str) -> None:
        """From here on announcements on `channel` arrive, or else a Resync will. Bounded; never fails."""
        raise NotImplementedError

    async def next_published(self) -> Event:
        """Wait for a channel whose inbox has something to fetch."""
        return Event(await self.inbox.next_channel(), "")


class MemoryBackend(Backend):
    """The bus of a single process. broadcaster's own keeps a whole burst; this one the newest per key."""

    def __init__(self) -> None:
        super().__init__()
        self._channels: set[str] = set()

    @property
    def is_connected(self) -> bool:
        """Always."""
        return True

    async def connect(self) -> None:
        """Nothing to do."""

    async def disconnect(self) -> None:
        """Nothing to do."""

    async def subscribe(self, group: str) -> None:
        """Announcements on this channel arrive from here on."""
        self._channels.add(group)

    async def unsubscribe(self, group: str) -> None:
        """No more announcements on this channel."""
        self._channels.remove(group)
        self.inbox.fetch(group)

    async def wait_registered(self, channel: str) -> None:
        """At once: subscribing was enough."""

    async def publish(self, channel: str, message: Message) -> None:
        """Announce it to this process."""
        if channel in self._channels:
            self.inbox.put(channel, message)
