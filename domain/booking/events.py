"""What the booking module announces. An event carries whole states, so the newest one alone is enough."""

from dataclasses import dataclass

from domain.base import ConcertId
from domain.booking.sale import ConcertFacts, Sale
from domain.booking.states import Booking


@dataclass(frozen=True, slots=True)
class BookingChanged:
    """A booking has a new version. Carries whole states, so the newest one alone is enough.

    `sale` is set where the change moved the stock. `my_page_version` counts the buyer's changes without gaps.
    """

    booking: Booking
    facts: ConcertFacts
    sale: Sale | None
    my_page_version: int


@dataclass(frozen=True, slots=True)
class SaleChanged:
    """A sale was opened, changed or closed."""

    sale: Sale


@dataclass(frozen=True, slots=True)
class SaleClosed:
    """The concert was cancelled: every booking of it is to be cancelled and refunded."""

    concert_id: ConcertId
