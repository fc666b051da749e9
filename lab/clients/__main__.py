"""`python -m lab.clients`: tries all clients over both paths, prints a table, writes out/clients.json. See `--help`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lab import host, rootless
from lab.clients.case import Case
from lab.clients.cases import CASES
from lab.clients.results import Result, Results
from lab.clients.stage import PATHS, Stage

END = 60.0  # seconds for everything to end after a signal

HELP = """
Puts well-known clients and servers at the two ends of a mesh with real NATs between them, over a punched and over a relayed
path, and tells how they fared. In simulated networks on this machine, without root.
"""


def main() -> int:
    options = parse()
    if not rootless.inside():
        why = rootless.available()
        if why is not None:
            print(f"no simulated networks here: {why}", file=sys.stderr)
            return 1
        return rootless.supervise([sys.executable, "-m", "lab.clients", *sys.argv[1:]], patience=END)
    results = Results({**host.describe(), "busy": host.foreign_load()})
    chosen = [it for it in CASES if not options.clients or it.name.lower() in options.clients]
    try:
        asyncio.run(measure(results, chosen, options))
    finally:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(results.as_json() + "\n")
    console = Console()
    results.show(console if console.is_terminal else Console(width=150))
    console.print(f"all of it: {options.json}")
    return 0 if results.ok else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.clients", description=HELP)
    names = [it.name.lower() for it in CASES]
    parser.add_argument(
        "--clients", type=some_of(names), default=[], metavar="A,B", help=f"only these of {', '.join(names)}"
    )
    parser.add_argument(
        "--paths", type=some_of(list(PATHS)), default=list(PATHS), metavar="A,B", help="only direct or relayed"
    )
    parser.add_argument("--brief", action="store_true", help="less content and shorter loads: under a minute")
    parser.add_argument(
        "--json", type=Path, default=Path("out/clients.json"), metavar="FILE", help="(default out/clients.json)"
    )
    return parser.parse_args()


def some_of(known: list[str]) -> Callable[[str], list[str]]:
    """A parser of "a,b"."""

    def parse_names(text: str) -> list[str]:
        names = [it for it in text.lower().split(",") if it]
        unknown = [it for it in names if it not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown) or 'nothing'}, expected some of {', '.join(known)}"
            )
        return names

    return parse_names


async def measure(results: Results, cases: Sequence[Case], options: argparse.Namespace) -> None:
    """Fills the results."""

    def report(result: Result) -> None:
        results.rows.append(result)
        line = f"{result.path} {result.client}, {result.check}: {result.figure if result.result == 'ok' else result.result}"
        print(line, file=sys.stderr)

    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    try:
        for path in options.paths:
            stage = Stage(folder / path, path, cases, report, brief=options.brief)
            try:
                await stage.open()
                await stage.run()
            finally:
                await stage.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
