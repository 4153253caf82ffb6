"""The read model of a single process. No method waits in the middle, so each one is atomic."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from domain.base import BookingId, ConcertId, Page, PageKey, PageQuery, UserId
from domain.booking import Booking, BookingChanged, BookingStatus, ConcertFacts, Sale, SaleChanged
from domain.my_page import MyBooking, MyPageView
from infra.read_model.generation import Batch, BuyerDigest, Generation, batch_of_events, booking_key


class MemoryReadModel:
    """The port `ReadModel` within one process. Starts incomplete, like an empty Redis."""

    def __init__(self) -> None:
        self._current: _Content | None = None
        self._building: _Content | None = None

    async def project(self, events: Sequence[BookingChanged | SaleChanged]) -> None:
        """Set what the events say. Idempotent; the newest version wins in any order."""
        batch = batch_of_events(events)
        for content in (self._current, self._building):
            if content is not None:
                content.set(batch)

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale] | None:
        """Live counts by concert, of those that are here."""
        if self._current is None:
            return None
        return {i: self._current.sales[i] for i in ids if i in self._current.sales}

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """The buyer's page, newest first. Forward pages only."""
        assert query.before is None and not query.is_from_end, "my page is read forwards"
        return None if self._current is None else self._current.page(user_id, query, statuses)

    async def check(self) -> bool:
        """Whether it must be rebuilt."""
        return self._current is None

    async def begin(self) -> Generation | None:
        """A new, empty generation; None while somebody else fills one."""
        if self._building is not None:
            return None
        self._building = _Content()
        return _MemoryGeneration(self, self._building)

    async def facts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, ConcertFacts] | None:
        """Facts by concert, of those that are here."""
        if self._current is None:
            return None
        return {i: self._current.facts[i] for i in ids if i in self._current.facts}

    async def unlike(self, buyers: Sequence[BuyerDigest]) -> Sequence[UserId] | None:
        """All of them: nothing is saved by looking twice."""
        return None if self._current is None else [buyer.user_id for buyer in buyers]

    async def concert_ids(self) -> AsyncIterator[Sequence[ConcertId]]:
        """Every concert it holds."""
        yield list(self._current.sales) if self._current else []

    async def user_ids(self) -> AsyncIterator[Sequence[UserId]]:
        """Every buyer it holds."""
        yield list(self._current.buyers) if self._current else []


class _MemoryGeneration:
    def __init__(self, model: MemoryReadModel, content: "_Content") -> None:
        self._model = model
        self._content = content

    async def add(self, batch: Batch) -> None:
        self._content.set(batch)

    async def switch(self) -> None:
        self._model._current, self._model._building = self._content, None

    async def close(self) -> None:
        if self._model._building is self._content:
            self._model._building = None


@dataclass(slots=True)
class _Buyer:
    """One buyer's bookings: by id, and their keys in ascending order within each status."""

    bookings: dict[BookingId, Booking] = field(default_factory=dict)
    keys: defaultdict[BookingStatus, list[PageKey]] = field(default_factory=lambda: defaultdict(list))
    version: int = 0
    changes_ahead: set[int] = field(default_factory=set)

    def set(self, booking: Booking) -> None:
        known = self.bookings.get(booking.id)
        key = booking_key(booking)
        if known is not None:
            if known.version >= booking.version:
                return
            keys = self.keys[known.status]
            del keys[bisect_left(keys, key)]
        self.bookings[booking.id] = booking
        insort(self.keys[booking.status], key)

    def advance(self) -> None:
        """Move the version past every change that has joined it without a gap."""
        while self.version + 1 in self.changes_ahead:
            self.version += 1
        self.changes_ahead = {change for change in self.changes_ahead if change > self.version}


@dataclass(slots=True)
class _Content:
    """One generation."""

    sales: dict[ConcertId, Sale] = field(default_factory=dict)
    facts: dict[ConcertId, ConcertFacts] = field(default_factory=dict)
    buyers: defaultdict[UserId, _Buyer] = field(default_factory=lambda: defaultdict(_Buyer))

    def set(self, batch: Batch) -> None:
        for sale in batch.sales:
            if (known := self.sales.get(sale.concert_id)) is None or known.version < sale.version:
                self.sales[sale.concert_id] = sale
        for facts in batch.facts:
            if (old := self.facts.get(facts.concert_id)) is None or old.version < facts.version:
                self.facts[facts.concert_id] = facts
        for booking in batch.bookings:
            self.buyers[booking.user_id].set(booking)
        for user_id, version in batch.versions:
            buyer = self.buyers[user_id]
            buyer.version = max(buyer.version, version)
            buyer.advance()
        for user_id, change in batch.changes:
            buyer = self.buyers[user_id]
            buyer.changes_ahead.add(change)
            buyer.advance()

    def page(
        self, user_id: UserId, query: PageQuery, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """None where a concert's facts have not come yet: read the database."""
        buyer = self.buyers.get(user_id, _Buyer())
        chosen = [buyer.keys.get(status, []) for status in (BookingStatus if statuses is None else statuses)]
        candidates: list[PageKey] = []
        for keys in chosen:
            end = len(keys) if query.after is None else bisect_left(keys, query.after)
            candidates += keys[max(0, end - query.limit - 1) : end]
        candidates.sort(reverse=True)
        bookings = [buyer.bookings[BookingId(key[1])] for key in candidates[: query.limit]]
        if any(booking.concert_id not in self.facts for booking in bookings):
            return None
        rows = tuple(MyBooking(booking, self.facts[booking.concert_id]) for booking in bookings)
        page = Page(rows, has_next=len(candidates) > query.limit, has_previous=query.after is not None)
        return MyPageView(buyer.version, page, total=sum(map(len, chosen)))
