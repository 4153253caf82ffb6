"""What a resolver is given beside its arguments: made anew for every operation, on a websocket too."""

from dataclasses import dataclass

import strawberry

from domain.base import DomainError, PageQuery, UserId
from domain.booking import BookingStatus
from domain.concert import ConcertFilter
from domain.my_page import MyPageView
from domain.ports import Deps
from domain.use_cases.my_page import my_page
from domain.user import Viewer
from resolvers.loaders import Loaders


@dataclass(slots=True)
class Context:
    """Who asks, and what may be reached. `client` is the address that attempts are counted by.

    With a `refusal` nothing may be done: it is every mutation's answer. `version` is that of the state which a
    subscription shows.
    """

    viewer: Viewer | None
    deps: Deps
    loaders: Loaders
    request_id: str
    client: str
    refusal: DomainError | None = None
    version: int = 0

    async def concert_total(self, where: ConcertFilter) -> int:
        """How many catalogue entries the filter leaves."""
        return await self.deps.reads.concert_total(where)

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView:
        """The buyer's page, own writes included."""
        return await my_page(self.deps, user_id, query, statuses=statuses)


Info = strawberry.Info[Context, None]


def make_context(
    deps: Deps, *, viewer: Viewer | None, request_id: str, client: str, refusal: DomainError | None = None
) -> Context:
    """The context of one operation."""
    return Context(viewer, deps, Loaders(deps), request_id, client, refusal)
