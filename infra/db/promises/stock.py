"""Seats: what is held and sold, and by whom."""

from domain.booking import HOLDING, LIVE, BookingStatus
from infra.db.promises.promise import Promise, Walk, part
from infra.db.tables import status_in

_IS_LIVE = status_in("bookings.status", LIVE)
_IS_HOLDING = status_in("bookings.status", HOLDING)
_IS_APPROVED = status_in("bookings.status", {BookingStatus.APPROVED})

# Where one of these is broken nobody knows how many seats are free: the concert's sales are stopped.
COUNTERS = (
    Promise(
        "stock_bounds",
        "held + sold <= capacity, and nothing is available of a cancelled concert",
        Walk.CONCERTS,
        f"""
        SELECT 'ticket type ' || ticket_type_id || ' of concert ' || sales.concert_id || ': capacity ' || capacity
               || ', held ' || held || ', sold ' || sold, sales.concert_id
        FROM sale_stock JOIN sales ON sales.concert_id = sale_stock.concert_id
        WHERE {part("sale_stock.concert_id")}
          AND (held < 0 OR sold < 0 OR held + sold > capacity OR (is_cancelled AND held + sold <> capacity))
        ORDER BY ticket_type_id
        """,
    ),
    Promise(
        "stock_sums",
        "the counters equal the sums over bookings",
        Walk.CONCERTS,
        f"""
        WITH counted AS (
            SELECT bookings.concert_id, ticket_type_id,
                   SUM(CASE WHEN {_IS_HOLDING} THEN quantity ELSE 0 END) AS held,
                   SUM(CASE WHEN {_IS_APPROVED} THEN quantity ELSE 0 END) AS sold
            FROM bookings JOIN booking_items ON booking_items.booking_id = bookings.id
            WHERE {_IS_LIVE} AND {part("bookings.concert_id")}
            GROUP BY bookings.concert_id, ticket_type_id
        )
        SELECT 'ticket type ' || sale_stock.ticket_type_id || ' of concert ' || sale_stock.concert_id
               || ': held ' || sale_stock.held || ', sold ' || sale_stock.sold
               || '; bookings hold ' || COALESCE(counted.held, 0) || ', own ' || COALESCE(counted.sold, 0),
               sale_stock.concert_id
        FROM sale_stock LEFT JOIN counted
          ON counted.ticket_type_id = sale_stock.ticket_type_id AND counted.concert_id = sale_stock.concert_id
        WHERE {part("sale_stock.concert_id")}
          AND (sale_stock.held <> COALESCE(counted.held, 0) OR sale_stock.sold <> COALESCE(counted.sold, 0))
        UNION ALL
        SELECT 'ticket type ' || counted.ticket_type_id || ' of concert ' || counted.concert_id
               || ': no stock; bookings hold ' || counted.held || ', own ' || counted.sold, counted.concert_id
        FROM counted LEFT JOIN sale_stock
          ON sale_stock.ticket_type_id = counted.ticket_type_id AND sale_stock.concert_id = counted.concert_id
        WHERE sale_stock.ticket_type_id IS NULL

        """,
    ),
)

STOCK = (
    *COUNTERS,
    Promise(
        "ticket_limit",
        "nobody's live tickets of a concert exceed the limit in force at their last booking",
        Walk.CONCERTS,
        f"""
        WITH owned AS (
            SELECT concert_id, user_id, SUM(ticket_quantity) AS tickets
            FROM bookings WHERE {_IS_LIVE} AND {part("concert_id")}
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

        """,
    ),
    Promise(
        "bookings_called_off",
        "every live booking of a cancelled concert is about to be cancelled",
        Walk.CONCERTS,
        f"""
        SELECT 'concert ' || sales.concert_id || ' is cancelled, has live bookings, and nobody cancels them'
        FROM sales LEFT JOIN (SELECT payload FROM outbox WHERE kind = 'SaleClosed') AS asked
          ON asked.payload = '{{"concert_id":"' || sales.concert_id || '"}}'
        WHERE is_cancelled AND {part("sales.concert_id")} AND asked.payload IS NULL
          AND EXISTS (SELECT 1 FROM bookings WHERE bookings.concert_id = sales.concert_id AND {_IS_LIVE})

        """,
    ),
    Promise(
        "booking_sums",
        "a booking's tickets and total are those of its items",
        Walk.BOOKINGS,
        f"""
        WITH summed AS (
            SELECT booking_id, SUM(quantity) AS tickets, SUM(quantity * unit_price_minor) AS cost_minor
            FROM booking_items WHERE {part("booking_id")}
            GROUP BY booking_id
        )
        SELECT 'booking ' || id || ' is of ' || ticket_quantity || ' tickets for ' || total_minor
               || '; its items are ' || COALESCE(tickets, 0) || ' for ' || COALESCE(cost_minor, 0)
        FROM bookings LEFT JOIN summed ON summed.booking_id = bookings.id
        WHERE {part("bookings.id")}
          AND (ticket_quantity <> COALESCE(tickets, 0) OR total_minor <> COALESCE(cost_minor, 0))

        """,
    ),
)
