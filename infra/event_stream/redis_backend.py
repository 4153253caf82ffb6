"""The bus between processes: Redis or Valkey pub/sub, over a connection that finds out when it is dead.

redis-py's own PubSub reconnects in silence and waits for ever on a half-open connection. Here every new
connection brings a Resync for each channel that may have missed something.
"""

import asyncio
import random
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError

from domain.ports import Message, Resync
from infra.event_stream.backends import Backend
from infra.event_stream.inbox import Inbox
from infra.shared_call import SharedCall

REGISTER_LIMIT_S = 1.0
PUBLISH_LIMIT_S = 1.0
CONNECT_LIMIT_S = 1.0
CANCEL_AGAIN_S = 0.1
PUBLISH_CONNECTIONS_MAX = 16
PUBLISH_MAX = 100
PUBLISH_NEXT_S = 0.25
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
# Redis channels are not bound to a database number, so a shared server needs a name in front.
CHANNEL_PREFIX = "frontrow:"

# Of channels and messages in turn.
_PUBLISH_EACH = "for n = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[n], ARGV[n + 1]) end"
_HEAD = struct.Struct(">qI")
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ServerBackend(Backend):
    """Announcements through servers, which acknowledge later what they are told."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: dict[str, Registration] = {}

    async def subscribe(self, group: str) -> None:
        """Begin to register. Does not wait; `wait_registered` does."""
        self._wanted[group] = Registration()
        self._carry(group)

    async def unsubscribe(self, group: str) -> None:
        """No more announcements on this channel. Does not wait."""
        # Whoever still waits to be registered has nothing to wait for.
        self._wanted.pop(group).may_enter.set()
        self.inbox.fetch(group)
        self._drop(group)

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
                await self._announce(channel, _encode(message))
        except (RedisError, OSError) as error:
            raise ConnectionError(f"cannot publish to Redis: {error!r}") from error

    def _carry(self, channel: str) -> None:
        """A server is told that we want it."""
        raise NotImplementedError

    def _drop(self, channel: str) -> None:
        """Whichever server was told of it is told that we don't."""
        raise NotImplementedError

    async def _announce(self, channel: str, packed: bytes) -> None:
        """Raises: RedisError, OSError."""
        raise NotImplementedError


