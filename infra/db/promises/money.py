"""Money: what was charged, what is under way, what goes back."""

from domain.base import PaymentStatus
from domain.booking import BookingStatus
from domain.payment import CAPTURED_STATUSES, OPEN_STATUSES
from infra.db.promises.promise import Promise, Walk, part
from infra.db.tables import status_in

_IS_APPROVED = status_in("bookings.status", {BookingStatus.APPROVED})
_IS_OVER = status_in("bookings.status", {BookingStatus.CANCELLED, BookingStatus.EXPIRED})
_IS_PENDING = status_in("bookings.status", {BookingStatus.PAYMENT_PENDING})
# A booking that is cancelled does not wait for the answer to what was sent.
_MAY_BE_SENT = status_in("bookings.status", {BookingStatus.PAYMENT_PENDING, BookingStatus.CANCELLED})
_IN_FLIGHT = {PaymentStatus.PROCESSING, PaymentStatus.UNKNOWN}
_IS_UNSETTLED = status_in("payments.status", {*_IN_FLIGHT, PaymentStatus.REQUIRES_ACTION})

MONEY = (
    Promise(
        "approved_is_paid",
        "APPROVED if and only if exactly one captured, not refunded payment of the total exists",
        Walk.BOOKINGS,
        f"""
        WITH captured AS (
            SELECT booking_id, COUNT(*) AS payments, SUM(amount_minor) AS paid_minor, MIN(currency) AS paid_in
            FROM payments WHERE {status_in("status", {PaymentStatus.CAPTURED})} AND {part("booking_id")}
            GROUP BY booking_id
        )
        SELECT 'booking ' || bookings.id || ' is ' || bookings.status || ', to pay ' || total_minor
               || ' ' || currency || '; captured payments ' || COALESCE(payments, 0)
               || ', paid ' || COALESCE(paid_minor, 0) || ' ' || COALESCE(paid_in, '')
        FROM bookings LEFT JOIN captured ON captured.booking_id = bookings.id
        WHERE {part("bookings.id")}
          AND ({_IS_APPROVED} <> (payments IS NOT NULL)
               OR payments <> 1 OR paid_minor <> total_minor OR paid_in <> currency)
        UNION ALL
        SELECT 'booking ' || booking_id || ' is absent, and captured payments ' || payments
        FROM captured WHERE NOT EXISTS (SELECT 1 FROM bookings WHERE bookings.id = captured.booking_id)

        """,
    ),
    Promise(
        "captured_once",
        "a booking's money is captured at most once, also where it went back",
        Walk.BOOKINGS,
        f"""
        SELECT 'booking ' || booking_id || ': money was captured ' || COUNT(*) || ' times'
        FROM payments WHERE {status_in("status", CAPTURED_STATUSES)} AND {part("booking_id")}
        GROUP BY booking_id HAVING COUNT(*) > 1

        """,
    ),
    Promise(
        "refunds_under_way",
        "every pending refund is about to be asked for",
        Walk.BOOKINGS,
        f"""
        SELECT 'payment ' || id || ' of booking ' || booking_id || ' is REFUND_PENDING, and nobody asks for it'
        FROM payments LEFT JOIN (SELECT payload FROM outbox WHERE kind = 'RefundRequested') AS asked
          ON asked.payload = '{{"booking_id":"' || booking_id || '","payment_id":"' || id || '"}}'
        WHERE {status_in("status", {PaymentStatus.REFUND_PENDING})} AND {part("booking_id")}
          AND asked.payload IS NULL

        """,
    ),
    Promise(
        "pending_is_sent",
        "PAYMENT_PENDING if and only if one attempt is PROCESSING or UNKNOWN",
        Walk.BOOKINGS,
        f"""
        WITH sent AS (
            SELECT booking_id, COUNT(*) AS attempts
            FROM payments WHERE {status_in("status", _IN_FLIGHT)} AND {part("booking_id")}
            GROUP BY booking_id
        )
        SELECT 'booking ' || bookings.id || ' is ' || bookings.status || ', and attempts under way are '
               || COALESCE(attempts, 0)
        FROM bookings LEFT JOIN sent ON sent.booking_id = bookings.id
        WHERE {part("bookings.id")}
          AND (({_IS_PENDING} AND attempts IS NULL)
               OR (attempts IS NOT NULL AND NOT {_MAY_BE_SENT}) OR attempts > 1)

        """,
    ),
    Promise(
        "attempts_are_watched",
        "an attempt whose outcome is open has an intent that is looked at, and so has every open intent",
        Walk.BOOKINGS,
        f"""
        SELECT 'payment ' || id || ' of booking ' || booking_id || ' is ' || status
               || ', and nobody looks at its intent'
        FROM payments WHERE {_IS_UNSETTLED} AND {part("booking_id")}
          AND NOT EXISTS (
              SELECT 1 FROM payment_intents
              WHERE payment_intents.intent_id = payments.intent_id AND NOT is_closed AND look_at IS NOT NULL
          )
        UNION ALL
        SELECT 'intent ' || intent_id || ' of booking ' || booking_id || ' is open, and nobody looks at it'
        FROM payment_intents
        WHERE NOT is_closed AND intent_id IS NOT NULL AND look_at IS NULL AND {part("booking_id")}

        """,
    ),
    Promise(
        "shown_payment",
        "a booking shows where its latest attempt stands",
        Walk.BOOKINGS,
        f"""
        WITH newest AS (
            SELECT booking_id, MAX(created_at) AS created_at
            FROM payments WHERE {part("booking_id")} GROUP BY booking_id
        )
        SELECT 'booking ' || bookings.id || ' shows ' || COALESCE(bookings.payment_id, 'no payment')
               || ' as ' || COALESCE(payment_status, 'nothing')
               || '; that one is ' || COALESCE(shown.status, 'absent')
        FROM bookings
        LEFT JOIN newest ON newest.booking_id = bookings.id
        LEFT JOIN payments AS shown ON shown.id = bookings.payment_id AND shown.booking_id = bookings.id
        WHERE {part("bookings.id")}
          AND ((newest.booking_id IS NULL) <> (shown.id IS NULL)
               OR (bookings.payment_id IS NULL) <> (shown.id IS NULL)
               OR (payment_status IS NULL) <> (shown.id IS NULL)
               OR shown.created_at <> newest.created_at OR shown.status <> payment_status
               OR COALESCE(shown.decline_code, '') <> COALESCE(bookings.decline_code, ''))

        """,
    ),
    Promise(
        "final_is_final",
        "final if and only if the booking is over and no money may still move",
        Walk.BOOKINGS,
        f"""
        WITH moving AS (
            SELECT DISTINCT booking_id
            FROM payments WHERE {status_in("status", OPEN_STATUSES)} AND {part("booking_id")}
        )
        SELECT 'booking ' || bookings.id || ' is ' || bookings.status
               || CASE WHEN is_final THEN ' and final' ELSE ' and not final' END
               || CASE WHEN moving.booking_id IS NULL THEN '; no money may move' ELSE '; money may move' END
        FROM bookings LEFT JOIN moving ON moving.booking_id = bookings.id
        WHERE {part("bookings.id")} AND is_final <> ({_IS_OVER} AND moving.booking_id IS NULL)

        """,
    ),
)
