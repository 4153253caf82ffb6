"""Documents: parsed and validated once, bounded in size, depth and aliases, and kept while there is room.

strawberry's QueryDepthLimiter and MaxAliasesLimiter walk a fragment once per spread (exponential), and its
ParserCache and ValidationCache count entries, whatever their size.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
    specified_rules,
    validate,
)
from graphql.validation.rules import overlapping_fields_can_be_merged
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from domain.base import BadUserInput
from infra.graphql_app.errors import VALIDATION_FAILED, PersistedQueryNotFound
from infra.graphql_app.execution import Selections
from infra.graphql_app.limits import Limits
from infra.graphql_app.requests import OperationRequest, query_hash
from infra.graphql_app.sharing import shared_operations

T = TypeVar("T")
# As strawberry.Schema validates.
_RULES = (*specified_rules, MaybeNullValidationRule, OneOfInputValidationRule)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a valid document, ready to run."""

    query: str
    document: DocumentNode
    kind: OperationType
    name: str | None
    # The only root field's; None where there are several, or it is not spelled out.
    field: str | None
    # A subscription that says the same to everybody who asks with the same variables.
    is_shared: bool
    # It asks for the same fields whatever its variables are.
    is_fixed: bool
    # Those fields, where they are worth keeping.
    selections: Selections | None


class InvalidDocument(Exception):
    """The document breaks the schema's rules or our limits; `errors` say how."""

    def __init__(self, errors: tuple[GraphQLError, ...]) -> None:
        self.errors = errors
        super().__init__(errors[0].message)


class Documents:
    """Finds what a request wants to run. Synchronous; the work of one document is bounded by `max_tokens`."""

    def __init__(self, schema: GraphQLSchema, limits: Limits, shared: Collection[str]) -> None:
        self._schema = schema
        self._limits = limits
        self._shared = shared
        self._checked: _Shelf[_Checked] = _Shelf(limits.max_cached_document_chars)
        # The way that graphql-core offers to set it, for the whole process.
        overlapping_fields_can_be_merged.MAX_COMPLEXITY_BUDGET = limits.max_field_comparisons
        self._persisted: _Shelf[str] = _Shelf(limits.max_persisted_query_chars)

    def find(self, request: OperationRequest) -> Operation:
        """The operation that the request names.

        Raises: GraphQLSyntaxError, InvalidDocument, PersistedQueryNotFound; BadUserInput where the name fits none.
        """
        query = self._query(request)
        checked = self._checked.get(query)
        if checked is None:
            checked = self._check(query)
            self._checked.put(query, checked, chars=len(query))
        if checked.errors:
            raise InvalidDocument(checked.errors)
        operation = checked.operations.get(request.operation_name)
        if operation is not None:
            return operation
        if request.operation_name is not None:
            raise BadUserInput(f"Unknown operation named {request.operation_name!r}.")
        raise BadUserInput("Name one of the document's operations in `operationName`.")

    def known(self, request: OperationRequest) -> Operation | None:
        """The operation of a document that was found valid before; that costs next to nothing."""
        query = request.query
        if query is None and request.persisted_hash is not None:
            query = self._persisted.get(request.persisted_hash)
        checked = None if query is None else self._checked.get(query)
        return None if checked is None else checked.operations.get(request.operation_name)

    def _query(self, request: OperationRequest) -> str:
        if request.query is None:
            assert request.persisted_hash is not None, "a request without query and hash was let in"
            query = self._persisted.get(request.persisted_hash)
            if query is None:
                raise PersistedQueryNotFound()
            return query
        if request.persisted_hash is not None:
            if request.persisted_hash != query_hash(request.query):
                raise BadUserInput("`extensions.persistedQuery.sha256Hash` is not the hash of `query`.")
            self._persisted.put(request.persisted_hash, request.query, chars=len(request.query))
        return request.query

    def _check(self, query: str) -> "_Checked":
        limits = self._limits
        document = parse(query, max_lexical_tokens=limits.max_tokens, max_comments=limits.max_tokens)
        # Validated first: afterwards every fragment exists and none is part of a cycle.
        errors = validate(self._schema, document, _RULES, max_errors=limits.max_validation_errors)
        sized = [] if errors else _sized(document)
        errors = errors or list(_broken_limits(sized, limits))
        for error in errors:
            error.extensions = {**(error.extensions or {}), "code": VALIDATION_FAILED}
        if errors:
            return _Checked(tuple(errors), {})
        shared = tuple(shared_operations(document, self._schema, self._shared))
        found = [_operation(query, document, node, size, shared) for node, size in sized]
        only = [(None, found[0])] if len(found) == 1 else []
        return _Checked((), dict([*((each.name, each) for each in found), *only]))


