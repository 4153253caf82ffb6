"""A small schema on the real endpoint and a real server, so that transport is tested without selling anything."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum

import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from strawberry.scalars import JSON

from domain.base import InvalidInput, NotFound, Overloaded, SessionId, UserId
from domain.user import Session, User, UserRole, Viewer
from infra.graphql_app import GraphQLApp, Limits
from infra.graphql_app.operations import Rooms
from infra.socket_protocol import SocketProtocol
from infra.telemetry import Metrics

PATIENCE_S = 10.0


class Board:
    """A count that everybody may watch: what the database knows of it, and what has been announced."""

    def __init__(self) -> None:
        self.committed = 1
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.is_away = False
        self.opened = self.open = self.shown = 0
        self._announced = 1
        self._is_over = False
        self._problem: Exception | None = None
        self._has_changed = asyncio.Event()

    def say(self, version: int) -> None:
        """It changes, and everybody who listens hears of it."""
        self.committed = version
        self.announce(version)

    def announce(self, version: int) -> None:
        """Everybody who listens hears of it."""
        self._announced = version
        self._wake()

    def end(self, problem: Exception | None = None) -> None:
        """Open streams end, with this problem if there is one."""
        self._is_over, self._problem = True, problem
        self._wake()

    async def later_than(self, version: int) -> int | None:
        """The newest that was announced; None at the end."""
        while self._announced <= version and not self._is_over:
            await self._has_changed.wait()
        if self._problem is not None:
            raise self._problem
        return None if self._is_over else self._announced

    def _wake(self) -> None:
        self._has_changed.set()
        self._has_changed = asyncio.Event()


@dataclass
class Stage:
    """What the toy's resolvers and a test tell each other."""

    viewers: dict[str, Viewer] = field(default_factory=dict)
    ended: set[SessionId] = field(default_factory=set)
    session_checks: list[set[SessionId]] = field(default_factory=list)
    is_database_away: bool = False
    contexts: list["ToyContext"] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    done: list[str] = field(default_factory=list)
    streams_open: int = 0
    ticks: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)
    board: Board = field(default_factory=Board)

    def sign_in(self, token: str, *, lasts_s: float = 3600) -> Viewer:
        """Somebody holds this token."""
        now = datetime.now(UTC)
        user = User(UserId(f"user-{token}"), f"{token}@example.org", token, UserRole.CUSTOMER, now)
        session = Session(SessionId(f"session-{token}"), user.id, now, now + timedelta(seconds=lasts_s))
        self.viewers[token] = Viewer(user, session, lasts_s)
        return self.viewers[token]

    async def authenticate(self, token: str) -> Viewer | None:
        """Who holds the token."""
        if self.is_database_away:
            raise ConnectionError("password=hunter2 host=10.0.0.1")
        viewer = self.viewers.get(token)
        return None if viewer is None or viewer.session.id in self.ended else viewer

    async def sessions_alive(self, session_ids: Collection[SessionId]) -> set[SessionId]:
        """Those that have not ended."""
        self.session_checks.append(set(session_ids))
        if self.is_database_away:
            raise ConnectionError("password=hunter2 host=10.0.0.1")
        return set(session_ids) - self.ended


@dataclass
class ToyContext:
    """What the toy's resolvers are given."""

    viewer: Viewer | None
    request_id: str
    client: str
    stage: Stage
    version: int = 0


Info = strawberry.Info[ToyContext, None]


@strawberry.enum
class Colour(Enum):
    """Two of them."""

    RED = "RED"
    BLUE = "BLUE"


@strawberry.type
class Node:
    """Something that nests without end."""

    name: str = "node"

    @strawberry.field
    def child(self) -> "Node":
        """One deeper."""
        return Node()


@strawberry.interface
class Seen:
    """What looks the same to everybody, from here."""

    by: str = "nobody"


def _viewer_name(info: Info) -> str:
    viewer = info.context.viewer
    return "nobody" if viewer is None else viewer.user.name


@strawberry.type
class SeenByViewer(Seen):
    """And does not, from here."""

    by: str = strawberry.field(resolver=_viewer_name)


@strawberry.type
class Count:
    """One state of the board."""

    version: int
    dots: str = ""
    seen: Seen = strawberry.field(default_factory=SeenByViewer)


@strawberry.type
class Query:
    """Reads."""

    @strawberry.field
    def hello(self, info: Info, name: str = "world", times: int = 1, colour: Colour = Colour.RED) -> str:
        """Says hello."""
        return " ".join(["hello", *[name] * times])

    @strawberry.field
    def who(self, info: Info) -> str | None:
        """The viewer's name."""
        viewer = info.context.viewer
        return None if viewer is None else viewer.user.name

    @strawberry.field
    def node(self) -> Node:
        """Where nesting begins."""
        return Node()

    @strawberry.field
    def missing(self) -> str | None:
        """Refuses as the domain does."""
        raise NotFound("concert")

    @strawberry.field
    def refused_input(self) -> str | None:
        """Refuses with a code that only mutations have."""
        raise InvalidInput(())

    @strawberry.field
    def broken(self) -> str | None:
        """Fails as a bug does."""
        raise RuntimeError("SELECT secret FROM users; redis://10.0.0.1")

    @strawberry.field
    def too_big(self) -> int | None:
        """A result that doesn't fit the schema."""
        return 2**40

    @strawberry.field
    async def slow(self, info: Info) -> str:
        """Waits until it may finish."""
        return await _wait(info.context.stage, "query")


