"""What a measurement shows: one table, on the screen and, if asked, between its marks in docs/performance.md."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.programs import ROOT

DOCS = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"


@dataclass(frozen=True)
class Table:
    """`name` is its mark in the docs and the name of its picture, an SVG, where there is one."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    aims: tuple[str, ...] = ()
    picture: str | None = None
    picture_shows: str = ""

    def markdown(self) -> str:
        """The table with its notes below, and our aims as a list."""
        lines = [
            _line(self.columns),
            "|---" + "|---:" * (len(self.columns) - 1) + "|",
            *map(_line, self.rows),
        ]
        notes = [f"\n{note}" for note in self.notes]
        aims = [f"- {each}" for each in self.aims]
        return "\n".join([*lines, *notes, *([""] if aims else []), *aims])


def arguments(
    text: str | None, *, seconds: float | None = None, rounds: int | None = None
) -> argparse.ArgumentParser:
    """What a measurement may be told; `text` is its module's docstring, its first line the question."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help="measured (default: %(default)s)")
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help="the median counts (default: %(default)s)"
        )
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/performance.md")
    return parser


def publish(table: Table, options: argparse.Namespace) -> None:
    """It is printed, and stands in the docs if that is wanted."""
    print(f"\n{table.markdown()}\n", flush=True)
    if options.write_docs:
        text = table.markdown() + f"\n\n{provenance()}"
        if table.picture is not None:
            PICTURES.mkdir(exist_ok=True)
            (PICTURES / f"{table.name}.svg").write_text(table.picture)
            text += f"\n\n![{table.picture_shows}](performance/{table.name}.svg)"
        DOCS.write_text(with_block(DOCS.read_text(), table.name, text))


def with_block(document: str, name: str, text: str) -> str:
    """The document with `text` between the marks of that name. Raises: ValueError where they aren't there."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, is_begun, rest = document.partition(begin)
    _, is_ended, after = rest.partition(end)
    if not is_begun or not is_ended:
        raise ValueError(f"there must be a {begin} and after it an {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def provenance() -> str:
    """By which command, when and of which version."""
    command = f"python -m bench.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip()
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    version = asked.stdout.strip() or "unknown"
    return f"`{command}`, {datetime.now(UTC).date().isoformat()}, version {version}."


def aim(what: str, *, found: str, is_met: bool) -> str:
    """A note about an aim of ours, whether it is met or not."""
    return f"{'Met' if is_met else '**Missed**'}: {what}. Found: {found}."


def middle(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return float(median(values)) if values else 0.0


def times(value: float, than: float) -> str:
    """How many times `than` it is: "2.4x", "-" where there is nothing to compare with."""
    if than <= 0:
        return "-"
    digits = 2 if value < than else 1 if value < 10 * than else 0
    return f"{value / than:.{digits}f}x"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
