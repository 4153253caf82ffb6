"""A few concerts and an admin, so that a newcomer has something to look at. On an empty database only."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from domain.base import Money, PageQuery, SessionId
from domain.concert import ConcertFilter, ConcertOrder, NewTicketType
from domain.ports import Deps
from domain.use_cases.concert import RegisterConcert, register_concert
from domain.use_cases.user import SignUp, create_admin
from domain.user import EmailTaken, Session, Viewer

ADMIN_EMAIL = "admin@frontrow.example"


async def fill_empty(deps: Deps, *, say: Callable[[str], None]) -> None:
    """Demo concerts are on sale and an admin exists, where there was nothing; the password is said this once."""
    page = await deps.reads.concert_page(
        PageQuery(limit=1), where=ConcertFilter(), order=ConcertOrder.STARTS_AT_ASC
    )
    if page.rows:
        return
    password = secrets.token_urlsafe(12)
    try:
        admin = await create_admin(deps, SignUp(ADMIN_EMAIL, password, "Demo admin"))
    except EmailTaken:
        return
    now = (await deps.reads.now()).replace(microsecond=0)
    viewer = Viewer(admin, Session(SessionId("demo"), admin.id, now, now))
    say(f"Demo admin: {ADMIN_EMAIL}, password: {password} (shown only now)")
    for concert in _CONCERTS:
        await register_concert(deps, viewer, _registration(concert, now))


@dataclass(frozen=True, slots=True)
class _Demo:
    title: str
    performer: str
    venue: str
    time_zone: str
    starts_in_days: int
    currency: str
    standing: tuple[int, int]
    balcony: tuple[int, int]


# Prices in the minor unit, then capacities.
_CONCERTS = (
    _Demo(
        title="Night Trains",
        performer="The Signal Keepers",
        venue="Paradiso, Amsterdam",
        time_zone="Europe/Amsterdam",
        starts_in_days=30,
        currency="EUR",
        standing=(3_500, 1_200),
        balcony=(8_900, 80),
    ),
    _Demo(
        title="Harbour Lights",
        performer="Mina Okafor Quintet",
        venue="Elbphilharmonie, Hamburg",
        time_zone="Europe/Berlin",
        starts_in_days=45,
        currency="EUR",
        standing=(5_900, 400),
        balcony=(12_500, 60),
    ),
    _Demo(
        title="Han River Sessions",
        performer="Seo & the Tides",
        venue="Olympic Hall, Seoul",
        time_zone="Asia/Seoul",
        starts_in_days=60,
        currency="KRW",
        standing=(88_000, 2_000),
        balcony=(154_000, 150),
    ),
)


def _registration(demo: _Demo, now: datetime) -> RegisterConcert:
    starts_at = now + timedelta(days=demo.starts_in_days)
    return RegisterConcert(
        title=demo.title,
        performer=demo.performer,
        description="A demo concert: book, pay with pm_card_visa, cancel, and watch the count move.",
        venue=demo.venue,
        time_zone=demo.time_zone,
        starts_at=starts_at,
        sales_open_at=now - timedelta(days=1),
        sales_close_at=starts_at,
        max_tickets_per_user=6,
        ticket_types=(
            NewTicketType("Standing", Money(demo.standing[0], demo.currency), demo.standing[1]),
            NewTicketType("Balcony", Money(demo.balcony[0], demo.currency), demo.balcony[1]),
        ),
    )
