"""The bus between processes on a Redis or Valkey Cluster: sharded pub/sub, a connection to each node.

redis-py 8.1's own ClusterPubSub waits for ever on a half-open connection, and after a slot has moved it hears nothing
until some other command happens to read the table of slots again. Its cluster client reads that table, and what there
is of commands, within the next command after each that failed. Here one task asks for the table, at a pace.
"""

import asyncio
import random
from collections import defaultdict

import structlog
from redis.asyncio import Redis
from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError, RedisError

from infra.event_stream.redis_backend import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    CHANNEL_PREFIX,
    CONNECT_LIMIT_S,
    Dialect,
    Server,
    ServerBackend,
    ended,
    pool_of,
)

# As many as redis-py's own cluster client follows.
REDIRECTS_MAX = 16
# The channels of one command must share a slot, which two of ours hardly ever do.
SHARDED = Dialect("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", channels_per_command_max=1)

_Address = tuple[str, int]
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ClusterBackend(ServerBackend):
    """Announcements through a cluster: each channel by the node that has its slot.

    A node that dies costs the channels that it carried a Resync, and no others.
    """

    def __init__(self, url: str, *, heartbeat_s: float) -> None:
        super().__init__()
        self._url = url
        self._heartbeat_s = heartbeat_s
        # Asked who has which slot while no node is known or none answers.
        self._seed = Redis.from_pool(pool_of(url))
        self._nodes: dict[_Address, _Node] = {}
        self._owners: dict[int, _Address] = {}
        self._carriers: dict[str, _Node] = {}
        self._channels_by_slot: defaultdict[int, set[str]] = defaultdict(set)
        self._must_ask = True
        self._has_news = asyncio.Event()
        self._knows_owners = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether every node has answered, on a connection which is not yet known to be dead."""
        return bool(self._nodes) and all(node.is_connected for node in self._nodes.values())

    async def connect(self) -> None:
        """Begin to connect. Does not wait: the cluster may be down when we start."""
        self._keeper = asyncio.create_task(self._keep_carried())

    async def disconnect(self) -> None:
        """Give up the connections."""
        await ended(self._keeper)
        for node in self._nodes.values():
            await node.close()
        await self._seed.aclose()

    def note_loss(self) -> None:
        """A node may have lost its slots: who has them now is asked soon."""
        self._must_ask = True
        self._has_news.set()

    def note_move(self, moved: MovedError, refused_by: "_Node") -> None:
        """A node has named another one for a slot. Channels of it that were refused are carried there soon."""
        self._owners[moved.slot_id] = (moved.host or refused_by.host, moved.port)
        for channel in self._channels_by_slot[moved.slot_id]:
            if self._carriers.get(channel) is refused_by:
                self._release(channel)
        self._has_news.set()

    def _carry(self, channel: str) -> None:
        self._channels_by_slot[slot_of(channel)].add(channel)
        if not self._is_carried(channel):
            self._has_news.set()

    def _drop(self, channel: str) -> None:
        self._channels_by_slot[slot_of(channel)].remove(channel)
        self._release(channel)

    async def _announce(self, channel: str, packed: bytes) -> None:
        await self._knows_owners.wait()
        slot = slot_of(channel)
        for _ in range(REDIRECTS_MAX):
            if slot not in self._owners:
                break
            node = self._node(self._owners[slot])
            try:
                await node.publish(channel, packed)
            except MovedError as moved:
                self.note_move(moved, node)
            except (RedisError, OSError):
                self.note_loss()
                raise
            else:
                return
        self.note_loss()
        raise ClusterDownError(f"slot {slot} has no node")

    async def _keep_carried(self) -> None:
        """Have each channel carried by the node that has its slot, for ever."""
        failures_in_a_row = 0
        while True:
            self._has_news.clear()
            try:
                await self._follow_slots()
                failures_in_a_row = 0
            # Broad, because this task is an edge: if it ended, every stream would go stale without a sound.
            except Exception as error:
                self._must_ask = True
                failures_in_a_row += 1
                if failures_in_a_row == 1:
                    _log.warning("event_stream_cluster_lost", error=repr(error))
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures_in_a_row, 10))
            await asyncio.sleep(random.uniform(0, ceiling_s))
            if not failures_in_a_row:
                await self._has_news.wait()

    async def _follow_slots(self) -> None:
        """Raises: RedisError or OSError where a channel is left that no node carries."""
        if self._must_ask:
            self._must_ask = False
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await self._ask_for_owners()
        if [channel for channel in self._wanted if not self._is_carried(channel)]:
            raise ClusterDownError("some slots have no node")
        owners = set(self._owners.values())
        for address in [address for address in self._nodes if address not in owners]:
            await self._nodes.pop(address).close()

    async def _ask_for_owners(self) -> None:
        known = [node.publisher for node in self._nodes.values() if node.is_connected]
        asked = random.choice(known or [self._seed, *(node.publisher for node in self._nodes.values())])
        ranges = parse_cluster_slots(
            await asked.execute_command("CLUSTER SLOTS"),  # type: ignore[no-untyped-call]
            # Stands where a node doesn't know its own address.
            current_host=asked.connection_pool.connection_kwargs["host"],
        )
        self._owners = {
            slot: owners["primary"]
            for (first, last), owners in ranges.items()
            for slot in range(first, last + 1)
        }
        for address in set(self._owners.values()):
            self._node(address)
        self._knows_owners.set()

    def _is_carried(self, channel: str) -> bool:
        """Whether a node carries it from now on, the one that has its slot."""
        owner = self._owners.get(slot_of(channel))
        if owner is None:
            # Its last node refuses it now, and would be asked for it again and again.
            self._release(channel)
            return False
        node = self._node(owner)
        if self._carriers.get(channel) is not node:
            self._release(channel)
            node.carry(channel, self._wanted[channel])
            self._carriers[channel] = node
        return True

    def _release(self, channel: str) -> None:
        carrier = self._carriers.pop(channel, None)
        if carrier is not None:
            carrier.drop(channel)

    def _node(self, address: _Address) -> "_Node":
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(address, self, self._url, heartbeat_s=self._heartbeat_s)
            node.start()
        return node


class _Node(Server):
    """One node. What it refuses, and that it is lost, the cluster's backend is told."""

    dialect = SHARDED

    def __init__(self, address: _Address, backend: ClusterBackend, url: str, *, heartbeat_s: float) -> None:
        pool = pool_of(url)
        self.host, port = address
        pool.connection_kwargs.update(host=self.host, port=port)
        super().__init__(pool, backend.inbox, heartbeat_s=heartbeat_s)
        self._backend = backend

    def _slot(self, channel: str) -> int:
        return slot_of(channel)

    def _note_loss(self) -> None:
        self._backend.note_loss()

    def _note_move(self, moved: MovedError) -> None:
        self._backend.note_move(moved, self)


def slot_of(channel: str) -> int:
    """Where the cluster puts a channel of ours."""
    return key_slot((CHANNEL_PREFIX + channel).encode())
