"""Which subscriptions say the same to everybody who asks alike, whoever it is."""

from collections.abc import Collection, Iterator

from graphql import (
    BREAK,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    VisitorAction,
    visit,
)
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField


def shared_operations(
    document: DocumentNode, schema: GraphQLSchema, roots: Collection[str]
) -> Iterator[OperationDefinitionNode]:
    """Subscriptions of a valid document to one of these root fields, that select nothing a resolver decides.

    A resolver knows who asks. What has none is read off the object, which is the same for all.
    """
    fragments = [each for each in document.definitions if isinstance(each, FragmentDefinitionNode)]
    for operation in document.definitions:
        if isinstance(operation, OperationDefinitionNode) and _root(operation) in roots:
            looks = _Looks(schema, roots)
            for part in (operation, *fragments):
                visit(part, TypeInfoVisitor(looks.type_info, looks))
            if not looks.has_resolver:
                yield operation


def _root(operation: OperationDefinitionNode) -> str | None:
    """The only root field of a subscription; None where it is not spelled out, or for what is none."""
    first = operation.selection_set.selections[0]
    is_subscription = operation.operation is OperationType.SUBSCRIPTION
    return first.name.value if is_subscription and isinstance(first, FieldNode) else None


class _Looks(Visitor):
    """Whether any field below the root has a resolver, or may have one."""

    def __init__(self, schema: GraphQLSchema, roots: Collection[str]) -> None:
        super().__init__()
        self.type_info = TypeInfo(schema)
        self.has_resolver = False
        self._root_type = schema.subscription_type
        self._roots = roots

    def enter_field(self, node: FieldNode, *_: object) -> VisitorAction:
        """One selected field."""
        name, parent = node.name.value, self.type_info.get_parent_type()
        if parent is self._root_type:
            self.has_resolver = name not in self._roots
        elif name != "__typename":
            field = self.type_info.get_field_def()
            definition = field and field.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)
            # Behind an interface's field may stand another one's resolver.
            is_read = isinstance(definition, StrawberryField) and definition.is_basic_field
            self.has_resolver = not (is_read and isinstance(parent, GraphQLObjectType))
        return BREAK if self.has_resolver else None
