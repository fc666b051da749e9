"""`python -m lab.matrix`: measures, prints, writes out/matrix.json, out/matrix.md and out/matrix.png. See `--help`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lab import host, rootless
from lab.arguments import some_of
from lab.folder import short_folder
from lab.interrupt import cancelled_by_signals
from lab.matrix import picture
from lab.matrix.campaign import LOADS, Campaign, Plan
from lab.matrix.conditions import NETS
from lab.matrix.events import EVENTS, Event
from lab.matrix.flow import BULK, IDLE, REQUEST
from lab.matrix.markdown import markdown
from lab.matrix.results import Matrix
from lab.matrix.table import show

STREAMS = {"idle": IDLE, "request": REQUEST, "bulk": BULK}
END = 60.0  # seconds for all meshes to end after a signal

HELP = """
Breaks a mesh in all ways that matter, while applications talk through it, and tells what they noticed. Everything is
real except for the wires: four nodes (a, b, and the relays r1 and r2) in simulated networks on this machine, without root.
"""

EXAMPLES = f"""
events:
{chr(10).join(f"  {it.name:16} {it.title}" for it in EVENTS)}

networks:
{chr(10).join(f"  {it.name:16} {it.title}" for it in NETS)}

examples:
  python -m lab.matrix                                       all of it, about 25 minutes
  python -m lab.matrix --events relay-reset --networks clean --runs 20
  python -m lab.matrix --events drain,rolling-restart --streams request --json out/drain.json
  python -m lab.matrix --show out/matrix.json                once more; several files make one table

`python -m pydoc lab.matrix` says precisely what a stall is. The exit code is 0 if no TCP byte was lost, doubled or
swapped, no TCP stream broke, all stalls are within their limits and everything could be measured; else 1, after an interruption 130 (SIGTERM: 143), with the results so far.
"""


def main() -> int:
    options = parse()
    if options.show:
        matrix = empty(EVENTS)
        for path in options.show:
            matrix.add(Matrix.from_json(path.read_text()))
        return conclude(matrix, options)
    if (code := rootless.enter("lab.matrix", patience=END)) is not None:
        return code
    options.json.parent.mkdir(parents=True, exist_ok=True)
    matrix = empty(options.events)
    matrix.host = {**host.describe(), "busy": host.foreign_load()}
    matrix.nets = {it.name: it.caption for it in options.networks}
    ended_by = asyncio.run(measure(matrix, options))
    matrix.interrupted = ended_by != 0
    options.json.write_text(matrix.as_json() + "\n")
    code = conclude(matrix, options)
    return 128 + ended_by if ended_by else code


def empty(events: Sequence[type[Event]]) -> Matrix:
    """One in which nothing was measured."""
    return Matrix(
        titles={it.name: it.title for it in events},
        limits={it.name: it.limit for it in events if it.limit is not None},
        usual={it.name: it.usual for it in events},
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.matrix",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    events = {it.name: it for it in EVENTS}
    nets = {it.name: it for it in NETS}
    parser.add_argument(
        "--runs", type=int, default=5, help="of each event in each network, fewer of the slow ones (default 5)"
    )
    parser.add_argument("--events", type=some_of(events), default=EVENTS, metavar="A,B", help="only these")
    parser.add_argument("--networks", type=some_of(nets), default=NETS, metavar="A,B", help="only these")
    parser.add_argument(
        "--streams",
        type=some_of(STREAMS),
        default=tuple(STREAMS.values()),
        metavar="A,B",
        help="only idle, request, bulk",
    )
    for name, default, kind, what in (
        ("--json", "out/matrix.json", "FILE", "every stall"),
        ("--table", "out/matrix.md", "FILE", "median and 99th percentile, as Markdown"),
        ("--picture", "out/matrix.png", "FILE", "heat map, .png or .svg"),
        ("--logs", "out/matrix-logs", "DIR", "where the nodes' logs of runs that did not go well are kept"),
    ):
        parser.add_argument(name, type=Path, default=Path(default), metavar=kind, help=f"{what} (default {default})")
    parser.add_argument(
        "--slow",
        type=float,
        default=Plan.slow,
        metavar="SECONDS",
        help="a stall from which on logs are kept, too (default 3)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="meshes beside each other (default 1: they disturb each other)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=Plan.seconds / 60,
        help="time for all runs; what does not fit is left out, of all events alike (default 27)",
    )
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing; read these, print the table and draw the picture of all of them together",
    )
    options = parser.parse_args()
    if options.runs < 1 or options.jobs < 1 or options.minutes <= 0:
        parser.error("--runs, --jobs and --minutes must be positive")
    if options.picture.suffix not in (".png", ".svg"):
        parser.error(f"--picture is {options.picture}, expected a name that ends in .png or .svg")
    return options


async def measure(matrix: Matrix, options: argparse.Namespace) -> int:
    """Fills the matrix. Returns the signal that ended it early, else 0."""
    ended_by = cancelled_by_signals()
    loads = [chosen for it in LOADS if (chosen := [load for load in it if load in options.streams])]
    plan = Plan(
        options.events,
        options.networks,
        options.runs,
        loads,
        options.jobs,
        options.minutes * 60,
        options.slow,
        options.logs,
    )
    begin = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with short_folder() as folder, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("runs")

            def tell(line: str) -> None:
                console.print(f"[dim]{time.monotonic() - begin:6.1f} s[/] {line}", highlight=False, soft_wrap=True)
                progress.update(bar, completed=campaign.done, total=campaign.total)

            campaign = Campaign(plan, folder, matrix, tell)
            await campaign.run()
    except asyncio.CancelledError:
        if not ended_by:
            raise
    finally:
        matrix.seconds = time.monotonic() - begin
    return ended_by[0] if ended_by else 0


def conclude(matrix: Matrix, options: argparse.Namespace) -> int:
    """Shows and draws it; the exit code."""
    console = Console()
    show(matrix, console if console.is_terminal else Console(width=170))
    places = [] if options.show else [f"every stall: {options.json}"]
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(markdown(matrix))
    places.append(f"table: {options.table}")
    try:
        picture.draw(matrix, options.picture)
        places.append(f"picture: {options.picture}")
    except ImportError:
        console.print("no picture: matplotlib is missing (pip install matplotlib)")
    console.print(f"{matrix.seconds / 60:.1f} min; {'   '.join(places)}", highlight=False, soft_wrap=True)
    return 0 if matrix.ok else 1


if __name__ == "__main__":
    sys.exit(main())
