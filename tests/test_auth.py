"""Signing in: what a header may say, password hashes that hold nothing up, ids, and counted attempts."""

import asyncio
import time
from uuid import UUID

import pytest

from domain.base import Overloaded, TooManyAttempts
from domain.ports import AttemptLimiter, Passwords, Randomness
from domain.user import Unauthenticated
from infra.auth import Argon2Passwords, MemoryAttemptLimiter, SystemRandomness, bearer_token

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- tokens
async def test_a_bearer_token_is_read() -> None:
    """The scheme in any case, one or more blanks, the token as it is; no header is no token."""
    assert bearer_token(None) is None
    for header in ("Bearer aB-._~+/9==", "bearer aB-._~+/9==", "BEARER   aB-._~+/9== "):
        assert bearer_token(header) == "aB-._~+/9=="


async def test_a_malformed_header_is_refused() -> None:
    """Never taken for anonymous: whoever sends a header means to be somebody."""
    for header in (
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer é",
        "Basic YTpi",
        "token",
        "Bearer\na",
        "Bearer a\n",
        "Bearer a, Bearer b",
        "Bearer " + "a" * 513,
    ):
        with pytest.raises(Unauthenticated):
            bearer_token(header)


# ---------------------------------------------------------------- passwords
async def test_only_the_right_password_matches() -> None:
    """Two hashes of one password differ by salt, and both match it; nothing stored matches nothing."""
    argon2 = Argon2Passwords()
    passwords: Passwords = argon2
    one, other = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert one != other
    assert one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.matches("correct horse", stored=one)
    assert await passwords.matches("correct horse", stored=other)
    for wrong in ("", "correct horse ", "Correct horse", "\ud800", "x" * 10_000):
        assert not await passwords.matches(wrong, stored=one)
        assert not await passwords.matches(wrong, stored=None)
    argon2.close()


async def test_an_unknown_address_costs_as_much_as_a_known_one() -> None:
    """Or the time would tell who has an account."""
    passwords = Argon2Passwords()
    stored = await passwords.hash("correct horse")

    async def took_s(stored: str | None) -> float:
        """The fastest of some."""
        times = []
        for _ in range(7):
            begun_at = time.perf_counter()
            await passwords.matches("wrong", stored=stored)
            times.append(time.perf_counter() - begun_at)
        return min(times)

    known, unknown = await took_s(stored), await took_s(None)
    assert 0.4 < unknown / known < 2.5  # without the work it would be under 0.02
    passwords.close()


async def test_a_rush_of_log_ins_is_refused_beyond_the_queue() -> None:
    """As many as have a place are served, the rest are told at once, and the loop stays free meanwhile."""
    passwords = Argon2Passwords(threads=2, max_waiting=4)
    stored = await passwords.hash("correct horse")
    rush = [asyncio.create_task(passwords.matches("correct horse", stored=stored)) for _ in range(10)]
    await asyncio.sleep(0)  # all ten have asked, none is done
    answers = await asyncio.gather(*rush, return_exceptions=True)
    assert answers[:6] == [True] * 6
    assert [type(answer) for answer in answers[6:]] == [Overloaded] * 4
    assert await passwords.matches("correct horse", stored=stored)
    passwords.close()


