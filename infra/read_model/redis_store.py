"""The read model of any number of processes, in Redis or Valkey."""

import secrets
from asyncio import Semaphore, timeout
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from domain.base import ConcertId, Page, PageQuery, UserId
from domain.booking import Booking, BookingChanged, BookingStatus, ConcertFacts, Sale, SaleChanged
from domain.my_page import MyBooking, MyPageView
from infra import codec
from infra.read_model import scripts
from infra.read_model.documents import encode, encode_booking
from infra.read_model.generation import (
    Batch,
    BuyerDigest,
    Generation,
    GenerationLost,
    batch_of_events,
    booking_key,
)
from infra.shared_call import SharedCall

# Somebody waits for a page, and there is the database to read instead.
READ_LIMIT_S = 0.3
# Nobody waits for what is done in the background, and it is done again where it fails.
BACKGROUND_LIMIT_S = 1.0
# Renewed with every batch; a rebuild that died is taken over after this long.
LEASE_S = 15.0
CONNECTIONS_MAX = 32
EVENTS_PER_SCRIPT_MAX = 100
KEYS_PER_SCAN = 500

_T = TypeVar("_T")


@asynccontextmanager
async def redis_read_model(
    url: str, *, read_limit_s: float = READ_LIMIT_S
) -> AsyncIterator["RedisReadModel"]:
    """A read model with connections of its own, until the context ends. Starts whether or not Redis is up."""
    pool = ConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS_MAX,
        socket_connect_timeout=BACKGROUND_LIMIT_S,
        # Every call is bounded from outside. Given a time-out, redis-py sends inside asyncio.wait_for, which before
        # Python 3.12 may swallow a cancellation, ours too: 3 of 96 readers of a frozen server then waited 2 s more.
        socket_timeout=None,
        # One more try, on a new connection, for a pooled one that died while it was idle.
        retry=Retry(NoBackoff(), 1),
    )
    async with Redis.from_pool(pool) as redis:
        yield RedisReadModel(redis, read_limit_s=read_limit_s)


class RedisReadModel:
    """The port `ReadModel`, one script for each call. `scripts` tells what stands where.

    Concurrency: any number of processes may read, project and rebuild.
    """

    def __init__(self, redis: Redis, *, read_limit_s: float) -> None:
        # redis-py's own BlockingConnectionPool lets whoever gives a connection back take it again before those who
        # wait: with 40 readers some waited more than 300 ms for their turn. A semaphore is a queue.
        slots = Semaphore(CONNECTIONS_MAX)
        self._somebody_waits = _Bounded(redis, slots, limit_s=read_limit_s)
        # Never less than who waits has: `frontrow verify` gives pages ten seconds.
        self._nobody_waits = _Bounded(redis, slots, limit_s=max(read_limit_s, BACKGROUND_LIMIT_S))
        # A round trip costs more than what an event says.
        self._projecting = SharedCall(self._project, ids_max=EVENTS_PER_SCRIPT_MAX)

    async def project(self, events: Sequence[BookingChanged | SaleChanged]) -> None:
        """Set what the events say. Idempotent; the newest version wins in any order.

        Who projects while a script is under way shares the next one with all who do; what is wrong with one of their
        events is found out by each alone.
        """
        told = [_Told(event) for event in events]
        try:
            await self._projecting(told)
        except ConnectionError:
            raise
        except Exception:  # somebody's event, if not ours
            await self._project(told)

    async def _project(self, told: Collection["_Told"]) -> Mapping["_Told", None]:
        events = [each.event for each in told]
        for start in range(0, len(events), EVENTS_PER_SCRIPT_MAX):
            batch = batch_of_events(events[start : start + EVENTS_PER_SCRIPT_MAX])
            await self._nobody_waits.run(scripts.PROJECT, _encode_batch(batch))
        return {}

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale] | None:
        """Live counts by concert, of those that are here. One round trip."""
        return await self._docs(Sale, "sales", ids)

    async def facts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, ConcertFacts] | None:
        """Facts by concert, of those that are here. One round trip."""
        return await self._docs(ConcertFacts, "facts", ids)

    async def _docs(
        self, kind: type[_T], name: str, ids: Collection[ConcertId]
    ) -> Mapping[ConcertId, _T] | None:
        docs = await self._somebody_waits.run(scripts.READ_DOCS, name, *ids)
        if docs is None:
            return None
        try:
            return {i: _decode(kind, doc) for i, doc in zip(ids, docs, strict=True) if doc is not None}
        except _Unreadable:
            return None

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """The buyer's page, newest first, forwards only. One round trip, however many bookings there are."""
        assert query.before is None and not query.is_from_end, "my page is read forwards"
        after = "" if query.after is None else " ".join(query.after)
        names = [status.value for status in (BookingStatus if statuses is None else statuses)]
        answer = await self._somebody_waits.run(scripts.READ_PAGE, user_id, query.limit, after, *names)
        if answer is None:
            return None
        version, total, has_next, booking_docs, facts_docs = answer
        try:
            bookings = [_decode(Booking, doc) for doc in booking_docs]
            facts = {fact.concert_id: fact for fact in [_decode(ConcertFacts, doc) for doc in facts_docs]}
        except _Unreadable:
            return None
        rows = tuple(MyBooking(booking, facts[booking.concert_id]) for booking in bookings)
        page = Page(rows, has_next=bool(has_next), has_previous=query.after is not None)
        return MyPageView(version, page, total)

    async def check(self) -> bool:
        """Whether it must be rebuilt: never filled, emptied, or restarted with old data. Ask each second."""
        return bool(await self._nobody_waits.run(scripts.CHECK))

    async def begin(self) -> Generation | None:
        """A new, empty generation; None while somebody else fills one."""
        token = secrets.token_hex(8)
        if not await self._nobody_waits.run(scripts.BEGIN, token, _LEASE_MS):
            return None
        return _RedisGeneration(self._nobody_waits, token)

    async def unlike(self, buyers: Sequence[BuyerDigest]) -> Sequence[UserId] | None:
        """Those of whom it may hold anything else: documents are too many to fetch them all."""
        ids = [buyer.user_id for buyer in buyers]
        digests = await self._nobody_waits.run(scripts.DIGESTS, len(_STATUSES), *_STATUSES, *ids)
        if digests is None:
            return None
        held = digests.decode().split()
        return [buyer.user_id for buyer, digest in zip(buyers, held, strict=True) if digest != buyer.digest]

    async def concert_ids(self) -> AsyncIterator[Sequence[ConcertId]]:
        """Every concert it holds, some at a time, perhaps more than once."""
        async for names in self._nobody_waits.scan(scripts.SCAN_CONCERTS):
            yield [ConcertId(name) for name in names]

    async def user_ids(self) -> AsyncIterator[Sequence[UserId]]:
        """Every buyer it holds, some at a time, perhaps more than once."""
        async for names in self._nobody_waits.scan(scripts.SCAN_USERS):
            yield [UserId(name) for name in names]


