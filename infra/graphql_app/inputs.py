"""Input objects built by what is known of their types, instead of finding it out for each request.

strawberry looks up names, types and defaults of each field of each value, 46 us for the input of a booking. It leaves
that to types which build their own values (`StrawberryObjectDefinition.from_input`); here all do.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any

import strawberry
from strawberry.relay import GlobalID
from strawberry.schema.compat import is_scalar
from strawberry.types.arguments import InputContext
from strawberry.types.base import (
    StrawberryList,
    StrawberryMaybe,
    StrawberryObjectDefinition,
    StrawberryOptional,
    StrawberryType,
)

_Build = Callable[[type, Mapping[str, Any], InputContext], Any]
_Convert = Callable[[Any, InputContext], Any]


def prepare_inputs(schema: strawberry.Schema) -> None:
    """The input types of the schema build their values like this from now on. May be repeated.

    One with `strawberry.Maybe` does not: strawberry then leaves it to the type to refuse null.
    """
    definitions = [known.definition for known in schema.schema_converter.type_map.values()]
    inputs = [each for each in definitions if isinstance(each, StrawberryObjectDefinition) and each.is_input]
    prepared = [
        each for each in inputs if not any(isinstance(kind, StrawberryMaybe) for kind in _kinds(each))
    ]
    for definition in prepared:
        definition.from_input = _builder(schema, definition, {each.origin: each for each in prepared})


def _kinds(definition: StrawberryObjectDefinition) -> list[Any]:
    return [field.resolve_type(type_definition=definition) for field in definition.fields]


def _builder(
    schema: strawberry.Schema,
    definition: StrawberryObjectDefinition,
    prepared: Mapping[type, StrawberryObjectDefinition],
) -> _Build:
    fields: list[tuple[str, str, _Convert]] = []
    for field, kind in zip(definition.fields, _kinds(definition), strict=True):
        name = schema.config.name_converter.from_field(field)
        fields.append((name, field.python_name, _converter(schema, kind, name, prepared)))
    # What may be absent is null then, unless it has a default.
    absent = {
        field.python_name: None
        for field in definition.fields
        if field.default_value is MISSING and field.default_factory is MISSING
    }

    def build(type_: type, value: Mapping[str, Any], context: InputContext) -> Any:
        values: dict[str, Any] = absent.copy()
        for name, python_name, convert in fields:
            if name in value:
                given = value[name]
                is_nothing = given is None or given is strawberry.UNSET
                values[python_name] = given if is_nothing else convert(given, context)
        return type_(**values)

    return build


def _converter(
    schema: strawberry.Schema, kind: Any, name: str, prepared: Mapping[type, StrawberryObjectDefinition]
) -> _Convert:
    """How a value that is not null becomes one of this kind. Scalars, inputs and lists of these are known here."""
    kind = kind.of_type if isinstance(kind, StrawberryOptional) else kind
    if _is_plain(schema, kind):
        return lambda value, _: value
    if not isinstance(kind, StrawberryType) and kind in prepared:
        definition = prepared[kind]
        return lambda value, context: _built(definition, value, context)
    if isinstance(kind, StrawberryList):
        if _is_plain(schema, kind.of_type):
            # A copy: everybody who leaves it out is given the same default.
            return lambda value, _: list(value)
        if not isinstance(kind.of_type, StrawberryType) and kind.of_type in prepared:
            of_type = prepared[kind.of_type]
            return lambda value, context: [_built(of_type, each, context) for each in value]
    return lambda value, context: context.convert(value, kind, name)


def _is_plain(schema: strawberry.Schema, kind: Any) -> bool:
    return kind is not GlobalID and is_scalar(kind, schema.schema_converter.scalar_registry)


def _built(definition: StrawberryObjectDefinition, value: Any, context: InputContext) -> Any:
    assert definition.from_input is not None, "it was prepared"
    return definition.from_input(definition.origin, value, context)
