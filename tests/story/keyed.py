"""Mutations under a key, to be sent again."""

from dataclasses import dataclass

from tests.client import Api, Concert, Json


@dataclass(frozen=True)
class Keyed:
    """A mutation that works the first time, and the same one with other arguments."""

    who: Api
    query: str
    input: Json
    other: Json
    success: str

    async def send(self, key: str | None = "k", *, who: Api | None = None) -> Json:
        """As it is meant."""
        return dict(await (who or self.who).ask(self.query, input=self.input | {"idempotencyKey": key}))

    async def send_other(self, key: str = "k") -> Json:
        """With other arguments."""
        return dict(await self.who.ask(self.query, input=self.other | {"idempotencyKey": key}))


def items(concert: Concert, quantity: int) -> list[Json]:
    """So many tickets of the first type."""
    return [{"ticketTypeId": concert.types[0], "quantity": quantity}]
