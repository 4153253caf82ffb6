"""Signing up, in and out."""

from domain.use_cases import user as use_cases
from resolvers.context import Info
from resolvers.outcomes import answers_refusals
from schema.results import LogInResult, LogOutSuccess, SignInSuccess, SignUpResult
from schema.user import LogInInput, Session, SignUpInput, User


def viewer(info: Info) -> User | None:
    """Who is signed in, None where nobody is."""
    seen_by = info.context.viewer
    return None if seen_by is None else User.of(seen_by.user, seen_by=seen_by)


@answers_refusals
async def sign_up(info: Info, input: SignUpInput) -> SignUpResult:
    """The account exists and is signed in."""
    command = use_cases.SignUp(email=input.email, password=input.password, name=input.name)
    return _success(await use_cases.sign_up(info.context.deps, command, client=info.context.client))


@answers_refusals
async def log_in(info: Info, input: LogInInput) -> LogInResult:
    """A new session."""
    command = use_cases.LogIn(email=input.email, password=input.password)
    return _success(await use_cases.log_in(info.context.deps, command))


async def log_out(info: Info) -> LogOutSuccess:
    """The session has ended. Nobody signed in is fine too."""
    await use_cases.log_out(info.context.deps, info.context.viewer)
    return LogOutSuccess(ok=True)


def _success(signed_in: use_cases.SignedIn) -> SignInSuccess:
    session = Session.of(signed_in.session, signed_in.user)
    return SignInSuccess(session=session, access_token=signed_in.token)
