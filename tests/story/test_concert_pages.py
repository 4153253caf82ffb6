"""The catalogue's pages: orders, cursors, filters, and rows that come while somebody pages."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schema.common import decode_id
from tests.client import CANCEL_CONCERT, UPDATE, Api, Json
from tests.story.refusals import code_of
from tests.story.world import World

pytestmark = pytest.mark.anyio

PAGE = """query($first: Int, $after: String, $last: Int, $before: String, $filter: ConcertFilter,
    $orderBy: ConcertOrder! = STARTS_AT_ASC) {
  concerts(first: $first, after: $after, last: $last, before: $before, filter: $filter, orderBy: $orderBy) {
    totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    edges { cursor node { id title startsAt } } } }"""
ORDERS = ("STARTS_AT_ASC", "STARTS_AT_DESC", "TITLE_ASC")
NOW = datetime.now(UTC).replace(microsecond=0)


def day(number: float) -> str:
    """A time so many days from now."""
    return (NOW + timedelta(days=number)).isoformat()


async def put(world: World, title: str, *, starts_on: float, **facts: Any) -> str:
    """A concert; its id."""
    times = {"startsAt": day(starts_on), "salesCloseAt": day(starts_on)}
    return (await world.admin.register(title=title, **(times | facts))).id


async def titles(api: Api, **variables: Any) -> list[str]:
    """The titles of one page."""
    page = await api.ask(PAGE, **variables)
    return [edge["node"]["title"] for edge in page["edges"]]


async def all_pages(api: Api, *, size: int, is_backwards: bool = False, **variables: Any) -> list[Json]:
    """Every node, page by page, in the list's order; the page infos agree with where each page stands."""
    nodes: list[Json] = []
    cursor = None
    while True:
        where = {"last": size, "before": cursor} if is_backwards else {"first": size, "after": cursor}
        page = await api.ask(PAGE, **where, **variables)
        info, edges = page["pageInfo"], page["edges"]
        assert len(edges) <= size
        assert (info["startCursor"], info["endCursor"]) == (edges[0]["cursor"], edges[-1]["cursor"])
        assert info["hasNextPage" if is_backwards else "hasPreviousPage"] is (cursor is not None)
        here = [edge["node"] for edge in edges]
        nodes = here + nodes if is_backwards else nodes + here
        cursor = info["startCursor" if is_backwards else "endCursor"]
        if not info["hasPreviousPage" if is_backwards else "hasNextPage"]:
            assert page["totalCount"] == len(nodes)
            return nodes


async def test_every_order_pages_forwards_and_backwards(world: World) -> None:
    """Sorted by key, equal ones by id, every row once, whichever way and however small the pages."""
    for number in range(11):
        await put(world, "BaaÄab"[number % 6], starts_on=10 + number % 3)
    nodes = (await world.api.ask(PAGE, first=100))["edges"]
    found = [edge["node"] for edge in nodes]
    assert len(found) == 11
    expected = {
        "STARTS_AT_ASC": sorted(found, key=lambda node: (node["startsAt"], raw(node))),
        "STARTS_AT_DESC": sorted(found, key=lambda node: (node["startsAt"], raw(node)), reverse=True),
        "TITLE_ASC": sorted(found, key=lambda node: (node["title"], raw(node))),
    }
    for order in ORDERS:
        for size in (1, 4, 11):
            assert await all_pages(world.api, size=size, orderBy=order) == expected[order]
            backwards = await all_pages(world.api, size=size, is_backwards=True, orderBy=order)
            assert backwards == expected[order]


def raw(node: Json) -> str:
    """The id in the order of its bytes: base64 of the same prefix keeps it only by groups of three."""
    return decode_id(node["id"])[1]


async def test_a_page_stands_still_while_rows_come_and_go(world: World) -> None:
    """No row comes twice or is skipped, whatever is registered before and after the cursor meanwhile."""
    for number in range(6):
        await put(world, f"Show {number}", starts_on=10 + number)
    page = await world.api.ask(PAGE, first=3)
    assert [edge["node"]["title"] for edge in page["edges"]] == ["Show 0", "Show 1", "Show 2"]
    await put(world, "Earlier", starts_on=5)
    await put(world, "Later", starts_on=14.5)
    # The row that the cursor is of moves away; the cursor stays where it was.
    last = page["edges"][-1]
    moved = {"concertId": last["node"]["id"], "startsAt": day(30), "salesCloseAt": day(30)}
    assert (await world.admin.ask(UPDATE, input=moved))["__typename"] == "UpdateConcertSuccess"
    after = page["pageInfo"]["endCursor"]
    rest = ["Show 3", "Show 4", "Later", "Show 5", "Show 2"]
    assert await titles(world.api, first=100, after=after) == rest
    assert await titles(world.api, last=100, before=after) == ["Earlier", "Show 0", "Show 1"]
    # Between two cursors, from either end.
    first = page["edges"][0]["cursor"]
    assert await titles(world.api, first=5, after=first, before=after) == ["Show 1"]
    assert await titles(world.api, last=5, after=first, before=after) == ["Show 1"]


