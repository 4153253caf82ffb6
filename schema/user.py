"""People and their sessions, as clients see them."""

from datetime import datetime

import strawberry

from domain.user import NAME_MAX_LENGTH, PASSWORD_MAX_LENGTH, PASSWORD_MIN_LENGTH, UserRole, Viewer
from domain.user import Session as SessionNoun
from domain.user import User as UserNoun
from schema.common import Kind, Node, describe_enum, encode_id

describe_enum(
    UserRole,
    "What a person may do.",
    {
        "CUSTOMER": "Books, pays, cancels.",
        "ADMIN": "Also registers, changes and cancels concerts, and sees everyone's bookings.",
    },
)


@strawberry.type(description="A person with an account. `node` shows it to the person and to admins.")
class User(Node):
    """One account."""

    email: str | None = strawberry.field(
        description="Lower-case. Null for everyone but the person and admins.",
    )
    name: str = strawberry.field(description="How the person wants to be called.")
    role: UserRole = strawberry.field(description="What the person may do.")
    created_at: datetime = strawberry.field(description="When the person signed up.")

    @classmethod
    def of(cls, noun: UserNoun, *, seen_by: Viewer | None) -> "User":
        """As this viewer may see it."""
        is_shown = seen_by is not None and (seen_by.is_admin or seen_by.user.id == noun.id)
        return cls(
            id=encode_id(Kind.USER, noun.id),
            email=noun.email if is_shown else None,
            name=noun.name,
            role=noun.role,
            created_at=noun.created_at,
        )


@strawberry.type(description="One log-in. It ends at `expiresAt` or by `logOut`.")
class Session:
    """A session, without its token."""

    id: strawberry.ID = strawberry.field(description="Opaque; `node` does not find it.")
    user: User = strawberry.field(description="Who logged in.")
    created_at: datetime = strawberry.field(description="When the person logged in.")
    expires_at: datetime = strawberry.field(description="When the access token stops working.")

    @classmethod
    def of(cls, noun: SessionNoun, user: UserNoun) -> "Session":
        """As the person who logged in sees it."""
        return cls(
            id=encode_id(Kind.SESSION, noun.id),
            user=User.of(user, seen_by=Viewer(user, noun)),
            created_at=noun.created_at,
            expires_at=noun.expires_at,
        )


@strawberry.input(description="A new account.")
class SignUpInput:
    """What `signUp` takes."""

    email: str = strawberry.field(
        description="An e-mail address nobody has signed up with. Upper and lower case are the same."
    )
    password: str = strawberry.field(
        description=f"From {PASSWORD_MIN_LENGTH} to {PASSWORD_MAX_LENGTH} characters, no control characters."
    )
    name: str = strawberry.field(description=f"From 1 to {NAME_MAX_LENGTH} characters.")


@strawberry.input(description="An e-mail address and its password.")
class LogInInput:
    """What `logIn` takes."""

    email: str = strawberry.field(description="Upper and lower case are the same.")
    password: str = strawberry.field(description="As it was given to `signUp`.")
