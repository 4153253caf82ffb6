"""Running operations: the one path that queries, mutations and subscriptions of both transports take."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from typing import Protocol

import strawberry
from graphql import ExecutionResult, GraphQLError, OperationType, execute, subscribe

from domain.base import DomainError, Overloaded
from domain.user import Unauthenticated, Viewer
from infra.graphql_app.caller import Caller
from infra.graphql_app.documents import Documents, InvalidDocument, Operation
from infra.graphql_app.errors import FormattedError, StillRunning, code_of, format_errors
from infra.graphql_app.execution import Executor, leaves_of
from infra.graphql_app.inputs import prepare_inputs
from infra.graphql_app.limits import Limits
from infra.graphql_app.requests import OperationRequest
from infra.telemetry import Metrics

Authenticate = Callable[[str], Awaitable[Viewer | None]]
Variables = Mapping[str, object]
# By mutation: takes a place for one more where it will wait, by its variables, until the stack is closed.
# Raises Overloaded where none is free.
Rooms = Mapping[str, Callable[[Variables, ExitStack], None]]


# How long a refusal is repeated, and how many different ones.
REFUSAL_S = 0.2
REFUSALS_MAX = 100


class MakeContext(Protocol):
    """Makes what resolvers are given: a fresh one for every operation."""

    def __call__(
        self, *, viewer: Viewer | None, request_id: str, client: str, refusal: Overloaded | None
    ) -> "OperationContext":
        """The context, with loaders of its own. With a refusal that is all that a mutation answers."""
        ...


class OperationContext(Protocol):
    """What resolvers are given."""

    @property
    def version(self) -> int:
        """Of the state that a shared subscription shows: newer states have higher ones."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. `is_refusal`: nothing was executed, so there is no data (specification, section 7.1)."""

    data: dict[str, object] | None
    errors: tuple[FormattedError, ...]
    is_refusal: bool
    version: int = 0

    @property
    def code(self) -> str:
        """OK, or the first error's code."""
        return code_of(self.errors[0]) if self.errors else "OK"

    def payload(self) -> dict[str, object]:
        """The response as the specification shapes it."""
        payload: dict[str, object] = {"errors": self.errors} if self.errors else {}
        if not self.is_refusal:
            payload["data"] = self.data
        return payload


def refusal(errors: Sequence[Exception], *, request_id: str) -> Result:
    """The answer to a request that came to nothing."""
    return Result(None, tuple(format_errors(errors, request_id=request_id)), is_refusal=True)


