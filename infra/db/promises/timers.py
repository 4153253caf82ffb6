"""What is due happens: a timer that was lost, or a worker that does not work, shows here."""

from domain.booking import PAYABLE
from infra.db.promises.promise import Promise, Walk
from infra.db.tables import status_in

# Far more than a busy worker needs, or one that is being replaced.
HOLD_LATE_S = 120.0
LOOK_LATE_S = 900.0
# The refunds of a concert with 10,000 bookings, at the pace that a processor allows.
EVENT_LATE_S = 3_600.0
# A worker comes by every ten minutes (contract, "retry": kept for 72 h).
KEY_LATE_S = 73 * 3_600.0

TIMERS = (
    Promise(
        "holds_end",
        f"no hold is left for more than {HOLD_LATE_S:.0f} s past its end",
        Walk.WHOLE,
        # A payment that was under way when the hold ended may come to nothing much later: that counts from then.
        f"""
        SELECT 'booking ' || id || ' is ' || status || ' since its hold has ended'
        FROM bookings WHERE {status_in("status", PAYABLE)} AND hold_until <= :late AND updated_at <= :late
        ORDER BY hold_until
        """,
        HOLD_LATE_S,
    ),
    Promise(
        "looks_happen",
        f"no intent waits for a look for more than {LOOK_LATE_S:.0f} s",
        Walk.WHOLE,
        """
        SELECT 'intent ' || intent_id || ' of booking ' || booking_id || ' was to be looked at'
        FROM payment_intents WHERE look_at <= :late
        ORDER BY look_at
        """,
        LOOK_LATE_S,
    ),
    Promise(
        "events_are_told",
        f"no event waits for more than {EVENT_LATE_S:.0f} s",
        Walk.WHOLE,
        """
        SELECT kind || ' ' || id || ' waits after ' || attempts || ' attempts: ' || COALESCE(error, 'no error')
        FROM outbox WHERE created_at <= :late
        ORDER BY created_at
        """,
        EVENT_LATE_S,
    ),
    Promise(
        "keys_are_forgotten",
        f"no key is kept for more than {KEY_LATE_S / 3_600:.0f} h",
        Walk.WHOLE,
        """
        SELECT mutation || ' of user ' || user_id || ' keeps its key'
        FROM idempotency_keys WHERE claimed_at <= :late
        ORDER BY claimed_at
        """,
        KEY_LATE_S,
    ),
)
