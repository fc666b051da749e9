"""The command line of the demo."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
from rich.console import Console

from causeway import options
from causeway.demo import picture
from causeway.demo.outcome import Outcome
from causeway.demo.story import Story
from causeway.demo.view import View
from causeway.errors import CommandError
from lab import rootless
from lab.interrupt import cancelled_by_signals
from lab.mesh import HOME_SHAPE, Mesh
from lab.namespace import LabError
from lab.node import NodeError
from lab.wire import Shape

# A home's link of 100 Mbit/s takes about 35 s for 384 MiB: time to watch, and for the mesh to be whole again
# between the two events; less than two minutes in all.
DEFAULT_SIZE, DEFAULT_RATE = 384, 100
QUEUE = 512_000  # bytes a home router lets wait: 40 ms at 100 Mbit/s
END = 15.0  # seconds for everything to end after a signal


@click.command()
@click.option(
    "--size", type=click.IntRange(min=1), default=DEFAULT_SIZE, show_default=True, help="Size of the file in MiB."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=DEFAULT_RATE,
    show_default=True,
    help="Mbit/s of the homes' links; 0: no limit.",
)
@click.option("--loopback", is_flag=True, help="Nodes on 127.x.y.z that do not listen, instead of simulated NATs.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out"),
    help="Folder for demo.svg and demo.json.",
)
@click.option("--keep", is_flag=True, help="Keep the folder with the nodes' files and logs.")
@options.output
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def demo(size: int, rate: float, loopback: bool, out: Path, keep: bool, output: str, folder: Path | None) -> int:
    """Two nodes, two relays, and relays killed under a download.

    \b
    Starts the nodes a and b, which cannot reach each other, and the relays r1 and r2 on this machine, and
    downloads a file from a web server at b by its service's address at a. Half-way it kills the relay in
    use, later silences the next one. Shows the stalls, and that not one byte was lost.

    Needs no root. Exit code 0 only if nothing was lost.

    \b
    Examples:
      causeway demo                           all of it, under two minutes
      causeway demo --size 64 --rate 0        a small file at full speed
      causeway demo --loopback -o json | jq .
    """
    _prepare(out)
    reason = "asked for by --loopback" if loopback else rootless.available()
    if folder is not None:
        return asyncio.run(_run(folder, size << 20, rate * 1e6, out, output, reason))
    with _folder(keep) as made:
        if reason is not None:
            code = asyncio.run(_run(made, size << 20, rate * 1e6, out, output, reason))
        else:
            argv = [sys.executable, "-m", "causeway", *sys.argv[1:], "--folder", str(made)]
            code = rootless.supervise(argv, patience=END)
    return code


def _prepare(out: Path) -> None:
    """Finds out before the demo, not after it, that its results have no place."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "demo.json").touch()
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}; --out names another folder") from None


async def _run(folder: Path, size: int, rate: float, out: Path, output: str, reason: str | None) -> int:
    ended_by = cancelled_by_signals()
    console = Console(stderr=output == "json")
    try:
        outcome = await _play(folder, size, rate, reason, console)
    except (asyncio.CancelledError, CommandError):  # the signal may have met a program of ours first
        if not ended_by:
            raise
    if ended_by:
        return 128 + ended_by[0]
    _tell(console, outcome, out, output)
    return 0 if outcome.ok else 1


async def _play(folder: Path, size: int, rate: float, reason: str | None, console: Console) -> Outcome:
    try:
        mesh = _mesh(folder, rate, reason)
        with View(console) as view:
            _introduce(view, mesh, reason)
            try:
                return await Story(
                    mesh, view, size=size, rate=0 if mesh.is_simulated else rate, reason=reason or ""
                ).run()
            finally:
                view.wait("ending all processes")
                await mesh.stop()
    except (NodeError, LabError) as error:
        raise CommandError(*str(error).splitlines(), "--keep keeps the nodes' logs") from None
    except grpc.aio.AioRpcError as error:
        raise CommandError(f"a node's service says: {error.details()}", "--keep keeps the nodes' logs") from None


def _mesh(folder: Path, rate: float, reason: str | None) -> Mesh:
    if reason is not None:
        return Mesh.loopback(folder)
    return Mesh.simulated(folder, home=Shape(delay=HOME_SHAPE.delay, rate=rate, queue=QUEUE))


def _introduce(view: View, mesh: Mesh, reason: str | None) -> None:
    if mesh.is_simulated:
        view.say("a behind a masquerading NAT, b behind a symmetric one, r1 and r2 public; every link has its delay")
    else:
        view.say(f"no simulated NATs ({reason}): nodes on 127.x.y.z, of which a and b do not listen")


def _tell(console: Console, outcome: Outcome, out: Path, output: str) -> None:
    (out / "demo.json").write_text(outcome.to_json() + "\n")
    (out / "demo.svg").write_text(picture.draw(outcome))
    console.print()
    console.print(outcome.table())
    console.print(outcome.verdict(), style="bold green" if outcome.ok else "bold red", highlight=False, soft_wrap=True)
    console.print(f"rate over time: {out / 'demo.svg'}   numbers: {out / 'demo.json'}", highlight=False, soft_wrap=True)
    if output == "json":
        print(outcome.to_json())


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    """A folder for the nodes, with a short path since it holds Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="causeway-demo-"))
    try:
        yield path
    finally:
        if keep:
            print(f"the nodes' files and logs are in {path}", file=sys.stderr)
        else:
            shutil.rmtree(path, ignore_errors=True)
