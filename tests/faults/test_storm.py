"""The storm for some seconds; `make storm` lets it rage for as long as it is told to."""

import os
import random
from pathlib import Path

import pytest

from tests.faults.storm.rounds import run

pytestmark = pytest.mark.anyio

# FRONTROW_TEST_SEED=... draws the same again, as far as two runs can be the same.
SEED = int(os.environ.get("FRONTROW_TEST_SEED", random.SystemRandom().randrange(10**6)))
LOAD_S = 10.0
BUYERS = 12


async def test_a_short_storm_breaks_no_promise(tmp_path: Path) -> None:
    """People buy, pay and cancel while something is killed or cut off every few seconds, and all of it is judged."""
    print(f"FRONTROW_TEST_SEED={SEED}")
    storm = await run(seed=SEED, load_s=LOAD_S, round_s=LOAD_S, buyers=BUYERS, folder=tmp_path, tell=print)
    assert storm.violations == []
    assert sum(storm.operations.values()) > BUYERS and any(tally.count for tally in storm.tallies.values())
