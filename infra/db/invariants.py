"""The promises asked of a live database: all of them at once, or one part of what there is after another."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, text

from domain.base import ConcertId
from infra.db.engine import Statements
from infra.db.promises import FIRST, LAST, PROMISES, Promise, Walk
from infra.db.tables import UtcDateTime
from infra.db.unit import Database

# Enough to see what is wrong; more of the same helps nobody.
SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that breaks a promise; `concert_id` where it is a concert's stock."""

    text: str
    concert_id: ConcertId | None


async def broken(database: Database, progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[str]:
    """Every broken promise, at most SHOWN_MAX of a kind; `progress` hears what is being checked.

    Raises: DatabaseAway, Overloaded.
    """
    for promise in PROMISES:
        progress(f"Checking: {promise.title}")
        async with database.patient_readers.transaction() as statements:
            found = await findings(statements, promise)
        for finding in found:
            yield f"{promise.title}: {finding.text}"


async def findings(
    statements: Statements, promise: Promise, *, after: str = FIRST, until: str = LAST
) -> Sequence[Finding]:
    """What breaks it among the ids after `after` and up to `until`, at most SHOWN_MAX."""
    # Materialized, because the limit would make PostgreSQL look for a plan that finds the first ones early, such
    # as walking an index row by row; there are none.
    query = text(f"WITH broken AS MATERIALIZED ({promise.query}) SELECT * FROM broken LIMIT :shown")
    query = query.bindparams(shown=SHOWN_MAX)
    if promise.walk is not Walk.WHOLE:
        query = query.bindparams(after=after, until=until)
    if promise.late_s is not None:
        late = await statements.now() - timedelta(seconds=promise.late_s)
        query = query.bindparams(bindparam("late", late, UtcDateTime))
    rows = await statements.rows(query)
    return [Finding(row[0], ConcertId(row[1]) if len(row) > 1 else None) for row in rows]
