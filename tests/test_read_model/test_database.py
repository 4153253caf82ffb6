"""A read model compared with a database: whatever changes in a row behind the relay's back is named."""

import pytest

from domain.base import PaymentId, PaymentStatus
from infra.db.source import WriteSideSource
from infra.db.unit import Database
from infra.read_model import RedisReadModel, differences, rebuild
from tests.db_world import a_booking, a_sale, open_sale, put_booking, run_sql

pytestmark = pytest.mark.anyio

HARMED = {"bookings": "id = 'b'", "booking_items": "booking_id = 'b'", "buyers": "user_id = 'ada'"}
HARM = [
    ("bookings", "status = 'EXPIRED'", ["booking b.status"]),
    ("bookings", "is_final = TRUE", ["booking b.is_final"]),
    ("bookings", "total_minor = total_minor + 1", ["booking b.total"]),
    ("bookings", "currency = 'USD'", ["booking b.items", "booking b.total"]),
    ("bookings", "hold_until = updated_at", ["booking b.hold_until"]),
    ("bookings", "is_extended = TRUE", ["booking b.is_extended"]),
    ("bookings", "is_graced = TRUE", ["booking b.is_graced"]),
    ("bookings", "retry_pay_at = hold_until", ["booking b.retry_pay_at"]),
    ("bookings", "payment_id = 'other'", ["booking b.payment_id"]),
    ("bookings", "payment_status = 'DECLINED'", ["booking b.payment_status"]),
    ("bookings", "decline_code = 'stolen_card'", ["booking b.decline_code"]),
    ("bookings", "version = version + 1", ["booking b.version"]),
    ("bookings", "created_at = hold_until", ["booking b.created_at"]),
    ("bookings", "updated_at = hold_until", ["booking b.updated_at"]),
    ("bookings", "concert_id = 'c2'", ["booking b.concert_id"]),
    (
        "bookings",
        "user_id = 'eve'",
        ["buyer ada.rows", "buyer ada.total", "buyer eve.rows", "buyer eve.total"],
    ),
    ("booking_items", "ticket_type_id = 'other'", ["booking b.items"]),
    ("booking_items", "name = 'Box'", ["booking b.items"]),
    ("booking_items", "quantity = quantity + 1", ["booking b.items"]),
    ("booking_items", "unit_price_minor = 1", ["booking b.items"]),
    ("buyers", "my_page_version = my_page_version + 1", ["buyer ada.version"]),
]


@pytest.mark.parametrize(
    ("table", "change", "told"), HARM, ids=[f"{table}.{change.split()[0]}" for table, change, _ in HARM]
)
async def test_each_changed_column_is_named(
    database: Database, redis_model: RedisReadModel, table: str, change: str, told: list[str]
) -> None:
    """Nothing differs before, and afterwards what was changed and nothing else."""
    sale = await open_sale(database, a_sale("c"))
    await open_sale(database, a_sale("c2"))
    paid = a_booking(sale, "b", payment_id=PaymentId("p"), payment_status=PaymentStatus.CAPTURED)
    await put_booking(database, paid)
    await put_booking(database, a_booking(sale, "eves", user="eve"))
    source = WriteSideSource(database)
    await rebuild(redis_model, source)
    assert [line async for line in differences(redis_model, source)] == []
    await run_sql(database, f"UPDATE {table} SET {change} WHERE {HARMED[table]}")
    lines = [line async for line in differences(redis_model, source)]
    assert sorted(line.split(": ")[0] for line in lines) == told
