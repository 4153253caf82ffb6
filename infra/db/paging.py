"""Keyset pages: rows after or before a key, so that a page stays where it is while rows come and go."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Column, Row, Select, literal, tuple_

from domain.base import BadUserInput, Page, PageKey, PageQuery
from infra.db.statements import Statements
from infra.db.tables import UtcDateTime

T = TypeVar("T")


async def page_rows(
    statements: Statements,
    statement: Select[*tuple[Any, ...]],
    query: PageQuery,
    *,
    key: tuple[Column[Any], Column[Any]],
    is_descending: bool,
) -> Sequence[Row[*tuple[Any, ...]]]:
    """The page's rows in the order they were read in, and one more where there are more.

    Both columns of the key run in one direction, so that its index is read forwards or backwards.
    Raises: BadUserInput for a key that none of these rows can have.
    """
    order = tuple_(*key)
    if query.after is not None:
        after = _literal_key(query.after, key)
        statement = statement.where(order < after if is_descending else order > after)
    if query.before is not None:
        before = _literal_key(query.before, key)
        statement = statement.where(order > before if is_descending else order < before)
    is_backwards = is_descending != query.is_from_end
    ordered = statement.order_by(*(column.desc() if is_backwards else column for column in key))
    return await statements.rows(ordered.limit(query.limit + 1))


def page_of(rows: Sequence[T], query: PageQuery) -> Page[T]:
    """The page that was asked for, from `page_rows`.

    Where the page starts or ends at a given key there is a row beyond it, unless it vanished meanwhile.
    """
    has_more = len(rows) > query.limit
    kept = tuple(rows[: query.limit])
    if query.is_from_end:
        return Page(kept[::-1], has_next=query.before is not None, has_previous=has_more)
    return Page(kept, has_next=has_more or query.before is not None, has_previous=query.after is not None)


def _literal_key(key: PageKey, columns: tuple[Column[Any], Column[Any]]) -> Any:
    value: str | datetime = key[0]
    if isinstance(columns[0].type, UtcDateTime):
        try:
            value = datetime.fromisoformat(key[0])
        except ValueError as error:
            raise BadUserInput("The cursor belongs to another list.") from error
        if value.tzinfo is None:
            raise BadUserInput("The cursor belongs to another list.")
    return tuple_(literal(value, columns[0].type), literal(key[1], columns[1].type))