async def test_who_leaves_gives_the_place_back_when_the_work_is_done() -> None:
    """Impatient callers can't pile up hashes beyond the queue."""
    passwords = Argon2Passwords(threads=1, max_waiting=1)
    stored = await passwords.hash("correct horse")
    leaving = [asyncio.create_task(passwords.matches("x", stored=stored)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    async with asyncio.timeout(10):
        while True:
            try:
                assert await passwords.matches("correct horse", stored=stored)
                break
            except Overloaded:
                await asyncio.sleep(0.005)
    passwords.close()


# ---------------------------------------------------------------- randomness
async def test_ids_are_uuids_that_sort_by_time() -> None:
    """Version 7, canonical text, and those of a later millisecond sort later."""
    randomness: Randomness = SystemRandomness()
    before_ms = time.time_ns() // 1_000_000
    ids = [randomness.new_id() for _ in range(1_000)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1_000
    for new_id in ids:
        uuid = UUID(new_id)
        assert (str(uuid), uuid.version, uuid.variant) == (new_id, 7, "specified in RFC 4122")
        assert before_ms <= uuid.int >> 80 <= after_ms
    await asyncio.sleep(0.002)
    assert randomness.new_id() > max(ids)


async def test_tokens_are_fresh_and_only_their_hash_is_needed() -> None:
    """43 characters that a Bearer header can carry; the hash is SHA-256."""
    randomness: Randomness = SystemRandomness()
    token = randomness.new_token()
    assert len(token) == 43
    assert bearer_token(f"Bearer {token}") == token
    assert randomness.new_token() != token
    assert randomness.token_hash("abc").hex().startswith("ba7816bf8f01cfea414140de5dae2223")
    assert len(randomness.token_hash("\ud800")) == 32


# ---------------------------------------------------------------- attempts
class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


async def test_the_attempt_past_the_limit_is_refused_until_the_window_ends() -> None:
    """With the time to wait; other people and other actions are counted apart."""
    clock = Clock()
    limiter: AttemptLimiter = MemoryAttemptLimiter({"log_in": (2, 60), "book": (1, 1)}, clock_s=clock)
    await limiter.admit("log_in", who="ann")
    clock.now_s += 20
    await limiter.admit("log_in", who="ann")
    with pytest.raises(TooManyAttempts) as refused:
        await limiter.admit("log_in", who="ann")
    assert refused.value.retry_after_ms == 40_000
    await limiter.admit("log_in", who="bob")
    await limiter.admit("book", who="ann")
    clock.now_s += 39.9
    with pytest.raises(TooManyAttempts):
        await limiter.admit("log_in", who="ann")
    clock.now_s += 0.1
    await limiter.admit("log_in", who="ann")


async def test_a_guess_counts_where_it_is_wrong() -> None:
    """A right one starts anew; a cancelled one, which may have been wrong, counts too."""
    limiter: AttemptLimiter = MemoryAttemptLimiter({"log_in": (2, 60)})
    for _ in range(3):
        with pytest.raises(ValueError):
            async with limiter.guess("log_in", who="ann"):
                raise ValueError
        async with limiter.guess("log_in", who="ann"):
            pass
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error):
            async with limiter.guess("log_in", who="ann"):
                raise error
    with pytest.raises(TooManyAttempts):
        async with limiter.guess("log_in", who="ann"):
            pytest.fail("the third was let in")


async def test_guesses_at_once_wait_for_those_that_are_left() -> None:
    """Wrong ones use up what is left and refuse the rest; a right one lets everybody in."""
    limiter = MemoryAttemptLimiter({"log_in": (2, 60)})
    for is_right, expected in ((True, ["right"] * 20), (False, ["refused"] * 18 + ["wrong"] * 2)):
        running = most = 0

        async def guess(is_right: bool = is_right) -> str:
            nonlocal running, most
            try:
                async with limiter.guess("log_in", who="ann"):
                    running += 1
                    most = max(most, running)
                    await asyncio.sleep(0)
                    running -= 1
                    if not is_right:
                        raise ValueError
            except ValueError:
                return "wrong"
            except TooManyAttempts:
                return "refused"
            return "right"

        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(guess() for _ in range(20)))
        assert sorted(answers) == expected
        assert is_right or most == 2


async def test_windows_are_kept_for_only_so_many() -> None:
    """The oldest window is forgotten first, whatever names an attacker invents."""
    limiter = MemoryAttemptLimiter({"log_in": (1, 60)}, max_windows=3)
    for who in ("first", "second", "third", "\ud800" * 10_000):
        await limiter.admit("log_in", who=who)
    await limiter.admit("log_in", who="first")
    with pytest.raises(TooManyAttempts):
        await limiter.admit("log_in", who="third")