@dataclass(frozen=True, eq=False, slots=True)
class _Told:
    """An event, the same as none but itself."""

    event: BookingChanged | SaleChanged


class _RedisGeneration:
    """One generation being filled, under the lease `token`, which is also its name."""

    def __init__(self, nobody_waits: "_Bounded", token: str) -> None:
        self._nobody_waits = nobody_waits
        self._token = token

    async def add(self, batch: Batch) -> None:
        self._require(await self._nobody_waits.run(scripts.ADD, self._token, _LEASE_MS, _encode_batch(batch)))

    async def switch(self) -> None:
        self._require(await self._nobody_waits.run(scripts.SWITCH, self._token))

    async def close(self) -> None:
        # What can't be done now happens later: the lease ends, and the next rebuild sweeps.
        with suppress(ConnectionError):
            await self._nobody_waits.run(scripts.CLOSE, self._token)
            async for _ in self._nobody_waits.scan(scripts.SWEEP):
                pass

    def _require(self, answer: int) -> None:
        if not answer:
            raise GenerationLost("the lease is lost, or Redis was emptied or restarted")


class _Bounded:
    """Scripts on a Redis, each call bounded in time, every failure a ConnectionError. First come, first served."""

    def __init__(self, redis: Redis, slots: Semaphore, *, limit_s: float) -> None:
        self._redis = redis
        self._slots = slots
        self._limit_s = limit_s
        self._scripts: dict[str, AsyncScript] = {}

    async def run(self, source: str, *arguments: str | int | bytes) -> Any:
        """The script's answer. Raises: ConnectionError."""
        script = self._scripts.get(source)
        if script is None:
            script = self._scripts[source] = self._redis.register_script(source)
        try:
            async with timeout(self._limit_s), self._slots:
                return await script(args=arguments)
        except (RedisError, OSError) as error:
            raise ConnectionError(f"the read model in Redis does not answer: {error!r}") from error

    async def scan(self, source: str) -> AsyncIterator[list[str]]:
        """All names that a script finds, which takes and answers a cursor; some at a time."""
        cursor = b"0"
        while True:
            cursor, names = await self.run(source, cursor, KEYS_PER_SCAN)
            if names:
                yield names.decode().split("\n")
            if cursor == b"0":
                return


_LEASE_MS = int(LEASE_S * 1_000)
# In this order a buyer's bookings are digested.
_STATUSES = tuple(sorted(status.value for status in BookingStatus))


class _Unreadable(Exception):
    """A document is missing or of another release: as good as no read model."""


def _decode(kind: type[_T], doc: bytes | None) -> _T:
    if doc is None:
        raise _Unreadable
    try:
        return codec.decode(kind, doc.partition(b"\n")[2])
    except ValueError as error:
        raise _Unreadable from error


def _encode_batch(batch: Batch) -> bytes:
    return orjson.dumps(
        {
            "sales": [(s.concert_id, s.version, encode(s, s.version)) for s in batch.sales],
            "facts": [(f.concert_id, f.version, encode(f, f.version)) for f in batch.facts],
            "bookings": [
                (
                    b.user_id,
                    b.id,
                    b.version,
                    b.status.value,
                    " ".join(booking_key(b)),
                    encode_booking(b),
                )
                for b in batch.bookings
            ],
            "versions": batch.versions,
            "changes": batch.changes,
        }
    )
