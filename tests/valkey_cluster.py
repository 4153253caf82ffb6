"""A real cluster of three Valkey nodes for tests."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from redis.crc import key_slot

from tests.servers import START_LIMIT_S, ValkeyServer, own_directory, reserve_port, wait_until

SLOTS = 16_384
NODES = 3


@contextmanager
def running_valkey_cluster() -> Iterator["ValkeyCluster"]:
    """Three fresh nodes, each with a third of the slots; stopped and removed afterwards."""
    with ExitStack() as stack:
        nodes = [ValkeyNode(stack.enter_context(own_directory())) for _ in range(NODES)]
        for number, node in enumerate(nodes):
            stack.callback(node.close)
            node.start()
            first, after = (SLOTS * part // NODES for part in (number, number + 1))
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
            node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus_port)
        cluster = ValkeyCluster(nodes)
        cluster.wait_whole()
        yield cluster


class ValkeyNode(ValkeyServer):
    """One node. Killed and started again it is the same node, with the same slots."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._bus_reservation, self.bus_port = reserve_port()

    @property
    def node_id(self) -> str:
        """What the cluster calls it."""
        return str(self.ask("CLUSTER", "MYID"))

    def ask(self, *command: str | int) -> object:
        """Its answer to one command."""
        with Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        """End it for good and give its ports back."""
        super().close()
        self._bus_reservation.close()

    def _own_settings(self) -> Sequence[str]:
        return ("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port))


class ValkeyCluster:
    """All nodes, and which of them has what."""

    def __init__(self, nodes: Sequence[ValkeyNode]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """Where one of them is."""
        return self.nodes[0].url

    def owner(self, key: str) -> ValkeyNode:
        """The node that has this key's slot at first."""
        return self.nodes[key_slot(key.encode()) * NODES // SLOTS]

    def move_slot(self, key: str, source: ValkeyNode, target: ValkeyNode) -> None:
        """Move this key's slot as an operator does, who tells the two nodes and lets them tell the others."""
        slot = key_slot(key.encode())
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    def give_slots(self, slots: range, target: ValkeyNode, *, told: Sequence[ValkeyNode]) -> None:
        """These slots are `target`'s, by the word of the nodes that are `told`."""
        target.ask("CLUSTER", "BUMPEPOCH")
        owner_id = target.node_id
        for node in told:
            with Redis.from_url(node.url) as client, client.pipeline(transaction=False) as told_at_once:
                for slot in slots:
                    told_at_once.execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner_id)
                told_at_once.execute()

    def wait_whole(self) -> None:
        """Every node knows that every slot has a node that answers."""
        wait_until(lambda: all(_is_whole(node) for node in self.nodes), limit_s=START_LIMIT_S)


def _is_whole(node: ValkeyNode) -> bool:
    return "cluster_state:ok" in str(node.ask("CLUSTER", "INFO"))
