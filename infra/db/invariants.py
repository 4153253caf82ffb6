"""What is always true (DESIGN.md, 1 to 4), asked of a live database: each query finds the broken promises.

Each is one statement, hence one snapshot: bookings and payments that go on meanwhile break nothing here.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sqlalchemy import text

from domain.base import PaymentStatus
from domain.booking import HOLDING, LIVE, BookingStatus
from infra.db.tables import status_in
from infra.db.unit import Database

# Enough to see what is wrong; more of the same helps nobody.
SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold, and the query for what breaks it: one text per row, at most `:shown` rows."""

    title: str
    query: str


async def broken(database: Database, progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[str]:
    """Every broken promise, at most SHOWN_MAX of a kind; `progress` hears what is being checked.

    Raises: DatabaseAway, Overloaded.
    """
    for promise in PROMISES:
        progress(f"Checking: {promise.title}")
        async with database.patient_readers.transaction() as statements:
            rows = await statements.rows(text(promise.query).bindparams(shown=SHOWN_MAX))
        for row in rows:
            yield f"{promise.title}: {row[0]}"


_IS_LIVE = status_in("bookings.status", LIVE)
_IS_HOLDING = status_in("bookings.status", HOLDING)
_IS_APPROVED = status_in("bookings.status", {BookingStatus.APPROVED})
_IS_CAPTURED = status_in("payments.status", {PaymentStatus.CAPTURED})

PROMISES = (
    Promise(
        "held + sold <= capacity, and nothing is available of a cancelled concert",
        """
        SELECT 'ticket type ' || ticket_type_id || ': capacity ' || capacity
               || ', held ' || held || ', sold ' || sold
        FROM sale_stock JOIN sales ON sales.concert_id = sale_stock.concert_id
        WHERE held < 0 OR sold < 0 OR held + sold > capacity OR (is_cancelled AND held + sold <> capacity)
        ORDER BY ticket_type_id LIMIT :shown
        """,
    ),
    Promise(
        "the counters equal the sums over bookings",
        f"""
        WITH counted AS (
            SELECT ticket_type_id,
                   SUM(CASE WHEN {_IS_HOLDING} THEN quantity ELSE 0 END) AS held,
                   SUM(CASE WHEN {_IS_APPROVED} THEN quantity ELSE 0 END) AS sold
            FROM booking_items JOIN bookings ON bookings.id = booking_items.booking_id
            WHERE {_IS_LIVE}
            GROUP BY ticket_type_id
        )
        SELECT 'ticket type ' || sale_stock.ticket_type_id
               || ': held ' || sale_stock.held || ', sold ' || sale_stock.sold
               || '; bookings hold ' || COALESCE(counted.held, 0) || ', own ' || COALESCE(counted.sold, 0)
        FROM sale_stock LEFT JOIN counted ON counted.ticket_type_id = sale_stock.ticket_type_id
        WHERE sale_stock.held <> COALESCE(counted.held, 0) OR sale_stock.sold <> COALESCE(counted.sold, 0)
        UNION ALL
        SELECT 'ticket type ' || ticket_type_id || ': no stock; bookings hold ' || held || ', own ' || sold
        FROM counted WHERE ticket_type_id NOT IN (SELECT ticket_type_id FROM sale_stock)
        LIMIT :shown
        """,
    ),
    Promise(
        "APPROVED if and only if exactly one captured, not refunded payment of the total exists",
        f"""
        WITH captured AS (
            SELECT booking_id, COUNT(*) AS payments, SUM(amount_minor) AS paid_minor, MIN(currency) AS paid_in
            FROM payments WHERE {_IS_CAPTURED} GROUP BY booking_id
        )
        SELECT 'booking ' || bookings.id || ' is ' || bookings.status || ', to pay ' || total_minor
               || ' ' || currency || '; captured payments ' || COALESCE(payments, 0)
               || ', paid ' || COALESCE(paid_minor, 0) || ' ' || COALESCE(paid_in, '')
        FROM bookings LEFT JOIN captured ON captured.booking_id = bookings.id
        WHERE {_IS_APPROVED} <> (payments IS NOT NULL)
           OR payments <> 1 OR paid_minor <> total_minor OR paid_in <> currency
        UNION ALL
        SELECT 'booking ' || booking_id || ' is absent, and captured payments ' || payments
        FROM captured WHERE NOT EXISTS (SELECT 1 FROM bookings WHERE bookings.id = captured.booking_id)
        LIMIT :shown
        """,
    ),
    Promise(
        "nobody's live tickets of a concert exceed the limit in force at their last booking",
        f"""
        WITH owned AS (
            SELECT concert_id, user_id, SUM(ticket_quantity) AS tickets
            FROM bookings WHERE {_IS_LIVE}
            GROUP BY concert_id, user_id HAVING SUM(ticket_quantity) > MIN(max_tickets_per_user)
        ), judged AS (
            SELECT owned.concert_id, owned.user_id, owned.tickets, (
                SELECT bookings.max_tickets_per_user FROM bookings
                WHERE bookings.concert_id = owned.concert_id AND bookings.user_id = owned.user_id AND {_IS_LIVE}
                ORDER BY bookings.created_at DESC, bookings.id DESC LIMIT 1
            ) AS allowed
            FROM owned
        )
        SELECT 'user ' || user_id || ' has ' || tickets || ' tickets of concert ' || concert_id
               || ', allowed were ' || allowed
        FROM judged WHERE tickets > allowed
        LIMIT :shown
        """,
    ),
)
