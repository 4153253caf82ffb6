"""The GraphQL endpoint on HTTP and websockets: what may come in, how it is run, what goes out.

`GraphQLApp` is the ASGI application for `/graphql`. strawberry executes. Reading requests, limits, errors and
the graphql-transport-ws protocol are ours: strawberry's views answer 500 or 1006 to malformed messages and make
one context per socket (DESIGN, "Traps"), and more of them would have to be overridden than kept.
"""

from infra.graphql_app.app import GraphQLApp
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import MakeContext

__all__ = ["GraphQLApp", "Limits", "MakeContext"]
