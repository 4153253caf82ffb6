"""Kinds of columns, and conditions that partial indexes are found by."""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy import Column, ColumnElement, DateTime, Dialect, Text, TypeDecorator, literal_column, text
from sqlalchemy.types import TypeEngine

# Byte order, the same on both databases and in Python; also what makes comparing ids cheap.
ordered = Text().with_variant(Text(collation="C"), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times in, aware UTC out. SQLite keeps text of fixed width, so that it sorts and compares."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """`timestamptz` on PostgreSQL, 32 characters of text on SQLite."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Raises: AssertionError for a naive time."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a naive time reached the database"
        if dialect.name == "sqlite":
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """The same instant in UTC."""
        if value is None:
            return None
        # SQLite aggregates and PostgreSQL's sessions in other zones are met here as well.
        moment: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
        # asyncpg keeps the first and the last moment there is as the infinities, and reads these without a zone.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def among(column: Column[Any], values: Iterable[Enum]) -> ColumnElement[bool]:
    """`column IN (...)` with the names in the statement's own text: bound ones match no partial index."""
    return column.in_([literal_column(name) for name in _quoted(values)])


def _quoted(values: Iterable[Enum]) -> list[str]:
    # Sorted, because SQLite takes a partial index only for a list in the same order.
    return sorted(f"'{value.value}'" for value in values)


def status_in(column: str, values: Iterable[Enum]) -> str:
    """`column IN (...)` as text."""
    return f"{column} IN ({', '.join(_quoted(values))})"


def where(condition: str) -> dict[str, Any]:
    """What makes an index a partial one, on both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}
