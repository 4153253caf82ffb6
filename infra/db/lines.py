"""Bookings as lines of text that PostgreSQL writes, the same that `infra.read_model.documents.line_of` makes of them.

Making bookings of a million rows, and JSON of these, takes Python several times as long as PostgreSQL takes to write
the JSON at once. Nothing depends on it that the two agree: whoever is suspected is compared field by field.
"""


def _string(column: str) -> str:
    return f"COALESCE(to_json({column})::text, 'null')"


def _moment(column: str) -> str:
    # Without microseconds where there are none, as orjson writes it.
    text = f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
    return f"""COALESCE('"' || replace({text}, '.000000', '') || 'Z"', 'null')"""


def _flag(column: str) -> str:
    return f"CASE WHEN {column} THEN 'true' ELSE 'false' END"


def _object(**fields: str) -> str:
    members = ", ',', ".join(f"""'"{name}":', {value}""" for name, value in fields.items())
    return f"concat('{{', {members}, '}}')"


def _money(column: str) -> str:
    return _object(amount_minor=column, currency=_string("bookings.currency"))


_ITEM = _object(
    ticket_type_id=_string("ticket_type_id"),
    name=_string("name"),
    quantity="quantity",
    unit_price=_money("unit_price_minor"),
)
_ITEMS = f"""
    (SELECT concat('[', string_agg({_ITEM}, ',' ORDER BY position), ']')
     FROM booking_items WHERE booking_id = bookings.id)
"""
# In the order of the fields of `domain.booking.Booking`.
_BOOKING = _object(
    id=_string("id"),
    user_id=_string("user_id"),
    concert_id=_string("concert_id"),
    items=_ITEMS,
    total=_money("total_minor"),
    status=_string("status"),
    is_final=_flag("is_final"),
    hold_until=_moment("hold_until"),
    is_extended=_flag("is_extended"),
    is_graced=_flag("is_graced"),
    retry_pay_at=_moment("retry_pay_at"),
    payment_id=_string("payment_id"),
    payment_status=_string("payment_status"),
    decline_code=_string("decline_code"),
    version="version",
    created_at=_moment("created_at"),
    updated_at=_moment("updated_at"),
)
_KEY = """to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00 "') || id"""
# Of a row of `bookings`.
BOOKING_LINE = f"concat(status, ' ', {_KEY}, ' ', version, ' ', status, ' ', concert_id, chr(10), {_BOOKING})"
