"""`python -m lab.simulate`: simulates, prints, and draws with `--picture`. See `--help`."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

from lab.simulate.report import Report
from lab.simulate.world import Plan, World

HELP = """
The DHT with thousands of nodes in one process, deterministic by seed: how many lookups succeed and in how many hops,
what it costs in messages and in memory.
"""

EXAMPLES = """
examples:
  python -m lab.simulate                                    10,000 nodes, an hour of theirs
  python -m lab.simulate --malicious 0.2 -o json
  python -m lab.simulate --nodes 1000 --hours 0.25 --picture out/small.svg

`python -m pydoc lab.simulate` says what is counted. The exit code is 0 if all targets are met, else 1.
"""


def main() -> int:
    options = parse()
    plan = Plan(options.nodes, options.churn, options.hours, options.seed, options.malicious, options.clients)
    began = time.monotonic()
    # Millions of short-lived objects, none of them in a cycle: looking for cycles would only cost time.
    gc.disable()
    world = World(plan)
    world.run()
    report = Report(world)
    print(json.dumps(report.as_json(), indent=2) if options.output == "json" else report.text())
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.picture is not None:
        report.draw(options.picture)
        print(options.picture, file=sys.stderr)
    return 0 if report.ok else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.simulate",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Plan()
    parser.add_argument("--nodes", type=count, default=default.nodes, help="at any time (default 10000)")
    parser.add_argument(
        "--churn", type=share, default=default.churn, help="share that is replaced per hour (default 0.1)"
    )
    parser.add_argument("--hours", type=positive, default=default.hours, help="simulated, after the start (default 1)")
    parser.add_argument("--seed", type=int, default=default.seed, help="the same seed, the same result (default 1)")
    parser.add_argument(
        "--malicious", type=share, default=default.malicious, help="share of the servers that lie (default 0)"
    )
    parser.add_argument(
        "--clients", type=share, default=default.clients, help="share of nodes behind a NAT (default 0.5)"
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it, .svg or .png")
    return parser.parse_args()


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, expected 0 or more and less than 1")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 24:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected more than 0 and at most 24")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 10 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected 10 to 100000")
    return value


if __name__ == "__main__":
    sys.exit(main())