async def test_a_page_has_1_to_100_rows_and_20_unless_told(world: World) -> None:
    """first or last, not both; a cursor only of this order and this filter."""
    for number in range(22):
        await put(world, f"Show {number:02}", starts_on=10 + number)
    page = await world.api.ask(PAGE)
    assert (len(page["edges"]), page["pageInfo"]["hasNextPage"], page["totalCount"]) == (20, True, 22)
    assert len((await world.api.ask(PAGE, first=None, last=None, after=None, before=None))["edges"]) == 20
    assert await titles(world.api, last=2) == ["Show 20", "Show 21"]
    assert len(await titles(world.api, first=100)) == len(await titles(world.api, last=100)) == 22
    cursor = page["pageInfo"]["endCursor"]
    wrong: Sequence[Json] = (
        *({name: n} for name in ("first", "last") for n in (0, -1, 101, 2**31 - 1, 2**31)),
        {"first": 1, "last": 1},
        {"after": cursor, "orderBy": "TITLE_ASC"},
        {"after": cursor, "orderBy": "STARTS_AT_DESC"},
        {"after": cursor, "filter": {"search": "show"}},
        {"before": cursor, "filter": {"onSale": True}},
        {"before": cursor, "filter": {"startsAfter": day(1)}},
        *(
            {name: text}
            for name in ("after", "before")
            for text in ("", "x", "\x00", cursor[:-4], "Q" * 9_000)
        ),
        {"orderBy": "PRICE_ASC"},
        {"filter": {"city": "Groningen"}},
        {"filter": {"search": "x" * 201}},
        {"filter": {"search": "\x00"}},
        {"filter": {"startsAfter": "2100-01-01"}},
    )
    for arguments in wrong:
        assert await code_of(world.api, PAGE, **arguments) == "BAD_USER_INPUT", arguments


async def test_an_empty_page_says_so(world: World) -> None:
    """No rows, no cursors, nothing before or after."""
    assert await world.api.ask(PAGE) == {
        "totalCount": 0,
        "pageInfo": {
            "hasNextPage": False,
            "hasPreviousPage": False,
            "startCursor": None,
            "endCursor": None,
        },
        "edges": [],
    }


async def test_search_finds_words_in_title_performer_and_venue(world: World) -> None:
    """All words, in any order, upper and lower case alike, in any script; % and _ mean themselves."""
    await put(world, "100% Night_Train", starts_on=10, performer="Björk Straße", venue="Paradiso Amsterdam")
    await put(world, "1000 Nights Train", starts_on=11, performer="ΣΊΣΥΦΟΣ", venue="Vera\\Groningen")
    await put(world, "Day", starts_on=12, performer="Night Owls", venue="Paradiso")
    one, two, three = "100% Night_Train", "1000 Nights Train", "Day"
    searches: dict[str | None, list[str]] = {
        None: [one, two, three],
        "": [one, two, three],
        "  ": [one, two, three],
        "night": [one, two, three],
        "NIGHT train": [one, two],
        "train night": [one, two],
        "paradiso night": [one, three],
        "BJÖRK": [one],
        "strasse": [one],
        "σίσυφος": [two],
        "%": [one],
        "100%": [one],
        "_": [one],
        "night_train": [one],
        "vera\\": [two],
        "\\": [two],
        "/": [],
        "'": [],
        '" OR 1=1 --': [],
        "nightowls": [],
    }
    for search, expected in searches.items():
        page = await world.api.ask(PAGE, filter={"search": search})
        assert [edge["node"]["title"] for edge in page["edges"]] == expected, search
        assert page["totalCount"] == len(expected)


async def test_filters_hold_together(world: World) -> None:
    """Start times without their bounds, and what is on sale now: window open and not cancelled."""
    window = {"salesOpenAt": day(-2), "salesCloseAt": day(-1)}
    await put(world, "Open", starts_on=10)
    await put(world, "Not yet", starts_on=11, salesOpenAt=day(1))
    await put(world, "No more", starts_on=12, **window)
    gone = await put(world, "Cancelled", starts_on=13)
    await world.admin.ask(CANCEL_CONCERT, input={"concertId": gone})
    filters: list[tuple[Json | None, list[str]]] = [
        (None, ["Open", "Not yet", "No more", "Cancelled"]),
        ({"onSale": None}, ["Open", "Not yet", "No more", "Cancelled"]),
        ({"onSale": True}, ["Open"]),
        ({"onSale": False}, ["Not yet", "No more", "Cancelled"]),
        ({"startsAfter": day(11)}, ["No more", "Cancelled"]),
        ({"startsBefore": day(12)}, ["Open", "Not yet"]),
        ({"startsAfter": day(10), "startsBefore": day(13)}, ["Not yet", "No more"]),
        ({"startsAfter": day(13), "startsBefore": day(10)}, []),
        ({"startsAfter": day(10), "onSale": True}, []),
        ({"search": "no", "startsAfter": day(11), "onSale": False}, ["No more"]),
    ]
    for where, expected in filters:
        assert await titles(world.api, filter=where) == expected, where
        page = await world.api.ask(PAGE, first=1, filter=where)
        assert page["totalCount"] == len(expected)
        if len(expected) > 1:
            nodes = await all_pages(world.api, size=1, filter=where)
            assert [node["title"] for node in nodes] == expected
