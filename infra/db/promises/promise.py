"""What a promise is: something that is always true, and the one statement that finds what breaks it."""

from dataclasses import dataclass
from enum import Enum


class Walk(Enum):
    """By whose ids a promise can be checked a part at a time, each part on its own."""

    CONCERTS = "concerts"
    BOOKINGS = "bookings"
    BUYERS = "buyers"
    WHOLE = "whole"  # in one go: an index leads to what is overdue, which is next to nothing


# All ids lie from the first of these up to before the second, in byte order. Parts divide all there might be, not
# what there is: rows that name a concert or a booking that does not exist are in some part of a walk, too.
FIRST = ""
BEYOND = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold, and the query for what breaks it.

    The query answers one text per row, about the ids from `:first` up to before `:beyond`; `late_s` gives it
    `:late`, the moment so many seconds ago. What breaks a concert's stock names the concert in a second column: its
    sales are stopped.
    """

    name: str
    title: str
    walk: Walk
    query: str
    late_s: float | None = None


def part(column: str) -> str:
    """The rows of the part that is checked, by the id in `column`."""
    return f"{column} >= :first AND {column} < :beyond"
