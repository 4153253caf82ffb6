"""Asking the database what breaks a promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, text

from domain.base import ConcertId
from infra.db.promises.promise import BEYOND, FIRST, Promise, Walk
from infra.db.statements import Statements
from infra.db.tables import UtcDateTime

# Enough to see what is wrong; more of the same helps nobody.
SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that breaks a promise; `concert_id` where it is a concert's stock."""

    text: str
    concert_id: ConcertId | None


async def findings(
    statements: Statements, promise: Promise, *, first: str = FIRST, beyond: str = BEYOND
) -> Sequence[Finding]:
    """What breaks it among the ids from `first` up to before `beyond`, at most SHOWN_MAX."""
    # Materialized, because the limit would make PostgreSQL look for a plan that finds the first ones early, such
    # as walking an index row by row; there are none.
    query = text(f"WITH broken AS MATERIALIZED ({promise.query}) SELECT * FROM broken LIMIT :shown")
    query = query.bindparams(shown=SHOWN_MAX)
    if promise.walk is not Walk.WHOLE:
        query = query.bindparams(first=first, beyond=beyond)
    if promise.late_s is not None:
        late = await statements.now() - timedelta(seconds=promise.late_s)
        query = query.bindparams(bindparam("late", late, UtcDateTime))
    rows = await statements.rows(query)
    return [Finding(row[0], ConcertId(row[1]) if len(row) > 1 else None) for row in rows]
