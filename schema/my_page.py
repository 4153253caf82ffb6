"""My page, as its owner sees it: served from the read model, and never older than the owner's last write."""

from datetime import datetime
from typing import Annotated

import strawberry

from domain.base import BadUserInput, UserId
from domain.booking import BookingStatus
from domain.my_page import MyBooking as MyBookingNoun
from domain.my_page import MyPageView, my_page_key
from domain.payment import PaymentStatus
from domain.user import Viewer
from schema.booking import retry_pay_at
from schema.common import FieldInfo, Kind, Money, Node, encode_id, given
from schema.paging import PAGE_DEFAULT, PAGE_MAX, CursorScope, PageInfo, page_query
from schema.user import User

# More would name a status twice.
_STATUSES_MAX = len(BookingStatus)


@strawberry.type(
    description="A booking with the concert's facts, as my page shows it. Its buyer and admins see it."
)
class MyBooking(Node):
    """One row of my page."""

    booking_id: strawberry.ID = strawberry.field(description="The booking's id: what the mutations take.")
    concert_id: strawberry.ID = strawberry.field(description="The concert's id.")
    concert_title: str = strawberry.field(description="The concert's title now.")
    venue: str = strawberry.field(description="Where it takes place.")
    starts_at: datetime = strawberry.field(description="When it starts.")
    ticket_quantity: int = strawberry.field(description="All tickets of the booking together.")
    total: Money = strawberry.field(description="What is to pay or was paid.")
    status: BookingStatus = strawberry.field(description="Where the booking stands.")
    is_final: bool = strawberry.field(
        description="Whether nothing will change any more: cancelled or expired, and no money on its way."
    )
    payment_status: PaymentStatus | None = strawberry.field(
        description="Where the latest attempt to pay stands, null before the first."
    )
    pay_by: datetime | None = strawberry.field(
        description="Until when it can be paid. Null in every state that can't be paid."
    )
    version: int = strawberry.field(
        description="Rises with every change of the booking or its latest payment; may jump."
    )
    created_at: datetime = strawberry.field(description="When the booking was made.")
    updated_at: datetime = strawberry.field(description="When this version came to be.")

    @classmethod
    def of(cls, noun: MyBookingNoun) -> "MyBooking":
        """As its buyer sees it."""
        booking, facts = noun.booking, noun.facts
        return cls(
            id=encode_id(Kind.MY_BOOKING, booking.id),
            booking_id=encode_id(Kind.BOOKING, booking.id),
            concert_id=encode_id(Kind.CONCERT, booking.concert_id),
            concert_title=facts.title,
            venue=facts.venue,
            starts_at=facts.starts_at,
            ticket_quantity=booking.ticket_quantity,
            total=Money.of(booking.total),
            status=booking.status,
            is_final=booking.is_final,
            payment_status=booking.payment_status,
            pay_by=booking.pay_by,
            version=booking.version,
            created_at=booking.created_at,
            updated_at=booking.updated_at,
        )


@strawberry.type(description="One booking of a page.")
class MyBookingEdge:
    """A row and where it stands."""

    cursor: str = strawberry.field(description="For `after`, with the same `status`.")
    node: MyBooking = strawberry.field(description="The booking.")


@strawberry.type(
    description="A page of the viewer's bookings. None comes twice or is skipped while you page."
)
class MyBookingConnection:
    """A keyset page."""

    edges: list[MyBookingEdge] = strawberry.field(description="At most 100, newest first.")
    page_info: PageInfo = strawberry.field(description="Where this page stands.")
    total_count: int = strawberry.field(
        description="All bookings in the states asked for, all pages together."
    )

    @classmethod
    def of(cls, view: MyPageView, scope: CursorScope) -> "MyBookingConnection":
        """The page with its cursors."""
        rows = view.page.rows
        cursors = [scope.encode(my_page_key(row)) for row in rows]
        return cls(
            edges=[
                MyBookingEdge(cursor=cursor, node=MyBooking.of(row))
                for cursor, row in zip(cursors, rows, strict=True)
            ],
            page_info=PageInfo.of(view.page, cursors),
            total_count=view.total,
        )


