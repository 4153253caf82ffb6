"""My page: the read side. Projections of what other modules announce; nothing here decides anything."""

from dataclasses import dataclass

from domain.base import Page, PageKey
from domain.booking import Booking, ConcertFacts


@dataclass(frozen=True, slots=True)
class MyBooking:
    """One row of a buyer's page: the booking, joined with the concert's facts on read."""

    booking: Booking
    facts: ConcertFacts


@dataclass(frozen=True, slots=True)
class MyPageView:
    """What the read model has of one buyer. `version`: every change of theirs up to it is in here."""

    version: int
    page: Page[MyBooking]
    total: int


def my_page_key(row: MyBooking) -> PageKey:
    """Where a row stands on the page: newest first, then by id."""
    return (row.booking.created_at.isoformat(timespec="microseconds"), row.booking.id)
