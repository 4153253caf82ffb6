"""Every measurement, one after the other: `python -m bench [--write-docs] [--only hot_sale]`."""

import argparse
import subprocess
import sys
import time

from bench.programs import ROOT, progress

# Each with the names of its tables.
MEASUREMENTS = {
    "machine": ("machine",),
    "hot_sale": ("hot-sale",),
    "many_concerts": ("many-concerts",),
    "story": ("story",),
    "fan_out": ("fan-out",),
    "slow_payment": ("slow-payment",),
    "siege": ("siege",),
    "growth": ("growth-of-bookings", "growth-of-concerts"),
    "memory": ("memory",),
    "sweep": ("sweep",),
}


def main() -> None:
    """Run them; exit 1 where one failed, the others having run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=tuple(MEASUREMENTS), help="may be given several times"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    passed_on = ["--write-docs"] if options.write_docs else []
    failed = []
    for name in options.only or MEASUREMENTS:
        began_s = time.monotonic()
        print(f"## {name.replace('_', ' ')}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *passed_on]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
        progress(f"{name}: {time.monotonic() - began_s:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
