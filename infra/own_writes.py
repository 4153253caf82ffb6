"""A process never shows a live count older than its own last commit, however late the projection is."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

from domain.base import ConcertId, PageQuery, UserId
from domain.booking import BookingChanged, BookingStatus, Sale, SaleChanged
from domain.events import Event
from domain.my_page import MyPageView
from domain.ports import ReadModel
from infra.telemetry import Metrics

# Concerts remembered; one that was forgotten was last written long ago and is projected.
CONCERTS_MAX = 10_000


class FreshReadModel:
    """The port `ReadModel`, leaving out counts that this process knows to be stale: the database has them."""

    def __init__(self, read_model: ReadModel, metrics: Metrics) -> None:
        self._read_model = read_model
        self._metrics = metrics
        self._written: OrderedDict[ConcertId, int] = OrderedDict()

    def committed(self, events: Sequence[Event]) -> None:
        """Remember the versions that a transaction of this process brought about."""
        for event in events:
            if isinstance(event, BookingChanged | SaleChanged) and event.sale is not None:
                concert_id = event.sale.concert_id
                self._written[concert_id] = max(event.sale.version, self._written.get(concert_id, 0))
                self._written.move_to_end(concert_id)
        while len(self._written) > CONCERTS_MAX:
            self._written.popitem(last=False)

    async def project(self, events: Sequence[BookingChanged | SaleChanged]) -> None:
        """Set what the events say."""
        await self._read_model.project(events)

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale] | None:
        """Live counts by concert, none older than this process's own writes."""
        try:
            found = await self._read_model.sales(ids)
        except ConnectionError:
            self._metrics.read_model_fallbacks.labels(reason="unreachable").inc()
            raise
        if found is None:
            self._metrics.read_model_fallbacks.labels(reason="incomplete").inc()
            return None
        return {i: sale for i, sale in found.items() if sale.version >= self._written.get(i, 0)}

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """The buyer's page; `MyPageView.version` tells how fresh it is."""
        return await self._read_model.my_page(user_id, query, statuses=statuses)
