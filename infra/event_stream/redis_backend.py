"""The bus between processes: Redis or Valkey pub/sub, over a connection that finds out when it is dead.

redis-py's own PubSub reconnects in silence and waits for ever on a half-open connection. Here every new
connection brings a Resync for each channel that may have missed something.
"""

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

import structlog
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from domain.ports import Message, Resync
from infra.event_stream.backends import Backend

REGISTER_LIMIT_S = 1.0
PUBLISH_LIMIT_S = 1.0
CONNECT_LIMIT_S = 1.0
CANCEL_AGAIN_S = 0.1
PUBLISH_CONNECTIONS_MAX = 16
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
CHANNELS_PER_COMMAND_MAX = 1_000
# Redis channels are not bound to a database number, so a shared server needs a name in front.
CHANNEL_PREFIX = "frontrow:"

_HEAD = struct.Struct(">qI")
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RedisBackend(Backend):
    """Announcements through Redis.

    Reconnects for ever, waiting 0 to `BACKOFF_MAX_S`. A connection silent for two heartbeats is given up.
    """

    def __init__(self, url: str, *, heartbeat_s: float) -> None:
        super().__init__()
        self._heartbeat_s = heartbeat_s
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=PUBLISH_CONNECTIONS_MAX,
            timeout=PUBLISH_LIMIT_S,
            socket_connect_timeout=CONNECT_LIMIT_S,
            # One more try, on a new connection, for a pooled one that died while it was idle.
            retry=Retry(NoBackoff(), 1),
            # RESP3 answers PING and SUBSCRIBE in other shapes.
            protocol=2,
        )
        # A socket time-out makes redis-py send inside asyncio.wait_for, which on Python 3.11 swallows a
        # cancellation that comes as the send completes. The limits here are asyncio.timeout's instead.
        self._pool.connection_kwargs["socket_timeout"] = None
        self._publisher = Redis.from_pool(self._pool)
        self._wanted: dict[str, _Registration] = {}
        # Channels to tell the server about, and the number of SUBSCRIBEs it has not answered per channel: an
        # answer to an earlier one, which an UNSUBSCRIBE followed, says nothing about now.
        self._changed: set[str] = set()
        self._has_changed = asyncio.Event()
        self._unanswered: Counter[str] = Counter()
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether the server has answered on the current connection, which is not yet known to be dead."""
        return self._is_connected

    async def connect(self) -> None:
        """Begin to connect. Does not wait: Redis may be down when we start."""
        self._keeper = asyncio.create_task(self._keep_connected())

    async def disconnect(self) -> None:
        """Give up the connections."""
        # Before Python 3.13 a TaskGroup loses a cancel that comes just as one of its tasks fails.
        while not self._keeper.done():
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=CANCEL_AGAIN_S)
        await self._publisher.aclose()

    async def subscribe(self, group: str) -> None:
        """Begin to register. Does not wait; `wait_registered` does."""
        self._wanted[group] = _Registration()
        self._note_change(group)

    async def unsubscribe(self, group: str) -> None:
        """No more announcements on this channel. Does not wait."""
        # Whoever still waits to be registered has nothing to wait for.
        self._wanted.pop(group).may_enter.set()
        self.inbox.fetch(group)
        self._note_change(group)

    async def wait_registered(self, channel: str) -> None:
        """The server has acknowledged, or a Resync follows once it does, for which nobody has to wait.

        `REGISTER_LIMIT_S` after the first one came, all who wait for the server are let in together.
        """
        registration = self._wanted[channel]
        try:
            async with asyncio.timeout(REGISTER_LIMIT_S):
                await registration.may_enter.wait()
        except TimeoutError:
            registration.owe_resync()

    async def publish(self, channel: str, message: Message) -> None:
        """Announce it to every process. Raises: ConnectionError, after `PUBLISH_LIMIT_S` at the latest."""
        try:
            async with asyncio.timeout(PUBLISH_LIMIT_S):
                await self._publisher.publish(CHANNEL_PREFIX + channel, _encode(message))
        except (RedisError, OSError) as error:
            raise ConnectionError(f"cannot publish to Redis: {error!r}") from error

    async def _keep_connected(self) -> None:
        """Hold a connection, for ever."""
        failures_in_a_row = 0
        while True:
            try:
                await self._hold_connection()
            # Broad, because this task is an edge: if it ended, every stream would go stale without a sound.
            except* Exception as errors:
                failures_in_a_row = 1 if self._is_connected else failures_in_a_row + 1
                if failures_in_a_row == 1:
                    _log.warning("event_stream_lost", errors=[str(error) for error in _leaves(errors)])
            self._is_connected = False
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures_in_a_row, 10))
            await asyncio.sleep(random.uniform(0, ceiling_s))

    async def _hold_connection(self) -> None:
        """Ends only by an error. Afterwards every registration is open again."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await connection.connect()
            self._unanswered.clear()
            self._changed = set(self._wanted)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(connection))
                tasks.create_task(self._receive(connection))
        finally:
            for registration in self._wanted.values():
                registration.reopen()
            await connection.disconnect(nowait=True)

    async def _send(self, connection: Connection) -> None:
        """Tell the server about changed channels, and give a sign of life when there are none."""
        while True:
            changed, self._changed = self._changed, set()
            self._has_changed.clear()
            new = [channel for channel in changed if channel in self._wanted]
            gone = [channel for channel in changed if channel not in self._wanted]
            self._unanswered.update(new)
            for command, channels in (("UNSUBSCRIBE", gone), ("SUBSCRIBE", new)):
                for some in _chunks(channels):
                    await connection.send_command(command, *(CHANNEL_PREFIX + channel for channel in some))
            if not changed:
                await connection.send_command("PING")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._has_changed.wait()

    async def _receive(self, connection: Connection) -> None:
        """Put what comes into the inbox. Raises: TimeoutError when nothing came for two heartbeats."""
        while True:
            reply = await connection.read_response(timeout=2 * self._heartbeat_s, disconnect_on_error=False)
            if reply is None:
                raise TimeoutError("no sign of life from Redis")
            if not self._is_connected:
                self._is_connected = True
                _log.info("event_stream_connected")
            match reply:
                case [b"message", bytes(channel), bytes(packed)]:
                    self._deliver(_channel_name(channel), packed)
                case [b"subscribe", bytes(channel), _]:
                    self._acknowledge(_channel_name(channel))

    def _deliver(self, channel: str, packed: bytes) -> None:
        if channel not in self._wanted:
            return
        try:
            self.inbox.put(channel, _decode(packed))
        except (struct.error, UnicodeDecodeError):
            # Someone else's, or another release's: whatever it says, a fresh snapshot covers it.
            self.inbox.put(channel, Resync())

    def _acknowledge(self, channel: str) -> None:
        self._unanswered[channel] -= 1
        if self._unanswered[channel] > 0 or channel in self._changed:
            return
        del self._unanswered[channel]
        registration = self._wanted.get(channel)
        if registration is None:
            return
        if registration.acknowledge():
            self.inbox.put(channel, Resync())

    def _note_change(self, channel: str) -> None:
        self._changed.add(channel)
        self._has_changed.set()


