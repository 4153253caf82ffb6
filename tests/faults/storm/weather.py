"""What breaks in the storm: one fault at a time, drawn at random, and mended after a moment."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from infra.failpoints import Action
from tests.faults.proxy import Proxy
from tests.faults.storm.world import Post, World, until_answering

EVERY_S = (1.5, 4.5)
# Steps at which a process may be told to die; it does so the next time it comes by.
DEADLY_STEPS = (
    "book.commit",
    "book.commit.answered",
    "book.bookings.add",
    "pay.begin.commit.answered",
    "pay.send.commit",
    "pay.send.commit.answered",
    "gateway.create_intent.answered",
    "gateway.confirm_intent",
    "gateway.confirm_intent.answered",
    "settle.commit",
    "settle.commit.answered",
    "cancel.commit",
    "cancel.commit.answered",
    "expire.commit",
    "expire.commit.answered",
    "gateway.refund_intent",
    "gateway.refund_intent.answered",
    "refund.end.commit",
    "gateway.cancel_intent.answered",
    "relay.claim.answered",
    "relay.done",
    "read_model.project.answered",
    "live.announce.answered",
)


@dataclass
class Tally:
    """How often a fault struck, how many processes or servers it killed, and the worst recovery, seconds."""

    count: int = 0
    kills: int = 0
    worst_s: float = 0.0


@dataclass
class Weather:
    """All the faults of one storm."""

    world: World
    rng: random.Random
    tallies: dict[str, Tally] = field(default_factory=dict)

    async def rage(self, *, until_s: float) -> None:
        """One fault after the other until then; at the end of each everything is mended and well again."""
        kinds = self._kinds()
        names, weights = list(kinds), [weight for weight, _ in kinds.values()]
        while time.monotonic() < until_s:
            (name,) = self.rng.choices(names, weights)
            tally = self.tallies.setdefault(name, Tally())
            tally.kills += await kinds[name][1]()
            tally.count += 1
            # Counted from here on: whatever it was is mended by now.
            tally.worst_s = max(tally.worst_s, await self.world.until_well())
            await asyncio.sleep(self.rng.uniform(*EVERY_S))

    def _kinds(self) -> dict[str, tuple[int, Callable[[], Awaitable[int]]]]:
        """By name: how often, and what it does; it answers how many it killed."""
        return {
            "kill -9 of an API process": (6, lambda: self._kill([self._api()])),
            "kill -9 of a worker": (5, lambda: self._kill([self._worker()])),
            "kill -9 at a named step": (8, self._kill_at_a_step),
            "kill -9 of every Frontrow process": (1, lambda: self._kill(self.world.posts)),
            "kill -9 of PostgreSQL": (2, self._kill_postgres),
            "kill -9 of Redis": (2, self._kill_valkey),
            "SIGTERM to an API process": (1, self._stop_an_api),
            "Redis flushed": (1, self._flush),
            "connections to PostgreSQL reset": (2, self._cut_postgres),
            "reply to COMMIT lost": (2, self._lose_a_commit),
            "connections to Redis reset": (1, self._cut_valkey),
            "black hole before PostgreSQL": (1, lambda: self._swallow(self.world.to_postgres)),
            "black hole before Redis": (1, lambda: self._swallow(self.world.to_valkey)),
            "process stands still": (1, self._freeze),
            "processor down": (1, lambda: self._processor("down")),
            "processor hangs": (1, lambda: self._processor("hang")),
            "processor charges and hangs": (1, lambda: self._processor("charge_then_hang")),
            "processor fails half its calls": (1, self._flaky_processor),
        }

    def _api(self) -> Post:
        return self.rng.choice([post for post in self.world.posts if post.url is not None])

    def _worker(self) -> Post:
        return self.rng.choice(self.world.workers)

    async def _moment(self, at_most_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(0, at_most_s))

    # ------------------------------------------------------------ processes of ours
    async def _kill(self, posts: list[Post]) -> int:
        for post in posts:
            post.is_left_empty = True
            post.child.kill()
        for post in posts:
            await post.child.ends()
        await self._moment(1.0)
        for post in posts:
            post.is_left_empty = False
        return len(posts)

    async def _kill_at_a_step(self) -> int:
        step = self.rng.choice(DEADLY_STEPS)
        armed = [post.child for post in self.world.posts]
        for child in armed:
            child.arm(step, Action.KILL, after=self.rng.randrange(3))
        await asyncio.sleep(2.0)
        for child in armed:
            child.disarm()
        return sum(step in child.reached for child in armed)

    async def _stop_an_api(self) -> int:
        child = self._api().child
        child.signal(signal.SIGTERM)
        await child.ends()
        return 0

    async def _freeze(self) -> int:
        child = self.rng.choice(self.world.posts).child
        child.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        child.signal(signal.SIGCONT)
        return 0

    # ------------------------------------------------------------ servers
    async def _kill_postgres(self) -> int:
        await asyncio.to_thread(self.world.postgres.kill)
        await self._moment(1.0)
        await asyncio.to_thread(self.world.postgres.start)
        await until_answering(self.world)
        return 1

    async def _kill_valkey(self) -> int:
        await asyncio.to_thread(self.world.valkey.kill)
        await self._moment(1.0)
        await asyncio.to_thread(self.world.valkey.start)
        return 1

    async def _flush(self) -> int:
        await asyncio.to_thread(self.world.valkey.flush)
        return 0

    # ------------------------------------------------------------ lines
    async def _cut_postgres(self) -> int:
        self.world.to_postgres.cut()
        return 0

    async def _cut_valkey(self) -> int:
        self.world.to_valkey.cut()
        return 0

    async def _lose_a_commit(self) -> int:
        # Every commit of two processes goes that way: the next one is soon.
        self.world.to_postgres.cut_reply_to(b"COMMIT;")
        await asyncio.sleep(1.0)
        return 0

    async def _swallow(self, proxy: Proxy) -> int:
        proxy.swallow()
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        proxy.let_through()
        return 0

    # ------------------------------------------------------------ the processor
    async def _processor(self, mode: str) -> int:
        await self.world.processor.control(mode=mode)
        await asyncio.sleep(self.rng.uniform(1.0, 3.0))
        await self.world.processor.control(mode="ok")
        return 0

    async def _flaky_processor(self) -> int:
        await self.world.processor.control(fail_rate=0.5)
        await asyncio.sleep(self.rng.uniform(1.0, 3.0))
        await self.world.processor.control(fail_rate=0.0)
        return 0
