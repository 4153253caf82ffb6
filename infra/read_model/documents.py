"""What the read model in Redis writes down, and a digest of all that it holds of a buyer."""

from collections.abc import Sequence
from hashlib import sha1

from domain.booking import Booking, ConcertFacts, Sale
from infra import codec
from infra.read_model.generation import booking_key


def encode(value: Sale | ConcertFacts | Booking, *head: str | int) -> str:
    """The document with the words that scripts read in front."""
    return " ".join(map(str, head)) + "\n" + codec.encode(value).decode()


def encode_booking(booking: Booking) -> str:
    """The booking's document."""
    return encode(booking, booking.version, booking.status.value, booking.concert_id)


def line_of(booking: Booking) -> str:
    """In which set the booking stands, as what, and its document. PostgreSQL writes the same: `infra.db.lines`."""
    return f"{booking.status.value} {' '.join(booking_key(booking))} {encode_booking(booking)}"


def digest_of(version: int, lines: Sequence[str]) -> str:
    """What `scripts.DIGESTS` answers where the buyer has this version, and bookings of these lines."""
    held = [str(version), str(len(lines)), *sorted(lines)]
    return sha1("\n".join(held).encode(), usedforsecurity=False).hexdigest()
