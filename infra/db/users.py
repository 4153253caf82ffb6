"""Accounts and sessions."""

from typing import Any

from sqlalchemy import Row, delete, select

from domain.base import SessionId, UserId
from domain.user import EmailTaken, Session, User, UserRole, Viewer
from infra.db.statements import Statements
from infra.db.tables import sessions, users


class SqlUserStore:
    """`domain.ports.UserStore` in one transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def add(self, user: User, *, password_hash: str) -> None:
        """Raises: EmailTaken, also under parallel callers: the second waits for the first to commit."""
        row = {
            "id": user.id,
            "email": user.email,
            "name": user.name,
            "role": user.role.value,
            "password_hash": password_hash,
            "created_at": user.created_at,
        }
        statement = (
            self._statements.insert(users).values(row).on_conflict_do_nothing(index_elements=["email"])
        )
        if await self._statements.change(statement) == 0:
            raise EmailTaken

    async def credentials(self, email: str) -> tuple[User, str] | None:
        """The account with this normal e-mail address and its password hash."""
        row = await self._statements.row(select(users).where(users.c.email == email))
        return None if row is None else (user_from(row), row.password_hash)

    async def add_session(self, session: Session, *, token_hash: bytes) -> None:
        """Log somebody in, and forget their sessions that have ended."""
        ended = sessions.c.expires_at <= self._statements.clock()
        await self._statements.change(delete(sessions).where(sessions.c.user_id == session.user_id, ended))
        row = {
            "id": session.id,
            "user_id": session.user_id,
            "token_hash": token_hash,
            "created_at": session.created_at,
            "expires_at": session.expires_at,
        }
        await self._statements.change(sessions.insert(), row)

    async def end_session(self, session_id: SessionId) -> None:
        """Log somebody out. May repeat."""
        await self._statements.change(delete(sessions).where(sessions.c.id == session_id))


def user_from(row: Row[*tuple[Any, ...]]) -> User:
    """The person in a row of `users`."""
    return User(
        id=UserId(row.id),
        email=row.email,
        name=row.name,
        role=UserRole(row.role),
        created_at=row.created_at,
    )


def viewer_from(row: Row[*tuple[Any, ...]]) -> Viewer:
    """Who is signed in, in a row of `users` with the session's columns and the database's clock beside them."""
    session = Session(
        id=SessionId(row.session_id),
        user_id=UserId(row.id),
        created_at=row.session_created_at,
        expires_at=row.expires_at,
    )
    return Viewer(user_from(row), session, (row.expires_at - row.now).total_seconds())