class _Registration:
    """How far the server knows of a channel that we want."""

    __slots__ = ("_is_acknowledged", "_is_resync_due", "may_enter")

    def __init__(self) -> None:
        self.may_enter = asyncio.Event()
        self._is_acknowledged = False
        self._is_resync_due = False

    def acknowledge(self) -> bool:
        """The server knows; whether a Resync was due until now."""
        was_due = self._is_resync_due
        self._is_acknowledged, self._is_resync_due = True, False
        self.may_enter.set()
        return was_due

    def owe_resync(self) -> None:
        """Whoever enters before the server knows may miss something until it does."""
        if not self._is_acknowledged:
            self._is_resync_due = True
            self.may_enter.set()

    def reopen(self) -> None:
        """The connection is gone; who was registered on it may have missed something."""
        if self._is_acknowledged:
            self._is_acknowledged = False
            self.owe_resync()


def _encode(message: Message) -> bytes:
    key = message.key.encode()
    return _HEAD.pack(message.version, len(key)) + key + message.body


def _decode(packed: bytes) -> Message:
    version, key_length = _HEAD.unpack_from(packed)
    body_start = _HEAD.size + key_length
    return Message(packed[_HEAD.size : body_start].decode(), version, packed[body_start:])


def _channel_name(name: bytes) -> str:
    return name.decode().removeprefix(CHANNEL_PREFIX)


def _chunks(channels: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(channels), CHANNELS_PER_COMMAND_MAX):
        yield channels[start : start + CHANNELS_PER_COMMAND_MAX]


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