class Operations:
    """Finds, admits and runs the operations of one schema in one process."""

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        make_context: MakeContext,
        authenticate: Authenticate,
        rooms: Rooms,
        limits: Limits,
        metrics: Metrics,
        shared: Collection[str],
    ) -> None:
        prepare_inputs(schema)
        self._schema = schema
        self._leaves = leaves_of(schema._schema)
        self._documents = Documents(schema._schema, limits, shared)
        self._make_context = make_context
        self._authenticate = authenticate
        self._rooms = rooms
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0
        self._unwatched: set[asyncio.Task[Result]] = set()
        self._refusals: dict[tuple[str, str | None], tuple[float, Result]] = {}

    async def viewer_of(self, token: str | None) -> Viewer | None:
        """Who holds the token; nobody without one. Raises: Unauthenticated where it is unknown or ended."""
        if token is None:
            return None
        viewer = await self._authenticate(token)
        if viewer is None:
            raise Unauthenticated("The access token is unknown or has ended. Log in again.")
        return viewer

    def find(self, request: OperationRequest, *, request_id: str) -> Operation | Result:
        """The operation that the request asks for, or the refusal of a request that makes no sense."""
        try:
            return self._documents.find(request)
        except InvalidDocument as error:
            return self.refused(error.errors, request_id=request_id)
        except (DomainError, GraphQLError) as error:
            return self.refused([error], request_id=request_id)

    def known(self, request: OperationRequest) -> Operation | None:
        """The operation, where finding it costs next to nothing."""
        return self._documents.known(request)

    def refused(self, errors: Sequence[Exception], *, request_id: str) -> Result:
        """The answer to what is not run, counted."""
        result = refusal(errors, request_id=request_id)
        self._metrics.saw_operation("none", result.code)
        return result

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among those in flight. Raises: Overloaded at once where none is free."""
        # A mutation whose caller has gone holds on to its place, or impatient clients could pile them up.
        if self._in_flight + len(self._unwatched) >= self._limits.max_in_flight:
            raise Overloaded()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def take_place(
        self, operation: Operation, request: OperationRequest, places: ExitStack
    ) -> Overloaded | None:
        """The refusal, where there is no room; known before the database is asked who the caller is.

        An answer that says no must cost little, or under a rush nothing else is answered.
        """
        room = self._rooms.get(operation.field or "")
        if room is not None and operation.kind is OperationType.MUTATION:
            try:
                room(request.variables or {}, places)
            except Overloaded as refusal:
                # Its traceback would lead back to who holds it: a cycle for each refusal.
                return refusal.with_traceback(None)
        return None

    async def refuse(self, operation: Operation, request: OperationRequest, caller: Caller) -> Result:
        """What the operation answers to the caller's refusal.

        Under a rush this is most of what is answered, so for a moment the same operation is told the same.
        """
        asked = (operation.query, operation.name)
        now_s = asyncio.get_running_loop().time()
        until_s, known = self._refusals.get(asked, (0.0, None))
        if known is not None and now_s < until_s:
            self.count(operation.kind, known.code)
            return known
        result = await self.run(operation, request, caller)
        # What is wrong with one caller's variables is that caller's own.
        if operation.is_fixed and not result.errors:
            if len(self._refusals) >= REFUSALS_MAX:
                self._refusals.clear()
            self._refusals[asked] = (now_s + REFUSAL_S, result)
        return result

    async def run(self, operation: Operation, request: OperationRequest, caller: Caller) -> Result:
        """The one answer of a query or mutation, within the time limit.

        Concurrency: a mutation goes on to its end when its caller is cancelled or the time is over, so neither
        the database nor the processor's breaker sees a cancel. `finish` awaits those.
        """
        assert operation.kind is not OperationType.SUBSCRIPTION, "a subscription has more than one answer"
        if operation.kind is OperationType.QUERY:
            try:
                async with asyncio.timeout(self._limits.request_timeout_s):
                    return await self._only_answer(operation, request, caller)
            except TimeoutError:
                return refusal([Overloaded()], request_id=caller.request_id)
        mutation = asyncio.create_task(self._only_answer(operation, request, caller))
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                return await asyncio.shield(mutation)
        except TimeoutError:
            return refusal([StillRunning()], request_id=caller.request_id)
        finally:
            if not mutation.done():
                self._unwatched.add(mutation)
                mutation.add_done_callback(self._unwatched.discard)

    async def stream(
        self, operation: Operation, request: OperationRequest, caller: Caller
    ) -> AsyncGenerator[Result, None]:
        """`answers`, counted as one operation."""
        code = "CANCELLED"
        try:
            async with aclosing(self.answers(operation, request, caller)) as results:
                async for result in results:
                    code = result.code
                    yield result
        finally:
            self.count(operation.kind, code)

    async def answers(
        self, operation: Operation, request: OperationRequest, caller: Caller
    ) -> AsyncGenerator[Result, None]:
        """Every answer of a subscription as it comes; a failure is the last. Raises only CancelledError."""
        try:
            context = self._context_for(caller)
            stream = await self._begun(subscribe, operation, request, context)
            if isinstance(stream, ExecutionResult):
                yield _result(stream, caller, is_refusal=True)
                return
            assert isinstance(stream, AsyncGenerator), "a stream of answers can be closed"
            async with aclosing(stream):
                async for answer in stream:
                    yield _result(answer, caller, is_refusal=_has_not_begun(answer), version=context.version)
        except Exception as error:  # the edge: masked as INTERNAL and logged
            yield refusal([error], request_id=caller.request_id)

    def count(self, kind: OperationType, code: str) -> None:
        """One more operation of a client's has ended like this."""
        self._metrics.saw_operation(kind.value, code)

    def _context_for(self, caller: Caller) -> OperationContext:
        return self._make_context(
            viewer=caller.viewer,
            request_id=caller.request_id,
            client=caller.client,
            refusal=caller.refusal,
        )

    async def _begun(
        self,
        run: Callable[..., object],
        operation: Operation,
        request: OperationRequest,
        context: OperationContext,
    ) -> object:
        """What graphql-core's `execute` or `subscribe` answers.

        Not through `strawberry.Schema.stream`: its extensions, which do nothing here, and a second look at the document
        cost three times as much as a small operation itself.
        """
        begun = run(
            self._schema._schema,
            operation.document,
            context_value=context,
            variable_values=request.variables,
            operation_name=operation.name,
            executor_class=Executor,
            selections=operation.selections,
            leaves=self._leaves,
        )
        return await begun if isawaitable(begun) else begun

    async def finish(self) -> None:
        """Wait for the mutations that nobody waits for any more, as long as a request may take."""
        if self._unwatched:
            await asyncio.wait(self._unwatched, timeout=self._limits.request_timeout_s)

    async def _only_answer(self, operation: Operation, request: OperationRequest, caller: Caller) -> Result:
        code = "CANCELLED"
        try:
            answer = await self._begun(execute, operation, request, self._context_for(caller))
            assert isinstance(answer, ExecutionResult), "nothing is answered in parts"
            result = _result(answer, caller, is_refusal=_has_not_begun(answer))
            code = result.code
        except Exception as error:  # the edge: masked as INTERNAL and logged
            result = refusal([error], request_id=caller.request_id)
            code = result.code
        finally:
            self.count(operation.kind, code)
        return result


def _result(answer: ExecutionResult, caller: Caller, *, is_refusal: bool, version: int = 0) -> Result:
    errors = tuple(format_errors(answer.errors or [], request_id=caller.request_id))
    return Result(answer.data, errors, is_refusal, version)


def _has_not_begun(answer: ExecutionResult) -> bool:
    """Variables are coerced in execution; their errors have no path."""
    return answer.data is None and all(error.path is None for error in answer.errors or [])
