"""What a refused request answers, taken apart."""

from base64 import b64encode
from typing import Any
from uuid import uuid4

from tests.client import Api, Json

GET_NODE = "query($id: ID!) { node(id: $id) { __typename id } }"


def global_id(kind: str, raw: str | None = None) -> str:
    """An id as the API writes them; of nothing that exists, unless told otherwise."""
    return b64encode(f"{kind}:{raw or uuid4()}".encode()).decode()


def wrong_fields(result: Json) -> list[list[str]]:
    """The paths of an InvalidInputProblem, which it must be."""
    assert (result["__typename"], result["code"]) == ("InvalidInputProblem", "INVALID_INPUT"), result
    assert result["retryable"] is False and all(each["message"] for each in result["fields"]), result
    return [each["path"] for each in result["fields"]]


def is_not_found(result: Json) -> bool:
    """Whether it is a NotFoundProblem."""
    return (result["__typename"], result["code"]) == ("NotFoundProblem", "NOT_FOUND")


async def code_of(api: Api, query: str, **variables: Any) -> str:
    """The code of the only error."""
    error = await api.error(query, **variables)
    assert error["message"] and error["extensions"]["requestId"], error
    return str(error["extensions"]["code"])


async def stream_code(api: Api, query: str, **variables: Any) -> str:
    """The code with which a subscription is refused."""
    async with api.watching(query, **variables) as stream:
        message = await stream.message()
    assert message["type"] == "error", message
    (error,) = message["payload"]
    return str(error["extensions"]["code"])


def item(ticket_type_id: str, quantity: object = 1) -> Json:
    """A line of bookConcert."""
    return {"ticketTypeId": ticket_type_id, "quantity": quantity}
