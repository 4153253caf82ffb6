"""Prepared input types build what strawberry builds."""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import pytest
import strawberry
from strawberry.relay import GlobalID
from strawberry.types.arguments import convert_argument
from strawberry.types.base import StrawberryObjectDefinition

from infra.graphql_app.inputs import prepare_inputs
from schema.root import build_schema


@strawberry.enum
class Colour(Enum):
    """One of two."""

    RED = "red"
    BLUE = "blue"


@strawberry.input
class Line:
    """What others are made of."""

    ticket_type: strawberry.ID
    quantity: int = 1
    shade: Colour | None = None


@strawberry.input
class Everything:
    """A field of every kind."""

    a_line: Line
    lines: list[Line]
    maybe_lines: list[Line] | None = strawberry.UNSET
    holes: list[Line | None] | None = None
    rows: list[list[Line]] | None = None
    words: list[str] = strawberry.field(default_factory=list)
    gaps: list[str | None] | None = None
    renamed: int | None = strawberry.field(default=None, name="another_name")
    at: datetime | None = None
    colours: list[Colour] | None = None
    node: GlobalID | None = None
    nodes: list[GlobalID] | None = None
    itself: "Annotated[Everything, strawberry.lazy('tests.test_inputs')] | None" = None
    required_but_nullable: str | None


@strawberry.input
class Picky:
    """It leaves null to strawberry."""

    size: strawberry.Maybe[int]


@strawberry.type
class Query:
    """Takes both."""

    @strawberry.field
    def take(self, everything: Everything | None = None, picky: Picky | None = None) -> str:
        """What was built."""
        return repr(everything or picky)


LINE = {"ticketType": "t", "quantity": 2, "shade": Colour.RED}
NODE = "QTox"
LEAST = {"aLine": {"ticketType": "x"}, "lines": []}
VALUES: list[dict[str, Any]] = [
    LEAST,
    LEAST | {"lines": [LINE, {"ticketType": "u"}], "maybeLines": None},
    LEAST | {"maybeLines": [LINE], "holes": [None, LINE], "rows": [[LINE], []]},
    LEAST
    | {"words": ["a", "b"], "gaps": ["a", None], "another_name": 7, "at": datetime(2026, 1, 1, tzinfo=UTC)},
    LEAST | {"colours": [Colour.BLUE], "node": NODE, "nodes": [NODE], "requiredButNullable": "given"},
    LEAST | {"itself": LEAST | {"itself": LEAST | {"words": ["deep"]}}},
    LEAST | {"aLine": LINE | {"shade": None}, "words": [], "requiredButNullable": None},
]


@pytest.fixture
def unprepared() -> Iterator[strawberry.Schema]:
    """The schema as strawberry made it; what is prepared belongs to its classes, and is taken back."""
    schema = strawberry.Schema(Query)
    definitions = [
        each.definition
        for each in schema.schema_converter.type_map.values()
        if isinstance(each.definition, StrawberryObjectDefinition)
    ]
    for definition in definitions:
        definition.from_input = None
    yield schema
    for definition in definitions:
        definition.from_input = None


def _built(schema: strawberry.Schema, type_: type, value: dict[str, Any]) -> Any:
    converter = schema.schema_converter
    return convert_argument(value, type_, converter.scalar_registry, converter.config)


@pytest.mark.parametrize("value", VALUES)
def test_what_is_built_is_the_same(unprepared: strawberry.Schema, value: dict[str, Any]) -> None:
    """Whatever is there, null or absent."""
    expected = _built(unprepared, Everything, copy.deepcopy(value))
    prepare_inputs(unprepared)
    built = _built(unprepared, Everything, value)
    assert Everything.__strawberry_definition__.from_input is not None  # type: ignore[attr-defined]
    assert built == expected
    assert asdict(built) == asdict(expected)


def test_lists_are_copied(unprepared: strawberry.Schema) -> None:
    """A list that is somebody's default is nobody's to change."""
    prepare_inputs(unprepared)
    for words in (["a"], []):
        built = _built(unprepared, Everything, LEAST | {"words": words})
        assert built.words == words
        assert built.words is not words


def test_null_is_refused_where_it_was(unprepared: strawberry.Schema) -> None:
    """By the rule that asks whether a type builds its own values."""
    prepare_inputs(unprepared)
    assert unprepared.execute_sync("{ take(picky: {size: 1}) }").errors is None
    refused = unprepared.execute_sync("{ take(picky: {size: null}) }").errors
    assert refused is not None
    assert "null" in refused[0].message


def test_every_input_of_ours_is_prepared() -> None:
    """Or a booking's would cost its 46 us again."""
    schema = build_schema()
    prepare_inputs(schema)
    inputs = [
        each.definition
        for each in schema.schema_converter.type_map.values()
        if isinstance(each.definition, StrawberryObjectDefinition) and each.definition.is_input
    ]
    assert len(inputs) > 10
    assert all(each.from_input is not None for each in inputs)
