"""The GraphQL face: it keeps the contract, describes itself, and reads ids, times and cursors strictly."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from graphql import (
    DocumentNode,
    EnumTypeDefinitionNode,
    InputObjectTypeDefinitionNode,
    InterfaceTypeDefinitionNode,
    ObjectTypeDefinitionNode,
    ScalarTypeDefinitionNode,
    UnionTypeDefinitionNode,
    parse,
    print_ast,
)
from hypothesis import example, given
from hypothesis import strategies as st
from strawberry.exceptions import StrawberryInputCoercionError

from domain.base import BadUserInput, PageQuery
from domain.concert import ConcertFilter, ConcertOrder
from schema.common import Kind, decode_id, encode_id, format_time, parse_time
from schema.concert import concert_scope
from schema.paging import CursorScope, page_query
from schema.problems import PROBLEMS
from schema.root import build_schema

HERE = Path(__file__).parent
PRINTED = HERE.parent / "schema" / "schema.graphql"
RAW = "0190a6f2-7b1c-7def-8abc-0123456789ab"


# ---------------------------------------------------------------- the contract
def facts(document: DocumentNode) -> Iterator[str]:
    """Everything a document promises, a line each: types, fields, arguments, defaults, members, values."""
    for node in document.definitions:
        match node:
            case ScalarTypeDefinitionNode():
                yield f"scalar {node.name.value}"
            case EnumTypeDefinitionNode():
                yield from (f"{node.name.value} has {value.name.value}" for value in node.values or ())
            case UnionTypeDefinitionNode():
                yield from (f"{node.name.value} may be {member.name.value}" for member in node.types or ())
            case InputObjectTypeDefinitionNode():
                for field in node.fields or ():
                    default = print_ast(field.default_value) if field.default_value else "no default"
                    yield f"input {node.name.value}.{field.name.value}: {print_ast(field.type)} {default}"
            case ObjectTypeDefinitionNode() | InterfaceTypeDefinitionNode():
                yield f"{node.kind} {node.name.value}"
                yield from (f"{node.name.value} is a {above.name.value}" for above in node.interfaces or ())
                for output in node.fields or ():
                    place = f"{node.name.value}.{output.name.value}"
                    yield f"{place}: {print_ast(output.type)}"
                    for argument in output.arguments or ():
                        default = (
                            print_ast(argument.default_value) if argument.default_value else "no default"
                        )
                        yield f"{place}({argument.name.value}: {print_ast(argument.type)}) {default}"
            case _:
                raise AssertionError(f"a {node.kind} is not compared")


def test_the_schema_contains_the_whole_contract() -> None:
    """Every name, type, nullability and default of the contract is in the schema exactly as it is there."""
    promised = set(facts(parse((HERE / "contract.graphql").read_text())))
    kept = set(facts(parse(build_schema().as_str())))
    assert len(promised) == 442
    assert promised - kept == set()


@pytest.mark.parametrize(
    ("was", "becomes", "broken"),
    [
        ("cancelBooking(", "giveUp(", "Mutation.cancelBooking: CancelBookingResult"),
        ("payBy: DateTime", "payBy: DateTime!", "Booking.payBy: DateTime"),
        ("first: Int = 20", "first: Int = 10", "MyPage.bookings(first: Int) 20"),
        ("UserRole {\n  CUSTOMER", "UserRole {\n  BUYER", "UserRole has CUSTOMER"),
        (
            "SoldOutProblem | SalesClosedProblem",
            "SoldOutProblem",
            "BookConcertResult may be SalesClosedProblem",
        ),
        (
            'timeZone: String! = "UTC"',
            "timeZone: String!",
            'input RegisterConcertInput.timeZone: String! "UTC"',
        ),
    ],
)
def test_a_broken_promise_is_found(was: str, becomes: str, broken: str) -> None:
    """The comparison sees a lost field, a changed type or default, a lost value and a lost member."""
    contract = (HERE / "contract.graphql").read_text()
    assert was in contract
    promised, kept = set(facts(parse(contract))), set(facts(parse(contract.replace(was, becomes))))
    assert broken in promised - kept


def test_the_printed_schema_is_fresh() -> None:
    """`schema/schema.graphql` is what the code prints: print it anew with `frontrow schema`."""
    assert PRINTED.read_text() == build_schema().as_str() + "\n"


def test_everything_is_described() -> None:
    """Every type, field, argument and enum value tells a client what it means."""
    undescribed = []
    for node in parse(build_schema().as_str()).definitions:
        if node.kind == "schema_definition":
            continue
        parts = [*(getattr(node, "fields", None) or ()), *(getattr(node, "values", None) or ())]
        parts += [argument for part in parts for argument in getattr(part, "arguments", None) or ()]
        undescribed += [part.name.value for part in (node, *parts) if part.description is None]
    # A mutation's one argument is described by its type.
    assert set(undescribed) == {"input"}


def test_every_problem_of_a_result_is_some_refusals_face() -> None:
    """No result union names a problem that nothing in the domain leads to."""
    members = {line.split()[-1] for line in facts(parse(build_schema().as_str())) if " may be " in line}
    problems = {name for name in members if name.endswith("Problem")}
    assert problems == {problem.__name__ for problem in PROBLEMS.values()}


# ---------------------------------------------------------------- ids
@given(st.sampled_from(Kind), st.uuids())
def test_an_id_names_its_kind_and_raw_id(kind: Kind, raw: object) -> None:
    """Encoding and decoding undo each other."""
    assert decode_id(encode_id(kind, str(raw))) == (kind, str(raw))


def b64(text: str) -> str:
    """Standard base64 of a text."""
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        RAW,
        b64(f"Nothing:{RAW}"),
        b64(f"concert:{RAW}"),
        b64("Concert:"),
        b64("Concert:1"),
        b64(f"Concert:{RAW.upper()}"),
        b64(f"Concert:{RAW}\n"),
        b64(f"Concert:{RAW} "),
        b64(f"Concert:{RAW}").rstrip("="),
        b64(f"Concert:{RAW}") + "=",
        b64(f"Concert:{RAW}") + "\n",
        b64(f"Concert:{RAW}")[:-2] + "J=",  # the same bytes, an unused bit set
        "Å" * 20,
        "\ud800",
        "A" * 100_000,
        b64("Concert:" + RAW.replace("0", "\u0660")),  # a digit, and not an ASCII one
    ],
)
def test_what_was_never_given_out_is_no_id(text: str) -> None:
    """One text per thing: other spellings, kinds and raw ids are refused."""
    with pytest.raises(BadUserInput, match="not an id"):
        decode_id(text)


# ---------------------------------------------------------------- times
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-05-01T20:00:00Z", datetime(2027, 5, 1, 20, tzinfo=UTC)),
        ("2027-05-01t20:00:00.25z", datetime(2027, 5, 1, 20, 0, 0, 250_000, tzinfo=UTC)),
        ("2027-05-01T20:00:00+02:00", datetime(2027, 5, 1, 18, tzinfo=UTC)),
        ("2027-05-01T20:00:00.123456789-11:30", datetime(2027, 5, 2, 7, 30, 0, 123_456, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime.min.replace(tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_time_with_an_offset_is_read_as_utc(text: str, moment: datetime) -> None:
    """RFC 3339 in, aware UTC out, cut to the microsecond."""
    read = parse_time(text)
    assert read == moment and read.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        "2027-05-01",
        "2027-05-01T20:00:00",
        "2027-05-01T20:00Z",
        "2027-05-01 20:00:00Z",
        "20270501T200000Z",
        "2027-W18-6T20:00:00Z",
        "2027-02-30T20:00:00Z",
        "2027-05-01T25:00:00Z",
        "2027-05-01T20:00:00+0200",
        "2027-05-01T20:00:00+25:00",
        "2027-05-01T20:00:00Z\n",
        "\u0662027-05-01T20:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "0000-01-01T00:00:00Z",
        "",
        1_777_777_777,
        None,
        True,
    ],
)
def test_what_is_no_rfc_3339_time_is_refused(value: object) -> None:
    """A date alone, a time without an offset, a time that does not exist or leaves the years 1 to 9999."""
    with pytest.raises(StrawberryInputCoercionError, match="A DateTime is"):
        parse_time(value)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
@example(datetime(2027, 5, 1, 20, tzinfo=timezone(timedelta(hours=2))))
def test_a_time_is_answered_in_utc_and_can_be_sent_back(moment: datetime) -> None:
    """Whatever zone it is in, the answer ends in Z and reads as the same instant."""
    try:
        instant = moment.astimezone(UTC)
    except OverflowError:
        return  # no database gives out a time outside the years 1 to 9999
    text = format_time(moment)
    assert text.endswith("Z") and parse_time(text) == instant


# ---------------------------------------------------------------- cursors and pages
BY_TIME = concert_scope(ConcertFilter(), ConcertOrder.STARTS_AT_ASC)
BY_TITLE = concert_scope(ConcertFilter(), ConcertOrder.TITLE_ASC)
TIME_KEY = ("2027-05-01T18:00:00.000000+00:00", RAW)


def forged(scope: CursorScope, *key: object) -> str:
    """A cursor of this list with any key in it."""
    return base64.urlsafe_b64encode(json.dumps([scope.fingerprint, *key]).encode()).decode()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_a_cursor_leads_back_to_its_row(title: str) -> None:
    """Any title that can be stored survives the way through a cursor."""
    assert BY_TITLE.decode(BY_TITLE.encode((title, RAW))) == (title, RAW)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        RAW,
        "A" * 5_000,
        base64.urlsafe_b64encode(b"[" * 2_900).decode(),
        base64.urlsafe_b64encode(b"\xff").decode(),
        base64.urlsafe_b64encode(b"{}").decode(),
        forged(BY_TIME),
        forged(BY_TIME, *TIME_KEY, "more"),
        forged(BY_TIME, 1, RAW),
        forged(BY_TIME, "soon", RAW),
        forged(BY_TIME, "2027-05-01T18:00:00", RAW),
        forged(BY_TIME, "2027-05-01T20:00:00.000000+02:00", RAW),
        forged(BY_TIME, "0001-01-01T00:00:00.000000+14:00", RAW),
        forged(BY_TIME, TIME_KEY[0], "1"),
    ],
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    """A forged key never reaches the database."""
    with pytest.raises(BadUserInput, match="not a cursor"):
        BY_TIME.decode(cursor)


@pytest.mark.parametrize("title", ["a\0b", "\ud800"])
def test_a_cursor_holds_no_text_that_a_database_refuses(title: str) -> None:
    """NUL and half a surrogate pair can't be in a title, so they can't be in a cursor."""
    with pytest.raises(BadUserInput, match="not a cursor"):
        BY_TITLE.decode(forged(BY_TITLE, title, RAW))


@pytest.mark.parametrize(
    "other",
    [
        BY_TITLE,
        concert_scope(ConcertFilter(), ConcertOrder.STARTS_AT_DESC),
        concert_scope(ConcertFilter(search="jazz"), ConcertOrder.STARTS_AT_ASC),
        concert_scope(ConcertFilter(on_sale=False), ConcertOrder.STARTS_AT_ASC),
        concert_scope(
            ConcertFilter(starts_after=datetime(2027, 1, 1, tzinfo=UTC)), ConcertOrder.STARTS_AT_ASC
        ),
        concert_scope(
            ConcertFilter(starts_before=datetime(2027, 1, 1, tzinfo=UTC)), ConcertOrder.STARTS_AT_ASC
        ),
    ],
)
def test_a_cursor_belongs_to_its_order_and_filter(other: CursorScope) -> None:
    """In another list it would point anywhere."""
    with pytest.raises(BadUserInput, match="another order or filter"):
        BY_TIME.decode(other.encode(TIME_KEY))


@pytest.mark.parametrize(
    ("arguments", "limit", "is_from_end"),
    [
        ({}, 20, False),
        ({"first": 1}, 1, False),
        ({"first": 100}, 100, False),
        ({"last": 100}, 100, True),
        ({"last": 1}, 1, True),
    ],
)
def test_a_page_has_1_to_100_rows_and_20_by_default(
    arguments: dict[str, int], limit: int, is_from_end: bool
) -> None:
    """Both bounds are included."""
    asked = {"first": None, "after": None, **arguments}
    assert page_query(BY_TIME, **asked) == PageQuery(limit, is_from_end=is_from_end)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [{"first": 0}, {"first": -1}, {"first": 101}, {"last": 0}, {"last": 101}, {"first": 5, "last": 5}],
)
def test_a_page_that_makes_no_sense_is_refused(arguments: dict[str, int]) -> None:
    """Past a bound, or from both ends at once."""
    asked = {"first": None, "after": None, **arguments}
    with pytest.raises(BadUserInput):
        page_query(BY_TIME, **asked)  # type: ignore[arg-type]


def test_cursors_bound_a_page() -> None:
    """After and before become keys; before alone means the rows just before it."""
    cursor = BY_TIME.encode(TIME_KEY)
    assert page_query(BY_TIME, first=5, after=cursor) == PageQuery(5, after=TIME_KEY)
    assert page_query(BY_TIME, first=None, after=None, before=cursor) == PageQuery(
        20, before=TIME_KEY, is_from_end=True
    )
