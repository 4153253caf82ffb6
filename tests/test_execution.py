"""Running an operation: what is kept from one execution for the next, and that nothing is left behind."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import strawberry
from graphql import ExecutionResult, execute, parse

from domain.base import Overloaded
from infra.graphql_app.caller import Caller
from infra.graphql_app.documents import Operation
from infra.graphql_app.execution import Executor, leaves_of
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import Operations
from infra.graphql_app.requests import OperationRequest
from infra.telemetry import Metrics
from resolvers.context import make_context
from schema.common import Kind, encode_id
from tests.client import BOOK, GET_BOOKING, GET_COUNT
from tests.resolver_world import ANN, BOOKING, SCHEMA, World, raw

pytestmark = pytest.mark.anyio

CONCERT_ID = encode_id(Kind.CONCERT, raw(1))
BOOKING_ID = encode_id(Kind.BOOKING, BOOKING.id)
TO_BOOK: dict[str, Any] = {
    "input": {"concertId": CONCERT_ID, "items": [{"ticketTypeId": "?", "quantity": 1}]}
}
NODE = """query($id: ID!) { node(id: $id) { __typename id ... on Concert { title } ...B } }
fragment B on Booking { status items { ...I } } fragment I on BookingItem { name quantity }"""


class Endpoint:
    """The real schema over a small world."""

    def __init__(self) -> None:
        async def nobody(_token: str) -> None: ...

        def no_room(*_: object) -> None:
            raise Overloaded(1_234)

        self.operations = Operations(
            SCHEMA,
            make_context=partial(make_context, World().deps),
            authenticate=nobody,
            rooms={"bookConcert": no_room},
            limits=Limits(),
            metrics=Metrics(),
            shared=frozenset(),
        )

    def find(self, query: str, variables: dict[str, Any] | None = None) -> tuple[Operation, OperationRequest]:
        """The prepared operation, and the request for it."""
        request = OperationRequest(query=query, variables=variables, operation_name=None, persisted_hash=None)
        operation = self.operations.find(request, request_id="r")
        assert isinstance(operation, Operation), operation
        return operation, request

    async def ask(self, query: str, variables: dict[str, Any], refusal: Overloaded | None = None) -> Any:
        """The data of one operation of Ann's."""
        operation, request = self.find(query, variables)
        result = await self.operations.run(operation, request, Caller(ANN, "r", "127.0.0.1", refusal))
        return result.data


@contextmanager
def left_behind() -> Iterator[list[object]]:
    """What the garbage collector finds in the end that counting references did not free."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


# ---------------------------------------------------------------- nothing is left
@pytest.mark.parametrize(
    ("query", "variables"),
    [
        pytest.param(GET_COUNT, {"id": CONCERT_ID}, id="a count"),
        pytest.param(GET_BOOKING, {"id": BOOKING_ID}, id="a booking"),
        pytest.param(
            BOOK,
            {"input": {"concertId": CONCERT_ID, "items": [{"ticketTypeId": "?", "quantity": 1}]}},
            id="book",
        ),
    ],
)
@pytest.mark.parametrize("make_refusal", [lambda: None, Overloaded], ids=["done", "refused"])
async def test_an_operation_leaves_nothing_to_the_garbage_collector(
    query: str, variables: dict[str, Any], make_refusal: Callable[[], Overloaded | None]
) -> None:
    """Else it looks through everything that waits, again and again, most of all when most wait."""
    endpoint = Endpoint()
    await endpoint.ask(query, variables, make_refusal())
    with left_behind() as found:
        for _ in range(3):
            assert await endpoint.ask(query, variables, make_refusal())
    assert [type(each).__qualname__ for each in found] == []


async def test_no_room_leaves_nothing_to_the_garbage_collector() -> None:
    """An error that is handed on holds its traceback, whose frames hold the error."""
    endpoint = Endpoint()
    operation, request = endpoint.find(BOOK, TO_BOOK)

    async def refused() -> None:
        no_room = endpoint.operations.take_place(operation, request, ExitStack())
        assert no_room is not None
        await endpoint.operations.refuse(operation, request, Caller(None, "r", "127.0.0.1", no_room))

    await refused()
    with left_behind() as found:
        for _ in range(3):
            await refused()
    assert [type(each).__qualname__ for each in found] == []


# ---------------------------------------------------------------- what is kept
async def test_what_is_wrong_with_ones_variables_nobody_else_is_told() -> None:
    """A refusal is repeated for a moment; one that names somebody's input must not be."""
    endpoint = Endpoint()
    answers = []
    for items in ("a secret", TO_BOOK["input"]["items"], TO_BOOK["input"]["items"]):
        operation, request = endpoint.find(BOOK, {"input": {"concertId": CONCERT_ID, "items": items}})
        caller = Caller(None, "r", "127.0.0.1", Overloaded(1_234))
        answers.append(await endpoint.operations.refuse(operation, request, caller))
    assert [answer.code for answer in answers] == ["BAD_USER_INPUT", "OK", "OK"]
    assert answers[1] is answers[2]


async def test_fields_that_variables_leave_out_are_chosen_each_time() -> None:
    """What was collected for one execution must not be what the next one answers."""
    endpoint = Endpoint()
    query = "query($id: ID!, $with: Boolean!) { booking(id: $id) { status version @include(if: $with) } }"
    for is_shown in (True, False, True):
        answer = await endpoint.ask(query, {"id": BOOKING_ID, "with": is_shown})
        assert answer["booking"].keys() == ({"status", "version"} if is_shown else {"status"})
    assert endpoint.find(query)[0].selections is None


