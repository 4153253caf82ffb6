"""All promises asked of a live database, for `frontrow verify`."""

from collections.abc import AsyncIterator, Callable

from infra.db.promises import PROMISES, findings
from infra.db.unit import Database


async def broken(database: Database, progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[str]:
    """Every broken promise, a limited number of each; `progress` hears what is being checked.

    Raises: DatabaseAway, Overloaded.
    """
    for promise in PROMISES:
        progress(f"Checking: {promise.title}")
        async with database.patient_readers.transaction() as statements:
            found = await findings(statements, promise)
        for finding in found:
            yield f"{promise.title}: {finding.text}"