@dataclass(frozen=True, slots=True)
class _Checked:
    errors: tuple[GraphQLError, ...]
    # By name, and the only one of a document under None as well: GetOperation of the specification, section 6.1.
    operations: Mapping[str | None, Operation]


def _sized(document: DocumentNode) -> list[tuple[OperationDefinitionNode, "_Size"]]:
    sizes = _Sizes(document)
    nodes = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    return [(node, sizes.of(node.selection_set)) for node in nodes]


def _operation(
    query: str,
    document: DocumentNode,
    node: OperationDefinitionNode,
    size: "_Size",
    shared: Collection[OperationDefinitionNode],
) -> Operation:
    is_fixed = "@" not in query  # a directive may leave some out
    return Operation(
        query=query,
        document=document,
        kind=node.operation,
        name=node.name.value if node.name else None,
        field=_only_field(node),
        is_shared=any(node is each for each in shared),
        is_fixed=is_fixed,
        # Fragments that spread fragments select more than may be kept for a document of this length.
        selections=Selections() if is_fixed and size.fields <= len(query) else None,
    )


def _only_field(operation: OperationDefinitionNode) -> str | None:
    fields = operation.selection_set.selections
    return fields[0].name.value if len(fields) == 1 and isinstance(fields[0], FieldNode) else None


class _Size(NamedTuple):
    depth: int = 0
    aliases: int = 0
    fields: int = 0


class _Sizes:
    """Of a valid document's operations: each fragment is walked once, and counts as often as it is spread."""

    def __init__(self, document: DocumentNode) -> None:
        self._fragments: Mapping[str, FragmentDefinitionNode] = {
            each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._known: dict[str, _Size] = {}

    def of(self, selection_set: SelectionSetNode | None) -> _Size:
        depth = aliases = fields = 0
        for selection in selection_set.selections if selection_set else ():
            level = 0
            if isinstance(selection, FragmentSpreadNode):
                below = self._of_fragment(selection.name.value)
            elif isinstance(selection, FieldNode):
                level = 1
                aliases += selection.alias is not None
                fields += 1
                below = self.of(selection.selection_set)
                if selection.name.value.startswith("__"):
                    # Tools ask deeply; a rule of graphql-core's bounds these.
                    level, below = 0, below._replace(depth=0)
            else:
                assert isinstance(selection, InlineFragmentNode)
                below = self.of(selection.selection_set)
            depth = max(depth, level + below.depth)
            aliases += below.aliases
            fields += below.fields
        return _Size(depth, aliases, fields)

    def _of_fragment(self, name: str) -> _Size:
        if name not in self._known:
            self._known[name] = self.of(self._fragments[name].selection_set)
        return self._known[name]


def _broken_limits(
    sizes: Sequence[tuple[OperationDefinitionNode, _Size]], limits: Limits
) -> Iterator[GraphQLError]:
    for operation, size in sizes:
        if size.depth > limits.max_depth:
            text = f"The operation is {size.depth} levels deep; at most {limits.max_depth} are allowed."
            yield GraphQLError(text, operation)
        if size.aliases > limits.max_aliases:
            text = f"The operation has {size.aliases} aliases; at most {limits.max_aliases} are allowed."
            yield GraphQLError(text, operation)


class _Shelf(Generic[T]):
    """Keeps what was used last, up to a number of characters."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._chars = 0
        self._kept: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def get(self, key: str) -> T | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: str, value: T, *, chars: int) -> None:
        if key in self._kept or chars > self._max_chars:
            return
        self._kept[key] = (value, chars)
        self._chars += chars
        while self._chars > self._max_chars:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._chars -= dropped
