"""What is always true (DESIGN.md, 1 to 4, and what follows from it), each promise one statement, hence one snapshot.

Bookings and payments that go on meanwhile break nothing: every promise holds between any two transactions.
"""

from infra.db.promises.asking import Finding, findings
from infra.db.promises.history import HISTORY
from infra.db.promises.money import MONEY
from infra.db.promises.promise import BEYOND, FIRST, Promise, Walk
from infra.db.promises.stock import COUNTERS, STOCK
from infra.db.promises.timers import TIMERS

PROMISES = (*STOCK, *MONEY, *HISTORY, *TIMERS)

__all__ = ["BEYOND", "COUNTERS", "FIRST", "PROMISES", "Finding", "Promise", "Walk", "findings"]
