"""People: sign up, log in, log out, and who a token belongs to."""

from dataclasses import dataclass
from datetime import timedelta

from domain.base import SessionId, UserId
from domain.ports import Deps, WriteUnit
from domain.user import (
    PASSWORD_MAX_LENGTH,
    EmailTaken,
    Session,
    User,
    UserRole,
    Viewer,
    WrongCredentials,
    check_sign_up,
    normal_email,
)


@dataclass(frozen=True, slots=True)
class SignUp:
    """A new account."""

    email: str
    password: str
    name: str


@dataclass(frozen=True, slots=True)
class LogIn:
    """A new session of an account."""

    email: str
    password: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is signed in, and the token that says so; it is shown this once and stored only as a hash."""

    user: User
    session: Session
    token: str


async def sign_up(deps: Deps, command: SignUp, *, client: str) -> SignedIn:
    """The account exists and is logged in. Raises: InvalidInput, EmailTaken, TooManyAttempts, Overloaded."""
    check_sign_up(command.email, password=command.password, name=command.name)
    await deps.limiter.admit("sign_up", who=client)
    password_hash = await deps.passwords.hash(command.password)
    async with deps.write("sign_up") as unit:
        user = await add_user(deps, unit, command, role=UserRole.CUSTOMER, password_hash=password_hash)
        signed_in = await _start_session(deps, unit, user)
        await unit.commit()
    return signed_in


async def create_admin(deps: Deps, command: SignUp) -> User:
    """An account that may organise concerts exists. Raises: InvalidInput, EmailTaken."""
    check_sign_up(command.email, password=command.password, name=command.name)
    password_hash = await deps.passwords.hash(command.password)
    async with deps.write("create_admin") as unit:
        admin = await add_user(deps, unit, command, role=UserRole.ADMIN, password_hash=password_hash)
        await unit.commit()
    return admin


async def add_user(
    deps: Deps, unit: WriteUnit, command: SignUp, *, role: UserRole, password_hash: str
) -> User:
    """Raises: EmailTaken."""
    email = normal_email(command.email)
    if await unit.users.credentials(email) is not None:
        raise EmailTaken
    user = User(
        id=UserId(deps.randomness.new_id()),
        email=email,
        name=command.name.strip(),
        role=role,
        created_at=await unit.now(),
    )
    await unit.users.add(user, password_hash=password_hash)
    return user


async def log_in(deps: Deps, command: LogIn) -> SignedIn:
    """A new session. Raises: WrongCredentials, TooManyAttempts after many wrong ones for one address, Overloaded."""
    email = normal_email(command.email)
    async with deps.limiter.guess("log_in", who=email):
        user = await _who_is_right(deps, email, command.password)
    async with deps.write("log_in") as unit:
        signed_in = await _start_session(deps, unit, user)
        await unit.commit()
    return signed_in


async def _who_is_right(deps: Deps, email: str, password: str) -> User:
    """Raises: WrongCredentials, Overloaded."""
    async with deps.write("log_in.find") as unit:
        known = None if "\x00" in email else await unit.users.credentials(email)
    stored = None if known is None else known[1]
    # A password that can't be anyone's costs no more than one that can.
    is_right = await deps.passwords.matches(password[:PASSWORD_MAX_LENGTH], stored=stored)
    if known is None or not is_right or len(password) > PASSWORD_MAX_LENGTH:
        raise WrongCredentials
    return known[0]


async def _start_session(deps: Deps, unit: WriteUnit, user: User) -> SignedIn:
    now = await unit.now()
    token = deps.randomness.new_token()
    session = Session(
        id=SessionId(deps.randomness.new_id()),
        user_id=user.id,
        created_at=now,
        expires_at=now + timedelta(seconds=deps.rules.session_s),
    )
    await unit.users.add_session(session, token_hash=deps.randomness.token_hash(token))
    return SignedIn(user, session, token)


async def log_out(deps: Deps, viewer: Viewer | None) -> None:
    """The viewer's session has ended, here and on every open socket. Nobody signed in is fine too."""
    if viewer is None:
        return
    async with deps.write("log_out") as unit:
        await unit.users.end_session(viewer.session.id)
        await unit.commit()
    deps.sign_ins.forget(viewer.session.id)


async def authenticate(deps: Deps, token: str) -> Viewer | None:
    """Who holds the token, None where it is unknown or ended; for a moment longer where another process ended it."""
    return await deps.sign_ins.viewer(deps.randomness.token_hash(token))
