"""Shared streams: what many subscribe to alike is executed once and encoded once, for all of them.

A feed runs one stream for everybody who asked for the same. Whoever comes is answered by a stream that was begun
afterwards, because only that is as new as the database at the time: so newcomers begin one more, together, and it
takes over the others when it has opened. Versions tell what is new to whom: no state is missed in the change, and
nobody is told an older one after a newer one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Protocol

import orjson
import structlog

from infra.graphql_app import messages
from infra.graphql_app.caller import Caller, new_request_id
from infra.graphql_app.documents import Operation
from infra.graphql_app.errors import FormattedError
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import Operations, Result, refusal
from infra.graphql_app.requests import OperationRequest

# A stream that takes so long to open may hang with its connection: whoever comes after it waits no longer.
NEXT_AFTER_S = 1.0
# Then others have a turn: telling takes about 10 us each.
TOLD_AT_ONCE = 100

Key = tuple[str, str | None, bytes]


class Subscriber(Protocol):
    """One who is told."""

    def tell(self, payload: bytes, *, version: int) -> None:
        """The newest state, encoded; passed over where it is not newer than the last."""
        ...

    def fail(self, errors: Sequence[FormattedError], *, code: str) -> None:
        """It ended with these errors. The last that is told."""
        ...

    def complete(self) -> None:
        """It is over. The last that is told."""
        ...


class Feeds:
    """The feeds of one process."""

    def __init__(self, operations: Operations, limits: Limits) -> None:
        self._operations = operations
        self._apart_s = 1 / limits.shared_updates_per_s
        self._feeds: dict[Key, Feed] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, operation: Operation, request: OperationRequest, subscriber: Subscriber) -> "Feed | None":
        """The feed of all who ask for the same, this one among them from here on; None for what is not shared."""
        if not operation.is_shared:
            return None
        try:
            variables = orjson.dumps(request.variables or {}, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError:
            return None  # nested too deeply
        key = (operation.query, operation.name, variables)
        feed = self._feeds.get(key)
        if feed is None:

            def opened(request_id: str) -> AsyncGenerator[Result, None]:
                # As nobody, so that nothing can be shown that only some may see.
                caller = Caller(viewer=None, request_id=request_id, client="everyone")
                return self._operations.answers(operation, request, caller)

            def forget() -> None:
                del self._feeds[key]

            feed = Feed(opened, apart_s=self._apart_s, tasks=self._tasks, on_empty=forget)
            self._feeds[key] = feed
        feed.join(subscriber)
        return feed

    async def finish(self) -> None:
        """No stream is left."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Feed:
    """One operation, and all who subscribe to it alike. Its streams are numbered in the order they begin."""

    def __init__(
        self,
        opened: Callable[[str], AsyncGenerator[Result, None]],
        *,
        apart_s: float,
        tasks: set[asyncio.Task[None]],
        on_empty: Callable[[], None],
    ) -> None:
        self._opened = opened
        self._apart_s = apart_s
        self._tasks = tasks
        self._on_empty = on_empty
        self._subscribers: dict[Subscriber, None] = {}
        # Nothing was told to them yet. The number of the last stream that had begun when they came, in this order.
        self._newcomers: dict[Subscriber, int] = {}
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._begun = 0
        # The one that opened last. Those above it are still opening.
        self._current = 0
        self._next: asyncio.Task[None] | None = None
        # While one may still open soon.
        self._patience: asyncio.TimerHandle | None = None
        # The newest state of the current stream; whether all have to be told, and whether it is time for the next one.
        self._payload, self._version = b"", 0
        self._is_news = asyncio.Event()
        self._is_time = asyncio.Event()
        self._is_over = False
        self._telling = self._started(self._tell())

    def join(self, subscriber: Subscriber) -> None:
        """It is told the state of now, then every newer one."""
        self._newcomers[subscriber] = self._begun
        self._begin_if_waited_for()

    def leave(self, subscriber: Subscriber) -> None:
        """It is told nothing any more. The last one who leaves ends the stream."""
        self._subscribers.pop(subscriber, None)
        self._newcomers.pop(subscriber, None)
        self._end_if_empty()

    # ------------------------------------------------------------ streams
    def _begin_if_waited_for(self) -> None:
        """Another stream begins where somebody came after the last one, unless that may still open soon."""
        latest = next(reversed(self._newcomers.values()), -1)
        if latest == self._begun and self._next is None and self._patience is None:
            self._next = self._started(self._run())

    def _lose_patience(self) -> None:
        self._patience = None
        self._begin_if_waited_for()

    def _settle(self, number: int) -> None:
        """This stream has opened, or never will."""
        if number == self._begun and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    async def _run(self) -> None:
        assert self._next is not None
        self._begun = number = self._begun + 1
        self._streams[number], self._next = self._next, None
        self._patience = asyncio.get_running_loop().call_later(NEXT_AFTER_S, self._lose_patience)
        request_id = new_request_id()
        last: Result | None = None
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                async with aclosing(self._opened(request_id)) as results:
                    async for result in results:
                        if result.is_refusal:
                            last = result
                            break
                        await self._show(number, result)
        except Exception as error:  # the edge: masked as INTERNAL and logged
            last = refusal([error], request_id=request_id)
        del self._streams[number]
        self._settle(number)
        self._end(number, last)

    async def _show(self, number: int, result: Result) -> None:
        """Newcomers are told at once, and everybody else has been when it is time to read the next state."""
        payload = messages.encoded(result.payload())
        if number > self._current:
            self._take_over(number)
        self._payload, self._version = payload, result.version
        self._is_time.clear()
        self._is_news.set()
        for count, subscriber in enumerate(self._waiting_for(number), start=1):
            if self._newcomers.pop(subscriber, None) is not None:  # else it has left meanwhile
                self._subscribers[subscriber] = None
                subscriber.tell(payload, version=result.version)
            if count % TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._is_time.wait()

    def _take_over(self, number: int) -> None:
        """Streams that began earlier end: this one heard of all that they could still tell, or has read it."""
        self._current = number
        for earlier in [each for each in self._streams if each < number]:
            self._streams.pop(earlier).cancel()
        self._settle(number)
        self._begin_if_waited_for()

    async def _tell(self) -> None:
        """Everybody hears the newest state, at most one each `apart_s`: until then it is replaced by newer ones."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_news.wait()
            self._is_news.clear()
            again_at = loop.time() + self._apart_s
            payload, version = self._payload, self._version
            for count, subscriber in enumerate(tuple(self._subscribers), start=1):
                if subscriber in self._subscribers:  # else it has left meanwhile
                    subscriber.tell(payload, version=version)
                if count % TOLD_AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(again_at - loop.time())
            if not self._is_news.is_set():
                self._is_time.set()

    # ------------------------------------------------------------ ends
    def _end(self, number: int, last: Result | None) -> None:
        """Whoever this stream was for hears that it is over."""
        whom = self._waiting_for(number)
        if number == self._current:
            whom += self._subscribers
        for subscriber in whom:
            self._newcomers.pop(subscriber, None)
            self._subscribers.pop(subscriber, None)
            if last is None:
                subscriber.complete()
            else:
                subscriber.fail(last.errors, code=last.code)
        self._begin_if_waited_for()
        self._end_if_empty()

    def _waiting_for(self, number: int) -> list[Subscriber]:
        """Newcomers for whom this stream is not too early."""
        return [each for each, too_early in self._newcomers.items() if too_early < number]

    def _end_if_empty(self) -> None:
        if self._subscribers or self._newcomers or self._is_over:
            return
        self._is_over = True
        for task in (*self._streams.values(), self._next, self._telling):
            if task is not None:
                task.cancel()
        if self._patience is not None:
            self._patience.cancel()
        self._on_empty()

    def _started(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
