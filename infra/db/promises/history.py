"""What happened: every booking's history, every buyer's count of changes, what was answered under a key."""

from domain.booking import TRANSITIONS, BookingStatus
from infra.db.promises.promise import Promise, Walk, part

# From nothing to the first state; from a state to itself where only the payment's standing changed.
_STEPS = {
    ("", BookingStatus.AWAITING_PAYMENT.value),
    *((status.value, status.value) for status in BookingStatus),
    *((was.value, to.value) for (was, _), to in TRANSITIONS.items()),
}
_STEP_LIST = ", ".join(sorted(f"'{was}>{to}'" for was, to in _STEPS))
_IS_ALLOWED = f"COALESCE(was, '') || '>' || status IN ({_STEP_LIST})"

HISTORY = (
    Promise(
        "history_is_a_chain",
        "a booking's history is a chain of allowed changes without a gap, and its stock versions never fall",
        Walk.BOOKINGS,
        f"""
        WITH steps AS (
            SELECT booking_id, version, was, status, stock_version,
                   LAG(version) OVER history AS last_version,
                   LAG(status) OVER history AS last_status,
                   LAG(stock_version) OVER history AS last_stock_version
            FROM booking_events WHERE {part("booking_id")}
            WINDOW history AS (PARTITION BY booking_id ORDER BY version)
        )
        SELECT 'booking ' || booking_id || ', version ' || version || ': from ' || COALESCE(was, 'nothing')
               || ' to ' || status || ' at stock ' || stock_version
               || '; before it version ' || COALESCE(last_version, 0) || ', ' || COALESCE(last_status, 'nothing')
               || ' at stock ' || COALESCE(last_stock_version, 0)
        FROM steps
        WHERE version <> COALESCE(last_version, 0) + 1 OR COALESCE(was, '') <> COALESCE(last_status, '')
           OR NOT {_IS_ALLOWED} OR stock_version < last_stock_version

        """,
    ),
    Promise(
        "history_ends_now",
        "a booking's history ends where it stands, and no stock version in it is ahead of the sale's",
        Walk.BOOKINGS,
        f"""
        SELECT 'booking ' || bookings.id || ', version ' || bookings.version || ', is ' || bookings.status
               || '; its history ends ' || CASE
                   WHEN beyond.version IS NOT NULL THEN 'later'
                   WHEN latest.version IS NULL THEN 'before'
                   ELSE 'as ' || latest.status || ' at stock ' || latest.stock_version || ' of '
                        || COALESCE(sales.version, 0) END
        FROM bookings
        LEFT JOIN booking_events AS latest
          ON latest.booking_id = bookings.id AND latest.version = bookings.version
        LEFT JOIN booking_events AS beyond
          ON beyond.booking_id = bookings.id AND beyond.version = bookings.version + 1
        LEFT JOIN sales ON sales.concert_id = bookings.concert_id
        WHERE {part("bookings.id")}
          AND (beyond.version IS NOT NULL OR latest.version IS NULL OR latest.status <> bookings.status
               OR COALESCE(latest.payment_status, '') <> COALESCE(bookings.payment_status, '')
               OR latest.concert_id <> bookings.concert_id
               OR sales.version IS NULL OR latest.stock_version > sales.version)

        """,
    ),
    Promise(
        "changes_are_counted",
        "a buyer's version counts every change of their bookings",
        Walk.BUYERS,
        f"""
        WITH changed AS (
            SELECT user_id, SUM(version) AS changes FROM bookings WHERE {part("user_id")} GROUP BY user_id
        )
        SELECT 'buyer ' || changed.user_id || ' has version ' || COALESCE(my_page_version, 0) || ' after '
               || changes || ' changes'
        FROM changed LEFT JOIN buyers ON buyers.user_id = changed.user_id
        WHERE COALESCE(my_page_version, 0) <> changes
        UNION ALL
        SELECT 'buyer ' || buyers.user_id || ' has version ' || my_page_version || ' and no booking'
        FROM buyers LEFT JOIN changed ON changed.user_id = buyers.user_id
        WHERE {part("buyers.user_id")} AND changed.user_id IS NULL

        """,
    ),
    Promise(
        "answers_are_kept",
        "what a key led to is there",
        Walk.BUYERS,
        f"""
        SELECT mutation || ' of user ' || user_id || ' led to ' || COALESCE(reference, 'nothing')
               || ', which is not there'
        FROM idempotency_keys
        WHERE {part("user_id")} AND refusal IS NULL
          AND CASE WHEN reference IS NULL THEN TRUE
                   WHEN mutation IN ('bookConcert', 'cancelBooking')
                   THEN NOT EXISTS (SELECT 1 FROM bookings WHERE bookings.id = reference)
                   WHEN mutation = 'payBooking'
                   THEN NOT EXISTS (SELECT 1 FROM payments WHERE payments.id = reference)
                   ELSE FALSE END

        """,
    ),
)