class RedisBackend(ServerBackend):
    """Announcements through one Redis."""

    def __init__(self, url: str, *, heartbeat_s: float) -> None:
        super().__init__()
        self._server = Server(pool_of(url), self.inbox, heartbeat_s=heartbeat_s)
        # What comes while one is under way goes with the next, before one that hangs has taken its time.
        self._publishing = SharedCall(self._publish, next_after_s=PUBLISH_NEXT_S, ids_max=PUBLISH_MAX)
        self._publish_each = self._server.publisher.register_script(_PUBLISH_EACH)

    @property
    def is_connected(self) -> bool:
        """Whether the server has answered on the current connection, which is not yet known to be dead."""
        return self._server.is_connected

    async def connect(self) -> None:
        """Begin to connect. Does not wait: Redis may be down when we start."""
        self._server.start()

    async def disconnect(self) -> None:
        """Give up the connections."""
        await self._server.close()

    def _carry(self, channel: str) -> None:
        self._server.carry(channel, self._wanted[channel])

    def _drop(self, channel: str) -> None:
        self._server.drop(channel)

    async def _announce(self, channel: str, packed: bytes) -> None:
        await self._publishing([(channel, packed)])

    async def _publish(self, said: Collection[tuple[str, bytes]]) -> Mapping[tuple[str, bytes], None]:
        if len(said) == 1:
            await self._server.publish(*next(iter(said)))
        else:
            await self._publish_each(
                args=[part for channel, packed in said for part in (CHANNEL_PREFIX + channel, packed)]
            )
        return {}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The commands of pub/sub."""

    publish: str
    subscribe: str
    unsubscribe: str
    channels_per_command_max: int


PLAIN = Dialect("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", channels_per_command_max=1_000)


class Server:
    """One Redis: a connection on which what others announce arrives, and a few to announce on.

    Reconnects for ever, waiting 0 to `BACKOFF_MAX_S`. A connection silent for two heartbeats is given up.
    """

    dialect = PLAIN

    def __init__(self, pool: BlockingConnectionPool, inbox: Inbox, *, heartbeat_s: float) -> None:
        self.carried: dict[str, Registration] = {}
        self.publisher = Redis.from_pool(pool)
        self._pool = pool
        self._inbox = inbox
        self._heartbeat_s = heartbeat_s
        # Channels to tell the server about, and by slot the number of SUBSCRIBEs it has not answered per channel:
        # an answer to an earlier one, which an UNSUBSCRIBE followed, says nothing about now.
        self._changed: set[str] = set()
        self._has_changed = asyncio.Event()
        self._unanswered: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether it has answered on the current connection, which is not yet known to be dead."""
        return self._is_connected

    def start(self) -> None:
        """Begin to connect."""
        self._keeper = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        """Give up the connections."""
        await ended(self._keeper)
        await self.publisher.aclose()

    async def publish(self, channel: str, packed: bytes) -> None:
        """Announce it. Raises: RedisError, OSError."""
        await self.publisher.execute_command(  # type: ignore[no-untyped-call]
            self.dialect.publish, CHANNEL_PREFIX + channel, packed
        )

    def carry(self, channel: str, registration: "Registration") -> None:
        """Begin to register here. Does not wait. Who was registered before may have missed something."""
        registration.reopen()
        self.carried[channel] = registration
        self._note_change(channel)

    def drop(self, channel: str) -> None:
        """No more announcements on this channel from here. Does not wait."""
        del self.carried[channel]
        self._note_change(channel)

    def _slot(self, channel: str) -> int:
        """What the server goes by when it refuses a channel. One for all where it never does."""
        return 0

    def _note_loss(self) -> None:
        """Called when a connection is lost or can't be made."""

    def _note_move(self, moved: MovedError) -> None:
        """Called when the server refuses the channels of a slot. Raises: MovedError where there are none."""
        raise moved

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
            self._note_loss()
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures_in_a_row, 10))
            await asyncio.sleep(random.uniform(0, ceiling_s))

    async def _hold_connection(self) -> None:
        """Ends only by an error. Afterwards every registration is open again."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await connection.connect()
            self._unanswered.clear()
            self._changed = set(self.carried)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(connection))
                tasks.create_task(self._receive(connection))
        finally:
            for registration in self.carried.values():
                registration.reopen()
            await connection.disconnect(nowait=True)

    async def _send(self, connection: Connection) -> None:
        """Tell the server about changed channels, and give a sign of life when there are none."""
        while True:
            changed, self._changed = self._changed, set()
            self._has_changed.clear()
            new = [channel for channel in changed if channel in self.carried]
            gone = [channel for channel in changed if channel not in self.carried]
            for channel in new:
                self._unanswered[self._slot(channel)][channel] += 1
            commands = [
                *self._commands(self.dialect.unsubscribe, gone),
                *self._commands(self.dialect.subscribe, new),
            ]
            await connection.send_packed_command(connection.pack_commands(commands or [["PING"]]))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._has_changed.wait()

    async def _receive(self, connection: Connection) -> None:
        """Put what comes into the inbox. Raises: TimeoutError when nothing came for two heartbeats."""
        while True:
            try:
                reply = await connection.read_response(
                    timeout=2 * self._heartbeat_s, disconnect_on_error=False
                )
            except MovedError as moved:
                self._unanswered.pop(moved.slot_id, None)
                self._note_move(moved)
                continue
            if reply is None:
                raise TimeoutError("no sign of life from Redis")
            if not self._is_connected:
                self._is_connected = True
                _log.info("event_stream_connected")
            match reply:
                case [b"message" | b"smessage", bytes(channel), bytes(packed)]:
                    self._deliver(_channel_name(channel), packed)
                case [b"subscribe" | b"ssubscribe", bytes(channel), _]:
                    self._acknowledge(_channel_name(channel))
                case [b"sunsubscribe", bytes(channel), _]:
                    self._end(_channel_name(channel))

    def _deliver(self, channel: str, packed: bytes) -> None:
        if channel not in self.carried:
            return
        try:
            self._inbox.put(channel, _decode(packed))
        except (struct.error, UnicodeDecodeError):
            # Someone else's, or another release's: whatever it says, a fresh snapshot covers it.
            self._inbox.put(channel, Resync())

    def _acknowledge(self, channel: str) -> None:
        unanswered = self._unanswered[self._slot(channel)]
        unanswered[channel] -= 1
        if unanswered[channel] > 0 or channel in self._changed:
            return
        del unanswered[channel]
        registration = self.carried.get(channel)
        if registration is None:
            return
        if registration.acknowledge():
            self._inbox.put(channel, Resync())

    def _end(self, channel: str) -> None:
        """Ask again for what nobody wanted to end: its slot has moved, and the answer says where to."""
        if channel in self.carried and not self._unanswered[self._slot(channel)][channel]:
            self.carry(channel, self.carried[channel])

    def _commands(self, name: str, channels: list[str]) -> Iterator[list[str]]:
        step = self.dialect.channels_per_command_max
        for start in range(0, len(channels), step):
            yield [name, *(CHANNEL_PREFIX + channel for channel in channels[start : start + step])]

    def _note_change(self, channel: str) -> None:
        self._changed.add(channel)
        self._has_changed.set()


class Registration:
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
        """The server no longer knows; who was registered with it may have missed something."""
        if self._is_acknowledged:
            self._is_acknowledged = False
            self.owe_resync()


def pool_of(url: str) -> BlockingConnectionPool:
    """Connections to one server, none of them made yet."""
    pool = BlockingConnectionPool.from_url(
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
    pool.connection_kwargs["socket_timeout"] = None
    return pool


async def ended(task: asyncio.Task[None]) -> None:
    """Cancelled, and over."""
    # Before Python 3.13 a TaskGroup loses a cancel that comes just as one of its tasks fails.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


def _encode(message: Message) -> bytes:
    key = message.key.encode()
    return _HEAD.pack(message.version, len(key)) + key + message.body


def _decode(packed: bytes) -> Message:
    version, key_length = _HEAD.unpack_from(packed)
    body_start = _HEAD.size + key_length
    return Message(packed[_HEAD.size : body_start].decode(), version, packed[body_start:])


def _channel_name(name: bytes) -> str:
    return name.decode().removeprefix(CHANNEL_PREFIX)


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
