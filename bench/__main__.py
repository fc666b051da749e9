"""`python -m bench`: measures, prints, writes out/bench.json. See `--help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench import idle, measures, stall
from bench.haproxy import Haproxy, HaproxyTls
from bench.measures import EACH_ROUND, FULL, QUICK, Sizes
from bench.mesh import Causeway, CausewayRelayed
from bench.nebula import Nebula
from bench.process import ROOT, Failed
from bench.report import Column, Report, show
from bench.rig import Loopback, NotRun, Rig
from bench.ssh import Ssh
from lab import host

# In the order of measuring: Causeway between its peers, so that a slow drift of the machine hits all alike.
RIGS: tuple[type[Rig], ...] = (Rig, Haproxy, Causeway, HaproxyTls, CausewayRelayed, Ssh, Nebula)
MEASURES = ("idle", *EACH_ROUND, "streams", "stall")
STREAM_RIGS = ("haproxy", "causeway")


def main() -> int:
    options = parse()
    sizes = QUICK if options.quick else FULL
    if options.rounds:
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    report = Report(host=describe_host(), sizes=dataclasses.asdict(sizes))
    report.busy = host.foreign_load()
    progress = Console(stderr=True)

    def tell(line: str) -> None:
        progress.print(f"[dim]{time.monotonic() - begin:6.1f} s[/] {line}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            measure(report, sizes, Path(folder), set(options.only or MEASURES), set(options.rig or ()), tell)
        except KeyboardInterrupt:
            report.errors.append("interrupted; what had been measured until then follows")
    report.seconds = time.monotonic() - begin
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
    options.out.write_text(text + "\n")
    if options.output == "json":
        print(text)
    else:
        console = Console()
        show(report, console if console.is_terminal else Console(width=130))
        print(f"{report.seconds:.0f} s; all values in {options.out}")
    return 0


HELP = """
Causeway side by side with its peers on this machine: medians of interleaved rounds, and the ratios that the project
promises. A missed target is marked; the exit code is 0 all the same.
"""

EXAMPLES = """
examples:
  python -m bench                                            all of it, as `make bench`
  python -m bench --quick --only rr --rig causeway --rig haproxy
  python -m bench --only bulk --rounds 9 -o json
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=MEASURES, help="measure this only; may be repeated")
    parser.add_argument(
        "--rig", action="append", choices=[rig.name for rig in RIGS], help="with this only; may be repeated"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds of traffic (default {FULL.rounds}, quick {QUICK.rounds})")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work, not how fast is it")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="on standard output")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench.json", help="file (default out/bench.json)")
    return parser.parse_args()


def measure(
    report: Report, sizes: Sizes, folder: Path, only: set[str], names: set[str], tell: Callable[[str], None]
) -> None:
    """Fills the report. What fails is said there and does not stop the rest."""
    loopback = Loopback(random.Random())
    chosen = [rig for rig in RIGS if not names or rig.name in names]
    if "idle" in only and any(issubclass(rig, Causeway) for rig in chosen):
        # First and alone: pages shared with the processes of other meshes would make it look small.
        tell("idle node")
        try:
            report.idle = idle.measure(folder, loopback, sizes.idle_seconds)
        except Failed as failure:
            report.errors.append(f"idle node: {failure}")
    if not only - {"idle"}:
        return
    with ExitStack() as stack:
        rigs = [rig for kind in chosen if (rig := start(kind, folder, loopback, report, stack, tell))]
        # Before any other load: memory that it freed but kept would be used again, and the streams look small.
        for rig in rigs:
            if "streams" in only and rig.name in STREAM_RIGS:
                tell(f"idle streams: {rig.title}")
                attempt(report.columns[rig.name], measures.idle_streams, rig, sizes)
        for rig in rigs:
            attempt(report.columns[rig.name], measures.warm_up, rig, sizes)
        for number in range(1, sizes.rounds + 1):
            for name, gauge in EACH_ROUND.items():
                if name in only:
                    tell(f"round {number}/{sizes.rounds}: {name}")
                    for rig in rigs:
                        attempt(report.columns[rig.name], gauge, rig, sizes)
        for rig in rigs:
            if "stall" in only and isinstance(rig, CausewayRelayed):
                for name, event in (("kill", stall.kill), ("freeze", stall.freeze)):
                    try:
                        stalls = event(rig, sizes.kills, lambda line, name=name: tell(f"relay {name} {line}"))  # type: ignore[misc]
                        report.stalls[name] = stall.summary(stalls)
                    except Failed as failure:
                        report.columns[rig.name].errors.append(f"stall, {name}: {failure}")


def start(
    kind: type[Rig],
    folder: Path,
    loopback: Loopback,
    report: Report,
    stack: ExitStack,
    tell: Callable[[str], None],
) -> Rig | None:
    """A rig that carries traffic, or None with the reason in the report."""
    column = report.columns[kind.name] = Column(kind.title)
    tell(f"starting {kind.title}")
    try:
        return stack.enter_context(kind(folder, loopback))
    except NotRun as reason:
        column.not_run = str(reason)
    except Failed as failure:
        column.errors.append(str(failure))
    return None


def attempt(column: Column, gauge: Callable[[Rig, Sizes], dict[str, float]], rig: Rig, sizes: Sizes) -> None:
    try:
        column.add(gauge(rig, sizes))
    except (Failed, OSError) as failure:
        column.errors.append(f"{gauge.__name__}: {failure}")


def describe_host() -> dict[str, str]:
    """What the numbers depend on, as far as the host tells."""
    found = host.describe()
    for name, argv in (("haproxy", ["haproxy", "-v"]), ("ssh", ["ssh", "-V"]), ("nebula", ["nebula", "-version"])):
        if shutil.which(argv[0]):
            said = subprocess.run(argv, capture_output=True, text=True)
            found[name] = (said.stdout or said.stderr).splitlines()[0].strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
