"""What is asked, the same of every server that answers it."""

from bench.shop import Ticket, token_of
from bench.wire import NUMBER, post

BOOK = """mutation Book($input: BookConcertInput!) { bookConcert(input: $input) { __typename
  ... on BookConcertSuccess { booking { id status payBy total { amountMinor currency }
    items { ticketTypeId quantity } } }
  ... on Problem { code message } } }"""
PAY = """mutation Pay($input: PayBookingInput!) { payBooking(input: $input) { __typename
  ... on PayBookingSuccess { booking { id status } }
  ... on PaymentDeferred { retryAfterMs }
  ... on PaymentPending { booking { id status } }
  ... on Problem { code message } } }"""
_CARD = """id title performer venue startsAt status
  ticketTypes { id name price { amountMinor currency } } ticketCount { available version }"""
CONCERTS = f"""query Concerts($first: Int!, $after: String) {{ concerts(first: $first, after: $after) {{ __typename
  pageInfo {{ hasNextPage endCursor }} edges {{ node {{ {_CARD} }} }} }} }}"""
CONCERT = f"query Concert($id: ID!) {{ concert(id: $id) {{ __typename description {_CARD} }} }}"
MY_PAGE = """query Mine { myPage { __typename bookings(first: 20) { totalCount pageInfo { hasNextPage endCursor }
  edges { node { bookingId concertTitle venue startsAt ticketQuantity status paymentStatus
    total { amountMinor currency } } } } } }"""
WATCH_MINE = """subscription Mine { myBookingUpdates { bookingId status paymentStatus version
  booking { concertTitle startsAt ticketQuantity } } }"""
WATCH = """subscription Watch($id: ID!) { ticketCount(concertId: $id) {
  concertId status capacity available held sold version
  ticketTypes { ticketTypeId name capacity available held sold price { amountMinor currency } } } }"""
TOKEN = token_of(NUMBER.decode())


def booking_input(ticket: Ticket) -> dict[str, object]:
    """One ticket, under a key that no other request has."""
    return {
        "concertId": ticket.concert_gid,
        "items": [{"ticketTypeId": ticket.ticket_type_gid, "quantity": 1}],
        "idempotencyKey": f"book-{NUMBER.decode()}",
    }


def paying(booking_id: str) -> dict[str, object]:
    """The body of a request to pay it with a card that is good, under a key of its own."""
    key = f"pay-{booking_id}"
    wanted = {"bookingId": booking_id, "paymentMethodId": "pm_card_visa", "idempotencyKey": key}
    return {"query": PAY, "variables": {"input": wanted}}


def booking(ticket: Ticket) -> bytes:
    """The request of a buyer who books it, signed in."""
    return post({"query": BOOK, "variables": {"input": booking_input(ticket)}}, token=TOKEN)
