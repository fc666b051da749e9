"""`python -m lab.clients`: tries all clients over both paths, prints a table, writes out/clients.json. See `--help`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console

from lab import host, rootless
from lab.arguments import some_of
from lab.clients.cases import CASES
from lab.clients.results import Result, Results
from lab.clients.stage import PATHS, Stage
from lab.folder import short_folder

END = 60.0  # seconds for everything to end after a signal

HELP = """
Puts well-known clients and servers at the two ends of a mesh with real NATs between them, over a punched and over a relayed
path, and tells how they fared. In simulated networks on this machine, without root. What is not installed is skipped; with
NATLAB_REQUIRED=1 it has failed.
"""

EXAMPLES = """
examples:
  python -m lab.clients                                      all of them, over both paths
  python -m lab.clients --clients grpc,openssh --paths relayed --brief
"""


def main() -> int:
    options = parse()
    if (code := rootless.enter("lab.clients", patience=END)) is not None:
        return code
    results = Results({**host.describe(), "busy": host.foreign_load()})
    try:
        asyncio.run(measure(results, options))
    finally:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(results.as_json() + "\n")
    console = Console()
    results.show(console if console.is_terminal else Console(width=150))
    console.print(f"all of it: {options.json}")
    return 0 if results.ok else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.clients",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    clients = {it.name.lower(): it for it in CASES}
    paths = {it: it for it in PATHS}
    parser.add_argument(
        "--clients", type=some_of(clients), default=CASES, metavar="A,B", help=f"only these of {', '.join(clients)}"
    )
    parser.add_argument(
        "--paths", type=some_of(paths), default=tuple(paths), metavar="A,B", help="only direct or relayed"
    )
    parser.add_argument("--brief", action="store_true", help="less content and shorter loads: under a minute")
    parser.add_argument(
        "--json", type=Path, default=Path("out/clients.json"), metavar="FILE", help="(default out/clients.json)"
    )
    return parser.parse_args()


async def measure(results: Results, options: argparse.Namespace) -> None:
    """Fills the results."""

    def report(result: Result) -> None:
        results.rows.append(result)
        line = f"{result.path} {result.client}, {result.check}: {result.figure if result.result == 'ok' else result.result}"
        print(line, file=sys.stderr)

    with short_folder() as folder:
        for path in options.paths:
            stage = Stage(folder / path, path, options.clients, report, brief=options.brief)
            try:
                await stage.open()
                await stage.run()
            finally:
                await stage.close()


if __name__ == "__main__":
    sys.exit(main())
