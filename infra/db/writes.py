"""Writes that nobody waits for at once: on PostgreSQL several of them are one statement.

A round trip costs this process half a millisecond, and rows that are sent one by one are executed one by one. So a
`Write` takes all its rows as one JSON text, which makes it one prepared statement for any number of them, and
`together` makes one statement of several writes, each in a WITH of its own. An array for each column instead of the
JSON cost this process a fifth more: asyncpg looks at each element. SQLite has no round trips: there the writes run one
after the other, row by row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar

import orjson
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Interval,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy import update as updating
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from infra.db.tables import UtcDateTime

Insert: TypeAlias = "postgresql.Insert | sqlite.Insert"
# Values by the names of columns and of bound parameters.
Values: TypeAlias = Mapping[str, object]
Kinds: TypeAlias = Mapping[str, TypeEngine[Any]]


def plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The kind of values that are sent: a collation is for columns."""
    return Text() if isinstance(kind, Text) else kind


class Given:
    """What a write may be made of: the values of the row at hand, by name, and the clock."""

    def __init__(self, columns: Mapping[str, ColumnElement[Any]], *, is_postgres: bool) -> None:
        self._columns = columns
        self._is_postgres = is_postgres

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        return self._columns[name]

    def clock(self, *, plus_s: float = 0.0) -> ColumnElement[datetime]:
        """As `clock` says."""
        return clock(is_postgres=self._is_postgres, plus_s=plus_s)


@dataclass(frozen=True, eq=False, slots=True)
class Write:
    """An INSERT or UPDATE of any number of rows; `returning` is what it answers with."""

    table: Table
    names: frozenset[str]
    on_postgres: UpdateBase
    on_sqlite: UpdateBase
    returning: tuple[Column[Any], ...] = ()
    # Rows for the same one may come in two parts.
    only_adds: bool = False

    def sent(self, rows: Sequence[Values]) -> dict[str, object]:
        """The parameter of `on_postgres`."""
        return {_rows(self.table): orjson.dumps(rows, _moment, orjson.OPT_PASSTHROUGH_DATETIME).decode()}

    def each(self, rows: Sequence[Values]) -> list[dict[str, object]]:
        """The parameters of `on_sqlite`."""
        return [{_of(name): row[name] for name in self.names} for row in rows]


class Stored(Protocol):
    """What is kept in one row, under its id."""

    @property
    def id(self) -> str:
        """Of the row."""
        ...


S = TypeVar("S", bound=Stored)


def net(changes: Sequence[tuple[S, S]]) -> list[tuple[S, S]]:
    """The same changes, one for each row: from how it was first to what it becomes in the end.

    Raises: AssertionError where one does not begin where the one before it ended.
    """
    first: dict[str, S] = {}
    last: dict[str, S] = {}
    for old, new in changes:
        assert last.get(old.id, old) == old, "a change begins where the last one ended"
        first.setdefault(old.id, old)
        last[old.id] = new
    return [(old, last[row_id]) for row_id, old in first.items()]


def clock(*, is_postgres: bool, plus_s: float = 0.0) -> ColumnElement[datetime]:
    """The database's clock when the statement begins; an index can be searched with it.

    SQLite runs on this machine, and has this clock.
    """
    later = timedelta(seconds=plus_s)
    if not is_postgres:
        return bindparam(None, callable_=lambda: datetime.now(UTC) + later, type_=UtcDateTime)
    moment: ColumnElement[datetime] = func.statement_timestamp(type_=UtcDateTime)
    return moment + literal(later, Interval) if plus_s else moment


def insert(
    table: Table,
    *names: str,
    computed: Callable[[Given], Mapping[str, ColumnElement[Any]]] = lambda _: {},
    conflict: Callable[[Insert, Given], Insert] | None = None,
    returning: Sequence[Column[Any]] = (),
) -> Write:
    """Rows with values for these columns, and what is `computed` for the others."""
    kinds = {name: table.c[name].type for name in names}
    sent, parameters = _sent(table, kinds), _parameters(kinds)
    values = computed(sent)
    selected = select(*(sent[name] for name in names), *values.values())
    on_postgres = postgresql.insert(table).from_select([*names, *values], selected)
    on_sqlite = sqlite.insert(table).values(
        {name: parameters[name] for name in names} | {**computed(parameters)}
    )
    if conflict is not None:
        return Write(
            table,
            frozenset(names),
            conflict(on_postgres, sent),
            conflict(on_sqlite, parameters),
            tuple(returning),
        )
    return Write(table, frozenset(names), on_postgres, on_sqlite, tuple(returning), only_adds=not returning)


def update(table: Table, *names: str, key: Column[Any], **was: Column[Any]) -> Write:
    """New values for these columns in the row whose `key` is `was_key`, where what it `was` is as it is sent."""
    where = {"was_key": key, **was}
    kinds = {name: table.c[name].type for name in names} | {name: c.type for name, c in where.items()}
    sent, parameters = _sent(table, kinds), _parameters(kinds)
    on_postgres = updating(table).values({name: sent[name] for name in names})
    on_sqlite = updating(table).values({name: parameters[name] for name in names})
    # A join alone may be planned as one with the whole table, while that is small, and so it stays when it is not.
    keys = select(_sent(table, {"was_key": key.type})["was_key"]).scalar_subquery()
    return Write(
        table,
        frozenset(kinds),
        on_postgres.where(key == func.any(func.array(keys)), *(c == sent[name] for name, c in where.items())),
        on_sqlite.where(*(c == parameters[name] for name, c in where.items())),
    )


@lru_cache(maxsize=256)
def together(writes: tuple[Write, ...]) -> Select[*tuple[Any, ...]]:
    """One statement for PostgreSQL that does them all, each of another table.

    A row for each that the last one returns, or one; it begins with the number of rows that each has written, or is
    followed by nothing.
    """
    one: ColumnElement[int] = literal_column("1").label("one")
    parts = [
        write.on_postgres.returning(*(write.returning or (one,))).cte(f"{write.table.name}_written")
        for write in writes
    ]
    counts = [select(func.count()).select_from(part).scalar_subquery() for part in parts]
    if not writes[-1].returning:
        return select(*counts)
    always = select(one).subquery("always")
    return select(*counts, *parts[-1].c).select_from(always.outerjoin(parts[-1], true()))


def _sent(table: Table, kinds: Kinds) -> Given:
    """The columns of a table that is made of the text that is sent."""
    columns = [column(name, plain(kind)) for name, kind in kinds.items()]
    text = cast(bindparam(_rows(table), type_=Text), JSON)
    rows = func.json_to_recordset(text).table_valued(*columns).render_derived(with_types=True)
    return Given({name: rows.c[name] for name in kinds}, is_postgres=True)


def _parameters(kinds: Kinds) -> Given:
    return Given({name: bindparam(_of(name), type_=kind) for name, kind in kinds.items()}, is_postgres=False)


def _rows(table: Table) -> str:
    return f"{table.name}_rows"


def _moment(value: object) -> str:
    assert isinstance(value, datetime), "everything else is JSON by itself"
    assert value.tzinfo is not None, "a naive time reached the database"
    return value.isoformat()


def _of(name: str) -> str:
    # SQLAlchemy keeps the names of columns for itself.
    return f"of_{name}"
