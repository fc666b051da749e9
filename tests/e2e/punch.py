"""The punch table: which pairs of routers get a direct path, and how soon. `python -m tests.e2e.punch`, or `make punch`.

Each try is a new session between two nodes of `tests.e2e.homes`. A pair that can be punched must be in 19 of 20 tries, at
the median within three round trips of its direct way and 500 ms of the session's start; a pair that cannot must never
be. In simulated networks on this machine, without root. The exit code is 0 if all pairs are as they must be.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import host, rootless
from lab.folder import short_folder
from protos import tunnel_pb2 as pb
from tests.e2e.homes import PAIRS, Homes, Pair, Try

MUST = 0.95  # share of the tries
ROUND_TRIPS = 3
BEGINNING = 0.5  # seconds; of TLS, of the offer, and of a machine that does other things, too
WITHIN = 6.0  # seconds after which a path is what it is: all attempts of the first round are over (core/punch.py)
END = 60.0  # seconds for all nodes to end after a signal


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a pair."""

    name: str
    pair: Pair
    tries: list[Try]

    @property
    def direct(self) -> list[float]:
        """Seconds from the session's start to the direct path, of those that got one, in order."""
        return sorted(it.seconds for it in self.tries if it.kind != pb.PATH_KIND_RELAYED)

    @property
    def limit(self) -> float:
        """Seconds for the median."""
        return ROUND_TRIPS * self.pair.rtt + BEGINNING

    @property
    def fault(self) -> str:
        """What is not as it must be; empty when all is."""
        direct = self.direct
        if self.pair.hopeless:
            return "none can be direct" if direct else ""
        if not self.tries or len(direct) < MUST * len(self.tries):
            return f"at least {MUST:.0%} must be direct"
        if (median := statistics.median(direct)) > self.limit:
            return f"the median is {median:.3f} s, not within {self.limit:.2f} s"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, times in milliseconds as in the other reports."""
        direct = self.direct
        return {
            "pair": self.name,
            "hopeless": self.pair.hopeless,
            "rtt_ms": round(self.pair.rtt * 1000, 1),
            "tries": len(self.tries),
            "direct": len(direct),
            "median_ms": round(statistics.median(direct) * 1000, 1) if direct else None,
            "max_ms": round(direct[-1] * 1000, 1) if direct else None,
            "limit_ms": None if self.pair.hopeless else round(self.limit * 1000, 1),
            "fault": self.fault,
            "seconds": direct,
        }

    def text(self) -> str:
        """A line."""
        direct = self.direct
        times = f"{statistics.median(direct):6.3f} {direct[-1]:6.3f}" if direct else " " * 13
        limit = " " * 6 if self.pair.hopeless else f"{self.limit:6.2f}"
        share = f"{len(direct)}/{len(self.tries)}"
        return f"{self.name:32} {share:>6} {times} {limit}{f'  <-- {self.fault}' if self.fault else ''}"


HEAD = f"{'pair':32} direct median    max  limit   seconds from the session's start"


async def measure(folder: Path, pairs: dict[str, Pair], tries: int, tell: Callable[[str], None]) -> list[Row]:
    """All of them; tells of each when it is known."""
    homes = Homes(folder, {name for pair in pairs.values() for name in pair.names})
    rows = []
    try:
        await homes.start()
        tell(HEAD)
        for name, pair in pairs.items():
            done = []
            for number in range(tries):
                # Both ways in turn: who dials differs.
                one, other = pair.names if number % 2 == 0 else reversed(pair.names)
                done.append(await homes.attempt(one, other, within=WITHIN))
            rows.append(Row(name, pair, done))
            tell(rows[-1].text())
    finally:
        await homes.stop()
    return rows


def report(rows: list[Row], machine: dict[str, str]) -> dict[str, Any]:
    """The stable form."""
    ok = bool(rows) and not any(it.fault for it in rows)
    return {"schema": 1, "ok": ok, "host": machine, "pairs": [it.as_dict() for it in rows]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.punch", description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20, help="of each pair (default 20: about 20 minutes in all)")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="pairs whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every try there")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    pairs = {name: pair for name, pair in PAIRS.items() if not options.only or any(it in name for it in options.only)}
    if options.tries < 1 or not pairs:
        parser.error(f"--tries must be positive, --only must be in one of: {'; '.join(PAIRS)}")
    if (code := rootless.enter("tests.e2e.punch", patience=END)) is not None:
        return code
    where = sys.stderr if options.output == "json" else sys.stdout
    machine = {**host.describe(), "busy": host.foreign_load()}
    with short_folder() as folder:
        rows = asyncio.run(measure(folder, pairs, options.tries, lambda line: print(line, file=where, flush=True)))
    found = report(rows, machine)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.output == "json":
        print(json.dumps(found, indent=1))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
