"""People: who may sign in, what they may do, and for how long a session lasts."""

import math
import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from domain.base import Checker, DomainError, SessionId, UserId

PASSWORD_MIN_LENGTH = 8  # NIST SP 800-63B, section 3.1.1.2: at least eight characters
PASSWORD_MAX_LENGTH = 128  # hashing time grows with the length
EMAIL_MAX_LENGTH = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets
NAME_MAX_LENGTH = 100

# One @, something on both sides, a dot in the domain, nothing blank: only a message sent there proves an address.
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")


class UserRole(Enum):
    """What a person may do: customers buy, admins also organise."""

    CUSTOMER = "CUSTOMER"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account. `email` is lower-case and unique."""

    id: UserId
    email: str
    name: str
    role: UserRole
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in. It ends at `expires_at` or when the person logs out."""

    id: SessionId
    user_id: UserId
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who is asking: a signed-in person and the session that says so.

    `session_left_s`: how long it still lasted when it was looked up, on the database's clock. `expires_at` minus the
    time of this machine would be another number.
    """

    user: User
    session: Session
    session_left_s: float = math.inf

    @property
    def is_admin(self) -> bool:
        """Whether the viewer may organise concerts and see everyone's bookings."""
        return self.user.role is UserRole.ADMIN


@dataclass(eq=False)
class EmailTaken(DomainError):
    """Somebody has an account with this address."""

    code = "EMAIL_TAKEN"

    @property
    def message(self) -> str:
        return "There is already an account with this e-mail address. Log in instead."


@dataclass(eq=False)
class WrongCredentials(DomainError):
    """No account has this address and this password; which of the two is wrong is not told."""

    code = "WRONG_CREDENTIALS"

    @property
    def message(self) -> str:
        return "The e-mail address or the password is wrong."


@dataclass(eq=False)
class Unauthenticated(DomainError):
    """Nobody is signed in, or the token is unknown or ended."""

    reason: str = "Sign in first."
    code = "UNAUTHENTICATED"

    @property
    def message(self) -> str:
        return self.reason


@dataclass(eq=False)
class Forbidden(DomainError):
    """The viewer is signed in and may not do this."""

    code = "FORBIDDEN"

    @property
    def message(self) -> str:
        return "Only admins may do this."


def normal_email(email: str) -> str:
    """The form in which an address is stored and compared."""
    return email.strip().lower()


def check_sign_up(email: str, *, password: str, name: str) -> None:
    """Raises: InvalidInput naming every wrong field."""
    check = Checker()
    address = normal_email(email)
    check.text(address, ("email",), max_length=EMAIL_MAX_LENGTH)
    check.require(_EMAIL.fullmatch(address) is not None, ("email",), "must be an e-mail address")
    check.require(
        PASSWORD_MIN_LENGTH <= len(password) <= PASSWORD_MAX_LENGTH,
        ("password",),
        f"must have from {PASSWORD_MIN_LENGTH} to {PASSWORD_MAX_LENGTH} characters",
    )
    check.require(
        "\x00" not in password and password.isprintable(),
        ("password",),
        "must not contain control characters",
    )
    check.text(name, ("name",), max_length=NAME_MAX_LENGTH)
    check.done()
