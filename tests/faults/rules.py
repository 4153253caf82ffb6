"""What the checker checks, one name per promise, and what it says of a broken one."""

from dataclasses import dataclass
from enum import Enum


class Rule(Enum):
    """A promise; the value says it in words."""

    SOMETHING_HAPPENED = "unknown: nothing happened that could be judged"
    ACKNOWLEDGED = "what was acknowledged is still there, as it was told"
    REFUSED = "what was refused changed nothing"
    WHOLE = "what nobody answered is whole or absent"
    REASON = "a refusal had its reason"
    KEYS = "one key is one booking"
    ASKED = "every booking and every change of one was asked for"
    NO_INTERNAL = "nobody is told INTERNAL"
    TRANSITION = "bookings move as the table allows"
    STOCK = "no seat is given twice"
    LIMIT = "nobody has more tickets than one person may"
    ORDER = "the changes of a concert have one order, without gaps"
    REAL_TIME = "what was answered before something was asked comes before it"
    CONSERVATION = "every look at the stock shows one of its states, and none goes back"
    COUNTERS = "the counters equal the sums over bookings"
    CAPTURED_ONCE = "a booking is paid for once"
    REFUNDED_ONCE = "money goes back once, all of it"
    MONEY = "APPROVED if and only if captured and not refunded"
    SETTLED = "once it is quiet nothing is left to settle"
    STREAM_SILENT = "a subscriber hears a first message"
    STREAM_REVERSAL = "a stream never goes back"
    STREAM_STALE = "a stream ends at the newest state"
    STREAM_PAYLOAD = "a message is a state that there was"
    STREAM_BACKLOG = "who reads slowly finds the newest state, not a queue"
    READ_MODEL = "the read model equals the database"


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise and the facts that break it."""

    rule: Rule
    text: str

    def __str__(self) -> str:
        return f"{self.rule.name} ({self.rule.value}): {self.text}"