@strawberry.type
class Mutation:
    """Writes."""

    @strawberry.mutation
    async def write(self, info: Info, what: str) -> str:
        """Writes at once."""
        info.context.stage.done.append(what)
        return what

    @strawberry.mutation
    async def slow(self, info: Info) -> str:
        """Waits until it may finish, then writes."""
        return await _wait(info.context.stage, "mutation")


@strawberry.type
class Subscription:
    """Streams."""

    @strawberry.subscription
    async def ticks(self, info: Info, size: int = 0) -> AsyncGenerator[str, None]:
        """Each number that the test puts on stage, with `size` dots behind; -1 ends it, -2 breaks it."""
        stage = info.context.stage
        stage.contexts.append(info.context)
        stage.streams_open += 1
        try:
            yield "ready"
            while (tick := await stage.ticks.get()) != -1:
                if tick == -2:
                    raise RuntimeError("redis://10.0.0.1 went away")
                yield f"{tick}{'.' * size}"
        finally:
            stage.streams_open -= 1

    @strawberry.subscription
    async def count(self, info: Info, size: int = 0, rest: JSON | None = None) -> AsyncGenerator[Count, None]:
        """The board as it is now, then every newer state, with `size` dots."""
        board = info.context.stage.board
        board.opened += 1
        board.open += 1
        try:
            await board.may_read.wait()
            if board.is_away:
                raise Overloaded()
            version: int | None = board.committed
            while version is not None:
                info.context.version = version
                board.shown += 1
                yield Count(version=version, dots="." * size)
                version = await board.later_than(version)
        finally:
            board.open -= 1

    @strawberry.subscription
    async def nothing_there(self) -> AsyncGenerator[str, None]:
        """Refused before the first message."""
        for _ in range(0):
            yield ""  # or it would be no generator
        raise NotFound("concert")

    @strawberry.subscription
    async def flood(self, info: Info, size: int) -> AsyncGenerator[str, None]:
        """As many messages as the client takes, counted on stage."""
        stage = info.context.stage
        while True:
            stage.done.append("flood")
            yield "." * size


async def _wait(stage: Stage, what: str) -> str:
    stage.began.set()
    try:
        await stage.may_finish.wait()
    except asyncio.CancelledError:
        stage.done.append(f"{what} was cancelled")
        raise
    stage.done.append(what)
    return what


def toy_app(
    stage: Stage, limits: Limits | None = None, metrics: Metrics | None = None, rooms: Rooms | None = None
) -> GraphQLApp:
    """The real endpoint over the toy."""

    def make_context(
        *, viewer: Viewer | None, request_id: str, client: str, refusal: Overloaded | None
    ) -> ToyContext:
        return ToyContext(viewer, request_id, client, stage)

    return GraphQLApp(
        strawberry.Schema(Query, Mutation, Subscription, types=[SeenByViewer]),
        make_context=make_context,
        authenticate=stage.authenticate,
        sessions_alive=stage.sessions_alive,
        metrics=metrics or Metrics(),
        rooms=rooms,
        shared={"count"},
        limits=limits or Limits(),
    )


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is up. `stop` asks it to go as a signal would, and waits until it is gone."""

    authority: str
    server: uvicorn.Server
    task: asyncio.Task[None]

    @property
    def http(self) -> str:
        """Where requests go."""
        return f"http://{self.authority}"

    @property
    def ws(self) -> str:
        """The endpoint's address for sockets."""
        return f"ws://{self.authority}/graphql"

    async def stop(self) -> None:
        """It has shut down."""
        self.server.should_exit = True
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE_S)


@asynccontextmanager
async def serving(
    app: GraphQLApp,
    *,
    max_message_bytes: int = 1_000_000,
    ws: type[SocketProtocol] = SocketProtocol,
    ping_s: float = 20.0,
) -> AsyncIterator[Serving]:
    """The endpoint on uvicorn and a loopback port that the system chose."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with app.running():
            yield

    routes = [Route("/graphql", app), WebSocketRoute("/graphql", app)]
    config = uvicorn.Config(
        Starlette(routes=routes, lifespan=lifespan),
        log_config=None,
        ws=ws,
        ws_ping_interval=ping_s,
        ws_ping_timeout=ping_s,
        ws_max_size=max_message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield Serving(f"127.0.0.1:{listener.getsockname()[1]}", server, task)
    finally:
        server.should_exit = True
        await task


async def until(condition: Callable[[], bool]) -> None:
    """The condition holds, within the patience of a test."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.005)
