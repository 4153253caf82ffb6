"""Keyset pages: which rows a client asks for, and the opaque cursors between them."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import strawberry

from domain.base import BadUserInput, Page, PageKey, PageQuery
from schema.common import RAW_ID

PAGE_DEFAULT = 20
PAGE_MAX = 100
_CURSOR_MAX_LENGTH = 4_000  # a title of 200 characters, escaped and encoded, stays far below
T = TypeVar("T")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@strawberry.type(description="Where a page stands in its list.")
class PageInfo:
    """Relay's page info."""

    has_next_page: bool = strawberry.field(
        description="Whether there are rows after the last one of this page."
    )
    has_previous_page: bool = strawberry.field(
        description="Whether there are rows before the first one of this page."
    )
    start_cursor: str | None = strawberry.field(description="The first row's cursor, null on an empty page.")
    end_cursor: str | None = strawberry.field(description="The last row's cursor, null on an empty page.")

    @classmethod
    def of(cls, page: Page[T], cursors: Sequence[str]) -> "PageInfo":
        """Of a page whose rows have these cursors."""
        return cls(
            has_next_page=page.has_next,
            has_previous_page=page.has_previous,
            start_cursor=cursors[0] if cursors else None,
            end_cursor=cursors[-1] if cursors else None,
        )


@dataclass(frozen=True, slots=True)
class CursorScope:
    """The ordered, filtered list that a cursor belongs to. `is_by_time`: its sort key is a time."""

    fingerprint: str
    is_by_time: bool

    @classmethod
    def of(cls, *parts: str | bool | datetime | None, is_by_time: bool) -> "CursorScope":
        """The list that these facts (its name, order and filter) describe."""
        digest = hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()
        return cls(digest[:16], is_by_time)

    def encode(self, key: PageKey) -> str:
        """The cursor of the row with this key."""
        text = json.dumps([self.fingerprint, *key], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()

    def decode(self, cursor: str) -> PageKey:
        """The key of the row. Raises: BadUserInput for what is not a cursor of this very list."""
        try:
            if len(cursor) > _CURSOR_MAX_LENGTH:
                raise ValueError("longer than any cursor")
            parts = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        except (ValueError, RecursionError) as error:
            raise BadUserInput("This is not a cursor.") from error
        match parts:
            case [str(fingerprint), str(sort_key), str(row_id)]:
                key = (sort_key, row_id)
            case _:
                raise BadUserInput("This is not a cursor.")
        if fingerprint != self.fingerprint:
            raise BadUserInput("This cursor belongs to another order or filter.")
        # A forged key must not get as far as the database, which would choke on it.
        is_sound = _UNSTORABLE.search(sort_key) is None and (_is_time(sort_key) or not self.is_by_time)
        if not is_sound or RAW_ID.fullmatch(row_id) is None:
            raise BadUserInput("This is not a cursor.")
        return key


def page_query(
    scope: CursorScope,
    *,
    first: int | None,
    after: str | None,
    last: int | None = None,
    before: str | None = None,
) -> PageQuery:
    """Which rows these arguments ask for; absent ones are None. Raises: BadUserInput for nonsense."""
    if first is not None and last is not None:
        raise BadUserInput("Give first or last, not both.")
    is_from_end = last is not None or (first is None and before is not None and after is None)
    limit = first if first is not None else last
    if limit is None:
        limit = PAGE_DEFAULT
    if not 1 <= limit <= PAGE_MAX:
        name = "last" if last is not None else "first"
        raise BadUserInput(f"{name} must be from 1 to {PAGE_MAX}.")
    return PageQuery(
        limit=limit,
        after=None if after is None else scope.decode(after),
        before=None if before is None else scope.decode(before),
        is_from_end=is_from_end,
    )


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
        return moment.tzinfo is not None and moment.astimezone(UTC).isoformat(timespec="microseconds") == text
    except (ValueError, OverflowError):
        return False
