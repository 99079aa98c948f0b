"""Run every measurement, or the quick part of them.

    python -m benchmarks [--quick]

``--quick`` counts work and takes seconds of processor time; the whole takes most of an hour on two cores.
Further options go to the measurements themselves, run one by one: ``python -m benchmarks.training --help``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

QUICK = (("work", "--size", "small", "--reviews", "8"),)
WHOLE = (
    ("work", "--size", "base"),
    ("training",),
    ("inference",),
    ("latency",),
    ("memory",),
    ("bulk",),
    ("start_up",),
    ("scaling", "--size", "small"),
    ("roofline",),
)


def main() -> None:
    """Run them in interpreters of their own, so that one's memory and threads do not reach another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="work counts only")
    for name, *rest in QUICK if parser.parse_args().quick else WHOLE:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rest], check=True)


if __name__ == "__main__":
    main()
