"""What fault tests stand on: processes that start in a moment, and a Valkey to mistreat."""

from collections.abc import Iterator

import pytest

from tests.faults.fork_server import ForkServer, running_fork_server
from tests.servers import ValkeyServer, running_valkey


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own, to be mistreated."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def fork_server(importing_server: ForkServer) -> Iterator[ForkServer]:
    """Forks into Frontrow processes; none of them outlives the test, to work on the next one's database."""
    yield importing_server
    importing_server.kill_all()


@pytest.fixture(scope="session")
def importing_server() -> Iterator[ForkServer]:
    """Imports everything once."""
    with running_fork_server() as server:
        yield server
