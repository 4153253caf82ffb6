"""The table that a storm prints."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.history import Operation
from tests.faults.rules import Violation
from tests.faults.storm.weather import Tally


@dataclass
class Storm:
    """All that a storm was."""

    seed: int
    operations: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    messages: int = 0
    looks: int = 0
    worst_rest_s: float = 0.0
    worst_stream_s: float = 0.0
    load_s: float = 0.0
    bookings: int = 0
    captured: int = 0
    refunded: int = 0

    def count(self, operations: Sequence[Operation]) -> None:
        """Add what people did in one round."""
        for operation in operations:
            self.operations[operation.kind.value, operation.outcome.value] += 1

    @property
    def kills(self) -> int:
        """Processes and servers that were killed."""
        return sum(tally.kills for tally in self.tallies.values())


def table(storm: Storm) -> str:
    """The storm in Markdown."""
    kinds = sorted({kind for kind, _ in storm.operations})
    total = sum(storm.operations.values())
    lines = [
        f"Seed {storm.seed}; {storm.load_s / 60:.1f} minutes under load; {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| operations | ok | refused | still unknown to the client | all |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        by_outcome = [storm.operations[kind, outcome] for outcome in ("ok", "refused", "unknown")]
        lines.append(f"| {kind} | {' | '.join(f'{n:,}' for n in by_outcome)} | {sum(by_outcome):,} |")
    lines += [
        f"| all | | | | {total:,} |",
        "",
        "| fault | times | killed | worst recovery once mended |",
        "|---|---|---|---|",
    ]
    for name, tally in sorted(storm.tallies.items()):
        lines.append(f"| {name} | {tally.count} | {tally.kills} | {tally.worst_s:.1f} s |")
    faults = sum(tally.count for tally in storm.tallies.values())
    lines += [
        f"| all | {faults} | {storm.kills} | |",
        "",
        "| looked at | |",
        "|---|---|",
        f"| bookings in the database | {storm.bookings:,} |",
        f"| payments captured at the processor, of these given back | {storm.captured:,}, {storm.refunded:,} |",
        f"| looks at the stock from a second connection | {storm.looks:,} |",
        f"| messages that subscribers heard | {storm.messages:,} |",
        f"| longest until everything was at rest after a round | {storm.worst_rest_s:.1f} s |",
        f"| longest until a subscriber was at the newest state then | {storm.worst_stream_s:.1f} s |",
        f"| violations | {len(storm.violations)} |",
    ]
    return "\n".join(lines)
