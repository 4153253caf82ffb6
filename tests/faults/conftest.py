"""What fault tests stand on: processes that start in a moment."""

from collections.abc import Iterator

import pytest

from tests.faults.fork_server import ForkServer, running_fork_server


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Imports everything once and forks into Frontrow processes."""
    with running_fork_server() as server:
        yield server
