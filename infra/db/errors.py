"""What the database's errors mean to the rest of the house."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import orjson
from sqlalchemy import exc

from domain.base import BadUserInput, DatabaseAway, Overloaded, Unavailable


class LockTimeout(DatabaseAway):
    """A lock, or the whole statement, took too long."""


class TableMissing(Exception):
    """A table is not there, or not ours to read."""


# SQLSTATE classes (PostgreSQL documentation, appendix A): connection, rollback, resources, operator, system.
_AWAY_CLASSES = frozenset({"08", "40", "53", "57", "58"})
# 25006: a primary that became a standby. 25P03: it stood still for too long inside a transaction.
_AWAY_STATES = frozenset({"25006", "25P03"})
_TIMEOUT_STATES = frozenset({"55P03", "57014"})
_MISSING_STATES = frozenset({"42P01", "42501"})  # undefined_table, insufficient_privilege
_BAD_TEXT_STATE = "22021"  # character_not_in_repertoire: NUL
_UNSTORABLE = "A text contains NUL or half a surrogate pair."
_SQLITE_AWAY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN")


@contextmanager
def port_errors() -> Iterator[None]:
    """Turn what the library raises into what the ports promise; a programmer's mistake stays what it is."""
    try:
        yield
    except exc.DBAPIError as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error
    except exc.TimeoutError as error:
        raise Overloaded from error
    except OSError as error:
        raise DatabaseAway from error
    except (UnicodeEncodeError, orjson.JSONEncodeError) as error:
        raise BadUserInput(_UNSTORABLE) from error


@contextmanager
def catalogue_errors() -> Iterator[None]:
    """Turn a table that is locked or gone into Unavailable."""
    try:
        yield
    except (LockTimeout, TableMissing) as error:
        raise Unavailable("concert") from error


def _meaning(error: exc.DBAPIError) -> Exception | None:
    if isinstance(error.orig, sqlite3.Error):
        name = getattr(error.orig, "sqlite_errorname", "")
        if name.startswith(_SQLITE_AWAY) or error.connection_invalidated:
            return DatabaseAway()
        return TableMissing(str(error.orig)) if str(error.orig).startswith("no such table") else None
    state = getattr(error.orig, "sqlstate", None) or ""
    if state == _BAD_TEXT_STATE or isinstance(getattr(error.orig, "__cause__", None), asyncpg.DataError):
        return BadUserInput(_UNSTORABLE)
    if state in _TIMEOUT_STATES:
        return LockTimeout()
    if error.connection_invalidated or state[:2] in _AWAY_CLASSES or state in _AWAY_STATES:
        return DatabaseAway()
    return TableMissing(str(error.orig)) if state in _MISSING_STATES else None
