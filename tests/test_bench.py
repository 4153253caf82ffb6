"""The bench: who is counted, what is printed, and one small sale on real servers."""

import asyncio
import json
import re
import select
import socket
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from importlib import import_module
from itertools import chain
from multiprocessing import Pipe
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import fan_out, hot_sale, slow_payment
from bench.__main__ import MEASUREMENTS
from bench.crowd import Rush, crowd
from bench.hot_sale import Round
from bench.plot import bars, lines
from bench.programs import free_port, running
from bench.shop import open_shop
from bench.slow_payment import Answer, Sample, Spell
from bench.table import DOCS, Table, with_block
from bench.watchers import _Room, watching
from bench.wire import NUMBER, post
from tests.servers import wait_until

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_says_what_it_measures(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--help begins with the question that the table answers."""
    measurement = import_module(f"bench.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        measurement.main()
    assert ended.value.code == 0
    assert measurement.__doc__ is not None
    assert measurement.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("table", [*chain.from_iterable(MEASUREMENTS.values())])
def test_the_docs_have_a_place_for_every_table(table: str) -> None:
    """--write-docs finds its marks."""
    assert DOCS.read_text().count(f"<!-- {table} -->") == 1
    assert DOCS.read_text().count(f"<!-- end of {table} -->") == 1


# ---------------------------------------------------------------- what is printed
def a_round(per_s: float, server_us: float, *, worker_us: float = 0.0, refused: int = 0) -> Round:
    """One turn of somebody."""
    codes = Counter({"OVERLOADED": refused} if refused else {})
    return Round(per_s, server_us, 50.0, worker_us, 10.0, 90.0, 95.0, 4.0, codes, 25.0)


def test_a_table_shows_medians_and_ratios() -> None:
    """The middle round counts, refusals are added up, and Frontrow is compared with each of the others."""
    rounds = {
        "Frontrow": [
            a_round(900.0, 400.0, worker_us=70.0, refused=2),
            a_round(1_000.0, 380.0, worker_us=60.0),
            a_round(2_000.0, 300.0, worker_us=50.0, refused=1),
        ],
        "strawberry, row lock": [a_round(100.0, 2_000.0), a_round(125.0, 2_100.0), a_round(130.0, 2_200.0)],
        "Starlette route, same use case": [a_round(1_600.0, 190.0)] * 3,
    }
    assert hot_sale.table_of("hot-sale", rounds).markdown().splitlines()[2:5] == [
        "| Frontrow | 1.0x | 1,000 | 380 | 2.0x | 50 | 60 | 10.0 | 90.0 | 95 | 4.0 | 3 OVERLOADED |",
        "| strawberry, row lock | 8.0x | 125 | 2,100 | 11x | 50 | - | 10.0 | 90.0 | 95 | 4.0 | 0 |",
        "| Starlette route, same use case | 0.62x | 1,600 | 190 | 1.0x | 50 | - | 10.0 | 90.0 | 95 | 4.0 | 0 |",
    ]
    assert hot_sale.aims_of(rounds) == (
        "Met: at least 5 times as many bookings as strawberry, row lock. Found: 8.00x.",
        "Met: at most 2.2 times the CPU of a bare route that calls the same use case. Found: 2.00x.",
        "Met: p99 at most 250 ms. Found: 90 ms.",
    )


def test_an_aim_that_is_missed_is_told() -> None:
    """As loud as one that is met, and below the table."""
    rounds = {"Frontrow": [a_round(499.0, 380.0)], "strawberry, row lock": [a_round(100.0, 2_000.0)]}
    table = Table("t", ("a", "b"), (("1", "2"),), ("A note.",), hot_sale.aims_of(rounds))
    assert table.markdown().splitlines()[-5:] == [
        "",
        "A note.",
        "",
        "- **Missed**: at least 5 times as many bookings as strawberry, row lock. Found: 4.99x.",
        "- Met: p99 at most 250 ms. Found: 90 ms.",
    ]


def test_a_block_of_the_docs_is_replaced() -> None:
    """What stands around it stays; a document without the marks is refused."""
    document = "a\n<!-- x -->\nold\n<!-- end of x -->\n<!-- y -->\nb\n<!-- end of y -->\n"
    changed = with_block(document, "x", r"new \1")
    assert changed == "a\n<!-- x -->\n\nnew \\1\n\n<!-- end of x -->\n<!-- y -->\nb\n<!-- end of y -->\n"
    assert with_block(changed, "x", r"new \1") == changed
    with pytest.raises(ValueError, match="end of z"):
        with_block(document, "z", "new")


def test_pictures_are_svg() -> None:
    """One bar for each value, as long as it is large; one line for each series."""
    drawn = ElementTree.fromstring(bars({"a <b>": 50.0, "c": 100.0}, unit="/s", highlighted="c"))
    wide = [float(each.get("width", "")) for each in drawn.findall("{*}rect")[1:]]
    assert wide[1] == pytest.approx(2 * wide[0], rel=0.01)
    series = {"one": [(1.0, 5.0), (1_000.0, 7.0)], "two": [(10.0, 0.0), (100.0, 2.0)]}
    drawn = ElementTree.fromstring(lines(series, title="t", x_name="x", is_log=True))
    assert [path for path in drawn.findall("{*}path") if path.get("stroke-width") == "2"] != []
    assert len([path for path in drawn.findall("{*}path") if path.get("stroke-width") == "2"]) == 2


def test_spells_of_the_processor_are_compared_with_the_first() -> None:
    """Each answer counts in its own spell, and the breaker's share is that of its samples."""

    def spell(weather: str, began_s: float, *, booked: int, paid: int, state: str) -> Spell:
        answers = [Answer(began_s, "BookConcertSuccess", 20.0, is_payers=True, is_payment=False)] * booked
        answers += [Answer(began_s, "PayBookingSuccess", 30.0, is_payers=True, is_payment=True)] * paid
        answers += [Answer(began_s, "PaymentDeferred", 9.0, is_payers=True, is_payment=True)] * (
            booked - paid
        )
        return Spell(
            weather, began_s, began_s + 10.0, answers, [Sample(began_s, state), Sample(began_s + 5, state)]
        )

    spells = [
        spell("at once", 100.0, booked=500, paid=500, state="closed"),
        spell("hangs", 110.0, booked=400, paid=1, state="open"),
    ]
    table = slow_payment.table_of(spells)
    assert table.rows == (
        ("at once", "50.0", "1.0x", "0.0", "-", "20 / 20", "30 / 30", "50.0", "0", "0 %"),
        ("hangs", "40.0", "0.80x", "0.0", "-", "20 / 20", "9 / 9", "0.1", "399 PaymentDeferred", "100 %"),
    )
    assert table.aims == ("Met: with the processor hanging at least 80% of the bookings. Found: 0.80x.",)
    assert table.picture is not None
    ElementTree.fromstring(table.picture)
    assert slow_payment.STATES["open"] in table.picture


# ---------------------------------------------------------------- who is counted
ANSWERS = (
    b'{"data":{"book":{"__typename":"Right"}}}',
    b'{"data":{"book":{"__typename":"Wrong","code":"SOLD_OUT"}}}',
    b'{"data":null,"errors":[{"extensions":{"code":"OVERLOADED"}}]}',
    b'{"data":{"book":null}}',
    b"no JSON",
)


@asynccontextmanager
async def answering_in_turn(asked: list[str]) -> AsyncIterator[int]:
    """A server that gives every answer in turn and remembers what buyers it saw; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            head += await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            body = json.loads(await reader.readexactly(int(length[1])))
            given = ANSWERS[len(asked) % len(ANSWERS)]
            asked.append(body["buyer"])
            status = b"HTTP/1.1 200 OK\r\n" if given != b"no JSON" else b"HTTP/1.1 502 Bad Gateway\r\n"
            writer.write(status + b"Content-Length: %d\r\n\r\n" % len(given) + given)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.anyio
async def test_only_right_answers_count() -> None:
    """A refusal, an error, an empty field and rubbish are told apart, and every request is another buyer's."""
    asked: list[str] = []
    async with answering_in_turn(asked) as port:
        rush = Rush(
            port,
            (post({"buyer": NUMBER.decode()}),),
            "book",
            "Right",
            connections=3,
            seconds=0.3,
            warm_up_s=0.0,
            first_buyer=7,
        )
        with crowd() as people:
            seen = await asyncio.to_thread(people.rush, rush)
    assert sorted(asked) == [f"{n:012d}" for n in range(7, 7 + seen.asked)]
    assert seen.asked >= 3 * len(ANSWERS)
    assert seen.acknowledged == len([n for n in range(seen.asked) if n % len(ANSWERS) == 0])
    assert set(seen.refused) == {"SOLD_OUT", "OVERLOADED", "HTTP 200", "HTTP 502"}
    assert seen.done <= seen.acknowledged
    assert len(seen.done_ms) == seen.done


SPENDING = """import os, subprocess, sys, time
spend = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", spend])
open(sys.argv[1], "w").close()
time.sleep(60)"""


def test_what_a_child_has_computed_counts(tmp_path: Path) -> None:
    """Also once it has ended: PostgreSQL's processes come and go."""
    spent = tmp_path / "spent"
    command = [sys.executable, "-c", SPENDING, str(spent)]
    with running("spender", command, environ={}, folder=tmp_path) as program:
        wait_until(spent.exists, limit_s=20.0)
        assert 0.3 <= program.cpu_s() < 3.0


def test_a_program_that_ends_by_itself_is_told_of(tmp_path: Path) -> None:
    """With what it said, whether it never listened or left meanwhile."""
    command = [sys.executable, "-c", "raise SystemExit('no database')"]
    with (
        pytest.raises(RuntimeError, match="no database"),
        running("short", command, environ={}, folder=tmp_path, port=free_port()),
    ):
        pass


@pytest.mark.anyio
async def test_a_watcher_is_told_who_closed_the_socket() -> None:
    """A server that hangs up ends the measurement, it does not only lower a number."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x88\x02\x11\x94")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with watching(port, "{ a }", {}) as watchers, pytest.raises(ConnectionError, match="1194"):
            await asyncio.to_thread(watchers.join, 1)


def said(**message: object) -> bytes:
    """A server's frame."""
    text = json.dumps(message).encode()
    assert len(text) < 126
    return bytes([0x81, len(text)]) + text


def count_now(version: int) -> bytes:
    """The count at that version."""
    count = {"available": 9, "version": version}
    return said(type="next", id="1", payload={"data": {"ticketCount": count}})


@pytest.mark.anyio
@pytest.mark.parametrize("is_early", [True, False])
async def test_a_change_is_answered_once_though_it_is_told_twice(is_early: bool) -> None:
    """It may come before it is asked for or after, and the next question is about the next change."""
    rooms: list[asyncio.StreamWriter] = []

    async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await reader.readuntil(b"connection_init")
        writer.write(said(type="connection_ack"))
        await reader.readuntil(b"subscribe")
        writer.write(count_now(1))
        rooms.append(writer)

    async with await asyncio.start_server(let_in, "127.0.0.1", 0) as server:
        with watching(server.sockets[0].getsockname()[1], "{ a }", {}) as watchers:
            await asyncio.to_thread(watchers.join, 3)
            await asyncio.to_thread(watchers.watch)
            for version in (2, 3):
                asking = None if is_early else asyncio.create_task(asyncio.to_thread(watchers.have, version))
                if asking is not None:
                    await asyncio.sleep(0.1)
                for writer in rooms:
                    writer.write(count_now(version) * 2)
                if asking is None:
                    await asyncio.sleep(0.1)
                    asking = asyncio.create_task(asyncio.to_thread(watchers.have, version))
                arrivals = await asyncio.wait_for(asking, 10.0)
                assert len(arrivals.sent_ns) == len(arrivals.heard_ns) == 3
                assert arrivals.sent_ns[-1] < arrivals.heard_ns[-1]
        for writer in rooms:
            writer.close()


def test_a_failure_is_answered_once() -> None:
    """Those who are on their way in when it fails say nothing more about a question that was answered."""
    here, there = Pipe()
    with socket.create_server(("127.0.0.1", 0)) as server, here, there:
        room = _Room(there, server.getsockname()[1], b"")
        room.take("join", 2)
        with closing(select.epoll()) as poller:
            room.let_in(poller)
        room.failed = ConnectionError("closed")
        for _ in range(3):
            room.answer()
        assert str(here.recv()) == "closed"
        assert not here.poll()
        for watcher in room.watchers.values():
            watcher.socket.close()


def test_a_few_watch_a_count() -> None:
    """Everybody hears of every booking, and of no message before it was sent."""
    with open_shop() as shop:
        house, ticket = fan_out.frontrow(shop)
        options = Namespace(seconds=0.0, rounds=1, sizes=[3])
        (line,) = asyncio.run(fan_out.measured(options, [house], ticket))
    assert line.watchers == 3
    assert len(line.sent_ms) == len(line.heard_ms) == fan_out.CHANGES_MIN
    assert all(0 < sent < heard for sent, heard in zip(line.sent_ms, line.heard_ms, strict=True))
    assert line.delivery_us > 0


def test_a_small_hot_sale() -> None:
    """Ours and a peer sell on real servers, and every booking that was answered is in the database."""
    who = ["frontrow", "strawberry"]
    options = Namespace(seconds=0.4, rounds=1, warm_up=0.1, connections=4, buyers=2_000, only=who)
    rounds = hot_sale.measured(options, concerts=2)
    assert list(rounds) == ["Frontrow", "strawberry, row lock"]
    for (took,) in rounds.values():
        assert took.per_s > 0
        assert took.server_us > 0
        assert took.refused == Counter()


def test_the_lock_file_names_no_host() -> None:
    """npm asks whatever registry it is set to."""
    lock = (ROOT / "bench" / "peers" / "node" / "package-lock.json").read_text()
    assert "://" not in lock
    assert len(json.loads(lock)["packages"]) > 50
