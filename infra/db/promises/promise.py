"""What a promise is: something that is always true, and the one statement that finds what breaks it."""

from dataclasses import dataclass
from enum import Enum


class Walk(Enum):
    """By whose ids a promise can be checked a part at a time, each part on its own."""

    CONCERTS = "concerts"
    BOOKINGS = "bookings"
    BUYERS = "buyers"
    WHOLE = "whole"  # in one go: an index leads to what is overdue, which is next to nothing


# The whole key space lies after the first and up to the second, in the byte order of ids: rows that name a concert
# or a booking that is not there are in some part of a walk, too.
FIRST = ""
LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold, and the query for what breaks it.

    The query answers one text per row, at most `:shown` rows, about the ids after `:after` and up to `:until`;
    `late_s` gives it `:late`, the moment so many seconds ago. What breaks a concert's stock names the concert in a
    second column: its sales are stopped.
    """

    name: str
    title: str
    walk: Walk
    query: str
    late_s: float | None = None


def part(column: str) -> str:
    """The rows of the part that is checked, by the id in `column`."""
    return f"{column} > :after AND {column} <= :until"