@strawberry.type(description="What the signed-in person has booked.")
class MyPage:
    """The viewer's own page."""

    user_id: strawberry.Private[UserId]
    user: User = strawberry.field(description="The signed-in person.")

    @strawberry.field(description="The person's bookings, newest first.")
    async def bookings(
        self,
        info: FieldInfo,
        first: Annotated[
            int | None, strawberry.argument(description=f"How many, from 1 to {PAGE_MAX}.")
        ] = PAGE_DEFAULT,
        after: Annotated[
            str | None, strawberry.argument(description="Only those after this cursor.")
        ] = strawberry.UNSET,
        status: Annotated[
            list[BookingStatus] | None,
            strawberry.argument(description="Only those in one of these states. Absent or null: in any."),
        ] = strawberry.UNSET,
    ) -> MyBookingConnection:
        """One page. Raises: BadUserInput for arguments that make no sense."""
        wanted = given(status)
        if wanted is not None and len(wanted) > _STATUSES_MAX:
            raise BadUserInput(f"status must have at most {_STATUSES_MAX} entries.")
        statuses = None if wanted is None else frozenset(wanted)
        scope = my_page_scope(statuses)
        query = page_query(scope, first=given(first), after=given(after))
        view = await info.context.my_page(self.user_id, query, statuses=statuses)
        return MyBookingConnection.of(view, scope)

    @classmethod
    def of(cls, viewer: Viewer) -> "MyPage":
        """The viewer's."""
        return cls(user_id=viewer.user.id, user=User.of(viewer.user, seen_by=viewer))


def my_page_scope(statuses: frozenset[BookingStatus] | None) -> CursorScope:
    """What a cursor of this list belongs to."""
    names = None if statuses is None else ",".join(sorted(status.value for status in statuses))
    return CursorScope.of("myPage", names, is_by_time=True)


@strawberry.type(
    description=(
        "A state of a booking, pushed live. Whole, so the newest one is enough; a burst may be "
        "merged into its newest state."
    )
)
class BookingUpdate:
    """What the booking subscriptions push."""

    booking_id: strawberry.ID = strawberry.field(description="The booking's id.")
    concert_id: strawberry.ID = strawberry.field(description="The concert's id.")
    status: BookingStatus = strawberry.field(description="Where the booking stands.")
    is_final: bool = strawberry.field(description="Whether nothing will change any more.")
    payment_status: PaymentStatus | None = strawberry.field(
        description="Where the latest attempt to pay stands, null before the first."
    )
    decline_code: str | None = strawberry.field(
        description="Why the latest attempt was declined, in the processor's words."
    )
    pay_by: datetime | None = strawberry.field(
        description="Until when it can be paid. Null in every state that can't be paid."
    )
    retry_pay_at: datetime | None = strawberry.field(
        description="While `PAYMENT_DEFERRED`: don't pay again before this. Null otherwise."
    )
    version: int = strawberry.field(
        description=(
            "Never goes back on an open stream. The first message replaces what you hold, whatever its "
            "version."
        )
    )
    occurred_at: datetime = strawberry.field(description="When this version came to be.")
    booking: MyBooking = strawberry.field(description="The row of my page in this version.")

    @classmethod
    def of(cls, noun: MyBookingNoun) -> "BookingUpdate":
        """As its buyer sees it."""
        booking = noun.booking
        return cls(
            booking_id=encode_id(Kind.BOOKING, booking.id),
            concert_id=encode_id(Kind.CONCERT, booking.concert_id),
            status=booking.status,
            is_final=booking.is_final,
            payment_status=booking.payment_status,
            decline_code=booking.decline_code,
            pay_by=booking.pay_by,
            retry_pay_at=retry_pay_at(booking),
            version=booking.version,
            occurred_at=booking.updated_at,
            booking=MyBooking.of(noun),
        )
