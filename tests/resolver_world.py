"""A small world for resolvers: four people, Ann's booking, some concerts, in a database of a few dicts."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from graphql import GraphQLError
from strawberry.types.execution import ExecutionResult

from domain.base import (
    BookingId,
    ConcertId,
    DomainError,
    Money,
    Page,
    PageQuery,
    PaymentId,
    PaymentStatus,
    SessionId,
    TicketTypeId,
    Unavailable,
    UserId,
)
from domain.booking import Booking, BookingItem, BookingStatus, Sale, StockLine
from domain.concert import Concert, ConcertFilter, ConcertOrder, ConcertStatus, TicketType
from domain.my_page import MyBooking
from domain.payment import Payment
from domain.ports import Deps, Resync
from domain.user import Session, User, UserRole, Viewer
from resolvers.context import make_context
from schema.root import build_schema

NOW = datetime(2027, 5, 1, 12, tzinfo=UTC)
PRICE = Money(3_500, "EUR")
SCHEMA = build_schema()


def raw(n: int) -> str:
    """The n-th id of any kind."""
    return f"00000000-0000-7000-8000-{n:012d}"


def a_viewer(n: int, *, role: UserRole = UserRole.CUSTOMER) -> Viewer:
    """The n-th person, signed in."""
    user = User(UserId(raw(n)), f"p{n}@example.org", f"Person {n}", role, NOW)
    return Viewer(user, Session(SessionId(raw(n)), user.id, NOW, NOW + timedelta(days=1)))


ANN, BEN, ADMIN = a_viewer(1), a_viewer(2), a_viewer(3, role=UserRole.ADMIN)
EVERYONE = (None, ANN, BEN, ADMIN)


def a_concert(n: int) -> Concert:
    """The n-th concert, on sale now."""
    return Concert(
        id=ConcertId(raw(n)),
        title=f"Night {n}",
        performer="The Trains",
        description="",
        venue="Paradiso",
        time_zone="Europe/Amsterdam",
        starts_at=NOW + timedelta(days=n),
        sales_open_at=NOW - timedelta(days=1),
        sales_close_at=NOW + timedelta(hours=1),
        max_tickets_per_user=6,
        status=ConcertStatus.SCHEDULED,
        created_at=NOW,
    )


def a_sale(n: int) -> Sale:
    """The n-th concert's sale: two ticket types, some seats taken."""
    concert = a_concert(n)
    return Sale(
        concert_id=concert.id,
        title=concert.title,
        venue=concert.venue,
        starts_at=concert.starts_at,
        sales_open_at=concert.sales_open_at,
        sales_close_at=concert.sales_close_at,
        max_tickets_per_user=6,
        is_cancelled=False,
        version=7,
        stock=(
            StockLine(TicketTypeId(raw(100 + n)), "Stalls", PRICE, 10, held=2, sold=3),
            StockLine(TicketTypeId(raw(200 + n)), "Balcony", PRICE, 20, held=0, sold=1),
        ),
    )


BOOKING = Booking(
    id=BookingId(raw(1)),
    user_id=ANN.user.id,
    concert_id=ConcertId(raw(1)),
    items=(BookingItem(TicketTypeId(raw(101)), "Stalls", 2, PRICE),),
    total=Money(7_000, "EUR"),
    status=BookingStatus.APPROVED,
    is_final=False,
    hold_until=NOW,
    is_extended=True,
    is_graced=False,
    retry_pay_at=None,
    payment_id=PaymentId(raw(1)),
    payment_status=PaymentStatus.CAPTURED,
    decline_code=None,
    version=3,
    created_at=NOW,
    updated_at=NOW,
)
PAYMENT = Payment(
    PaymentId(raw(1)),
    BOOKING.id,
    ANN.user.id,
    BOOKING.total,
    PaymentStatus.CAPTURED,
    "pm_card_visa",
    "pi_1",
    None,
    NOW,
    NOW,
    None,
)


