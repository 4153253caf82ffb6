"""Whether PostgreSQL keeps what it has answered."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from infra.db.engine import DatabaseLimits
from infra.db.errors import port_errors

# Off, each of them loses commits that were answered, or whole tables, when the machine or the server dies
# (PostgreSQL documentation, section 19.5.1).
_PROMISES = "SELECT name FROM pg_settings WHERE setting = 'off' AND name IN ({}) ORDER BY name".format(
    ", ".join(f"'{name}'" for name in ("fsync", "full_page_writes", "synchronous_commit"))
)


async def unsafe_settings(url: str) -> list[str]:
    """What is switched off at the PostgreSQL there, as whoever connects finds it. Raises: DatabaseAway.

    Our own sessions ask for synchronous commits whatever they find, so this is a connection without any wishes.
    """
    limits = DatabaseLimits()
    wishes = {"timeout": limits.connect_s, "command_timeout": limits.statement_s}
    engine = create_async_engine(url, poolclass=NullPool, connect_args=wishes)
    with port_errors():
        async with engine.connect() as connection:
            return [row.name for row in await connection.execute(text(_PROMISES))]