async def test_one_document_shows_each_type_by_its_own_fields() -> None:
    """Of an interface, by turns, and the fields of fragments in fragments merged."""
    endpoint = Endpoint()
    for _ in range(2):
        concert = await endpoint.ask(NODE, {"id": CONCERT_ID})
        assert concert == {"node": {"__typename": "Concert", "id": CONCERT_ID, "title": "Night 1"}}
        booking = await endpoint.ask(NODE, {"id": BOOKING_ID})
        assert booking["node"] == {
            "__typename": "Booking",
            "id": BOOKING_ID,
            "status": "APPROVED",
            "items": [{"name": "Stalls", "quantity": 2}],
        }
    kept = endpoint.find(NODE)[0].selections
    assert kept is not None
    assert [type_.name for type_, _ in kept.below] == ["Concert", "Booking", "BookingItem"]


async def test_each_operation_of_a_document_has_its_own_fields() -> None:
    """They are told apart by the operation, not by the document."""
    endpoint = Endpoint()
    query = f'query A {{ node(id: "{CONCERT_ID}") {{ id }} }} query B {{ node(id: "{CONCERT_ID}") {{ __typename }} }}'
    for _ in range(2):
        for name, field in (("A", "id"), ("B", "__typename")):
            request = OperationRequest(query, None, name, None)
            operation = endpoint.operations.find(request, request_id="r")
            assert isinstance(operation, Operation)
            result = await endpoint.operations.run(operation, request, Caller(ANN, "r", "127.0.0.1"))
            assert result.data is not None
            assert list(result.data["node"]) == [field]  # type: ignore[call-overload]


async def test_fragments_that_multiply_are_not_kept() -> None:
    """A short document may select more than there is room for: here each fragment spreads the next one twice."""
    endpoint = Endpoint()
    fragments = " ".join(
        f"fragment F{n} on Query {{ ...F{n + 1} ticketCount(concertId: $id) {{ version }} ...F{n + 1} }}"
        for n in range(12)
    )
    many = f"query($id: ID!) {{ ...F0 }} {fragments} fragment F12 on Query {{ __typename }}"
    assert endpoint.find(many)[0].selections is None
    assert endpoint.find(GET_COUNT)[0].selections is not None
    answer = await endpoint.ask(many, {"id": CONCERT_ID})
    assert answer.keys() == {"__typename", "ticketCount"}


# ---------------------------------------------------------------- the same as the library's
@strawberry.enum
class Mood(Enum):
    """A choice."""

    CALM = "calm"


@strawberry.type
class Thing:
    """Attributes of every kind, whatever they hold."""

    name: str
    mood: Mood
    when: datetime | None
    count: int
    names: list[str]

    @strawberry.field
    def told(self, info: strawberry.Info) -> str:
        """It needs to be told which field it is."""
        return f"{info.field_name} of {type(self).__name__}"

    @strawberry.field
    async def awaited(self) -> str:
        """It is known later than the fields that follow it."""
        await asyncio.sleep(0)
        return "at last"


class Shadowed(Thing):
    """An attribute of a resolver's name."""

    told = "not this"  # type: ignore[assignment]


class Later:
    """A name that has to be waited for."""

    def __await__(self) -> Iterator[None]:
        """None is the name, and it may not be."""
        yield


THINGS: dict[str, Callable[[], Any]] = {
    "whole": lambda: Thing(
        name="a", mood=Mood.CALM, when=datetime(2027, 5, 1, tzinfo=UTC), count=1, names=["b"]
    ),
    "empty": lambda: Thing(name="", mood=Mood.CALM, when=None, count=0, names=[]),
    "wrong": lambda: Thing(name=..., mood="angry", when="now", count=2**40, names=[1]),  # type: ignore[arg-type,list-item]
    "missing": lambda: Thing(name=None, mood=None, when=None, count=None, names=None),  # type: ignore[arg-type]
    "later": lambda: Thing(name=Later(), mood=Mood.CALM, when=None, count=1, names=[]),  # type: ignore[arg-type]
    "failed": lambda: Thing(name=ValueError("no name"), mood=Mood.CALM, when=None, count=1, names=[]),  # type: ignore[arg-type]
    "shadowed": lambda: Shadowed(name="a", mood=Mood.CALM, when=None, count=1, names=[]),
    "another": lambda: SimpleNamespace(name="a"),
}


@strawberry.type
class ThingQuery:
    """Two places for each thing: one that may be empty, and one that takes its surroundings with it."""

    @strawberry.field
    def maybe(self, which: str) -> Thing | None:
        """May be empty."""
        return cast(Thing, THINGS[which]())

    @strawberry.field
    def thing(self, which: str) -> Thing:
        """May not be empty."""
        return cast(Thing, THINGS[which]())


@pytest.mark.parametrize("which", THINGS)
@pytest.mark.parametrize(
    "fields",
    [
        "__typename name mood when count told",
        "when",
        "name",
        "calls: name mood",
        "names told",
        "awaited when told count awaitedToo: awaited mood",
    ],
)
async def test_what_is_read_off_an_object_is_as_the_library_reads_it(which: str, fields: str) -> None:
    """And so is every error: its text, its place and what becomes of the fields around it."""
    schema = strawberry.Schema(ThingQuery)
    query = f'{{ maybe(which: "{which}") {{ {fields} }} thing(which: "{which}") {{ {fields} }} }}'
    expected = await schema.execute(query)
    begun = execute(schema._schema, parse(query), executor_class=Executor, leaves=leaves_of(schema._schema))
    found = await begun if isawaitable(begun) else begun
    assert isinstance(found, ExecutionResult)
    assert orjson.dumps(found.data) == orjson.dumps(expected.data)
    told = [
        [(each.message, each.path, each.locations) for each in one.errors or []] for one in (found, expected)
    ]
    assert told[0] == told[1]