@dataclass
class FakeReads:
    """Ann's booking and payment, and so many concerts. Notes every batch it is asked for."""

    concert_count: int = 1
    booking: Booking = BOOKING
    asked: list[tuple[str, int]] = field(default_factory=list)
    is_catalogue_down: bool = False

    def _find(self, name: str, ids: Collection[Any], rows: Mapping[Any, Any]) -> dict[Any, Any]:
        self.asked.append((name, len(ids)))
        return {key: rows[key] for key in ids if key in rows}

    def _numbers(self) -> range:
        return range(1, self.concert_count + 1)

    async def users(self, ids: Collection[UserId]) -> Mapping[UserId, User]:
        return self._find("users", ids, {v.user.id: v.user for v in (ANN, BEN, ADMIN)})

    async def concerts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Concert]:
        if self.is_catalogue_down:
            raise Unavailable("concert")
        return self._find("concerts", ids, {ConcertId(raw(n)): a_concert(n) for n in self._numbers()})

    async def concert_page(
        self, query: PageQuery, *, where: ConcertFilter, order: ConcertOrder
    ) -> Page[Concert]:
        self.asked.append(("concert_page", query.limit))
        return Page(tuple(a_concert(n) for n in self._numbers())[: query.limit], False, False)

    async def ticket_types(self, ids: Collection[TicketTypeId]) -> Mapping[TicketTypeId, TicketType]:
        return self._find("ticket_types", ids, {t.id: t for n in self._numbers() for t in self._types(n)})

    async def ticket_types_of(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, list[TicketType]]:
        return self._find("ticket_types_of", ids, {raw(n): self._types(n) for n in self._numbers()})

    def _types(self, n: int) -> list[TicketType]:
        return [
            TicketType(line.ticket_type_id, ConcertId(raw(n)), line.name, line.price, line.capacity)
            for line in a_sale(n).stock
        ]

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
        return self._find("sales", ids, {ConcertId(raw(n)): a_sale(n) for n in self._numbers()})

    async def bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, Booking]:
        return self._find("bookings", ids, {BOOKING.id: self.booking})

    async def payments(self, ids: Collection[PaymentId]) -> Mapping[PaymentId, Payment]:
        return self._find("payments", ids, {PAYMENT.id: PAYMENT})

    async def my_bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, MyBooking]:
        row = MyBooking(self.booking, a_sale(1).facts)
        return self._find("my_bookings", ids, {BOOKING.id: row})


class FakeReadModel:
    """Never complete: everything is read from the database."""

    async def sales(self, ids: Collection[ConcertId]) -> None:
        return None


@dataclass
class FakeLimiter:
    """Refuses every attempt with `refusal`, after `change` happened to the database."""

    reads: FakeReads
    refusal: DomainError | None = None

    async def admit(self, action: str, *, who: str) -> None:
        self.reads.booking = replace(self.reads.booking, version=self.reads.booking.version + 1)
        if self.refusal is not None:
            raise self.refusal


@dataclass
class FakeLive:
    """Says what it is told to, and remembers how many listen."""

    said: list[Sale | Resync] = field(default_factory=list)
    listening: int = 0

    @asynccontextmanager
    async def listen_sale(self, concert_id: ConcertId) -> AsyncIterator[AsyncIterator[Sale | Resync]]:
        async def heard() -> AsyncIterator[Sale | Resync]:
            for state in self.said:
                yield state

        self.listening += 1
        try:
            yield heard()
        finally:
            self.listening -= 1


@dataclass
class World:
    """Everything a resolver reaches."""

    reads: FakeReads = field(default_factory=FakeReads)
    live: FakeLive = field(default_factory=FakeLive)
    refusal: DomainError | None = None

    @property
    def deps(self) -> Deps:
        """Only what these tests go through; the rest is not there."""
        limiter: Any = FakeLimiter(self.reads, self.refusal)
        rest: Any = dict.fromkeys(
            ("write", "together", "settling", "sign_ins", "gateway", "passwords", "randomness", "rules")
        )
        doors: Any = {"reads": self.reads, "read_model": FakeReadModel(), "live": self.live}
        return Deps(**rest, **doors, limiter=limiter)

    async def ask(
        self, query: str, *, viewer: Viewer | None = None, **variables: object
    ) -> tuple[Any, list[GraphQLError]]:
        """The data and the errors of one operation."""
        context = make_context(self.deps, viewer=viewer, request_id="r", client="127.0.0.1")
        result = await SCHEMA.execute(query, variable_values=variables, context_value=context)
        return result.data, result.errors or []

    async def watch(self, query: str, *, viewer: Viewer | None = None) -> list[ExecutionResult]:
        """Every answer of a subscription."""
        context = make_context(self.deps, viewer=viewer, request_id="r", client="127.0.0.1")
        answers = await SCHEMA.subscribe(query, context_value=context)
        return [answer async for answer in answers]
