"""What can be asked of a running lab, and how it is done."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from rich.console import Console

from causeway import snapshot
from causeway.errors import RUNTIME, USAGE
from causeway.lab import view
from causeway.lab.foreground import Foreground
from causeway.wording import path_kind
from lab.echo import echo
from lab.node import Node
from lab.panel import Wire
from lab.stage import Stage
from lab.topology import reshaped
from lab.wire import Shape
from services.runtime.problems import nearest

TAIL = 40  # lines shown of a log or of a router's table


class Refused(Exception):
    """An order that cannot be carried out; the message says why and what can."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class Leave(Exception):
    """Somebody wants to go."""


@dataclass(frozen=True)
class Order:
    """One word that can be said, what belongs behind it (so many words), and what it does."""

    usage: str
    summary: str
    least: int
    most: int
    obey: Callable[[list[str]], int | None]
    """Gets the words behind it, returns an exit code (None: 0)."""
    follow: Callable[[list[str]], Collection[str]] = lambda _: ()
    """Words that may come next, for completion."""


class Orders:
    """The orders of one lab."""

    def __init__(
        self, stage: Stage, runner: asyncio.Runner, foreground: Foreground, console: Console, *, at_terminal: bool
    ) -> None:
        self._stage = stage
        self._runner = runner
        self._foreground = foreground
        self._console = console
        self._at_terminal = at_terminal
        any_number = sys.maxsize
        self.table = {
            "status": Order("", "what runs, and by which paths nodes reach each other", 0, 0, self._status),
            "hosts": Order("", "the tables of the beginning, with the links as they are now", 0, 0, self._hosts),
            "run": Order(
                "HOST COMMAND…",
                "run a command on a host, or on a LAN's router",
                2,
                any_number,
                self._run,
                lambda words: self._places() if not words else (),
            ),
            "shell": Order(
                "HOST",
                "a shell there; causeway status in it means the node of that host",
                1,
                1,
                self._shell,
                lambda words: self._places() if not words else (),
            ),
            "ping": Order(
                "A B",
                "how far it is from A to B, without the mesh and with it",
                2,
                2,
                self._ping,
                lambda words: stage.hosts if len(words) < 2 else (),
            ),
            "wire": Order(
                "NAME [out|in] [KEY=VALUE…] [down|up]",
                "the link of a host or LAN: delay=40ms jitter=5ms loss=2% rate=10mbit queue=64kB",
                1,
                any_number,
                self._wire,
                lambda words: WIRE_WORDS if words else stage.wires,
            ),
            "nat": Order(
                "LAN [flush]",
                "what a router remembers; flush: it forgets all, as by a reboot",
                1,
                2,
                self._nat,
                lambda words: ("flush",) if words else stage.lans,
            ),
            "kill": Order(
                "HOST [SERVICE…]", "SIGKILL to services of a node, all by default", 1, 5, self._kill, self._parts
            ),
            "start": Order("HOST [SERVICE…]", "start what was killed, all by default", 1, 5, self._start, self._parts),
            "log": Order("HOST SERVICE", "the end of a service's log, or of programs", 2, 2, self._log, self._parts),
            "help": Order("", "this list", 0, 0, self._help),
            "quit": Order("", "end everything; so do Ctrl-D and Ctrl-C", 0, 0, self._quit),
        }

    def obey(self, words: list[str]) -> int:
        """Carries out one order. Returns an exit code; raises Refused, Leave, and what the lab raises."""
        name, *rest = words
        order = self.table.get("quit" if name == "exit" else name)
        if order is None:
            near = nearest(name, self.table)
            raise Refused(f"no order {name!r}: {f'did you mean {near}?' if near else 'see help'}")
        if not order.least <= len(rest) <= order.most:
            raise Refused(f"expected: {name} {order.usage}".rstrip())
        return order.obey(rest) or 0

    def candidates(self, words: list[str]) -> Collection[str]:
        """What may come after these words of a line."""
        if not words:
            return self.table
        order = self.table.get(words[0])
        return order.follow(words[1:]) if order is not None else ()

    def _status(self, _: list[str]) -> None:
        self._console.print(view.status(self._runner.run(self._look())))

    def _hosts(self, _: list[str]) -> None:
        self._console.print(view.overview(self._stage.describe()))

    def _run(self, words: list[str]) -> int:
        place = self._known(words[0], self._places(), "host or LAN")
        return self._foreground.run(
            self._stage, place, words[1:], stdin=None if self._at_terminal else subprocess.DEVNULL
        )

    def _shell(self, words: list[str]) -> int:
        place = self._known(words[0], self._places(), "host or LAN")
        if not self._at_terminal:
            raise Refused(f"a shell needs a terminal: use run {place} COMMAND…")
        return self._foreground.shell(self._stage, place)

    def _ping(self, words: list[str]) -> int:
        a, b = (self._stage.hosts[self._known(word, self._stage.hosts, "host")] for word in words)
        there = False
        for address in filter(None, (b.address, b.address6 if a.address6 else "")):
            rtt = echo(a.namespace, address)
            there = there or rtt is not None
            answer = f"{rtt * 1000:.1f} ms" if rtt is not None else "no answer"
            self._say(f"network  {a.name} → {b.name} ({address}): {answer}")
        nodes = self._stage.nodes
        if a.name not in nodes or b.name not in nodes or a is b:
            return 0 if there else RUNTIME
        try:
            answer = self._runner.run(_mesh_ping(nodes[a.name], b.name))
        except grpc.aio.AioRpcError as error:
            self._say(f"mesh     {a.name} → {b.name}: {error.details() or error.code().name}")
            return RUNTIME
        self._say(f"mesh     {a.name} → {b.name}: {answer}")
        return 0

    def _wire(self, words: list[str]) -> None:
        wires = self._stage.wires
        name = self._known(words.pop(0), wires, "host or LAN with a link")
        wire = wires[name]
        if words:
            _change(wire, words)
        ways: dict[str, Any] = {way: vars(shape) for way, shape in (("out", wire.forward), ("in", wire.backward))}
        self._say(f"{name}: {view.link(ways)}")
        if not words:
            for way, counts in zip(("out", "in"), wire.count().values(), strict=True):
                self._say(f"{way:>4}: {counts['frames']} frames, {counts['bytes']} bytes, {counts['dropped']} dropped")

    def _nat(self, words: list[str]) -> None:
        lan = self._stage.lans[self._known(words[0], self._stage.lans, "LAN")]
        if words[1:] == ["flush"]:
            lan.flush()
            self._say(f"{lan.name}: the router has forgotten every flow and mapping")
            return
        if words[1:]:
            raise Refused(f"found {words[1]!r}; expected: nat {lan.name} [flush]")
        flows = lan.router.run(["conntrack", "-L"]).splitlines()
        self._say(f"{lan.name}: {lan.nat.kind.value}, {len(flows)} flows")
        for flow in flows[:TAIL]:
            self._say(flow)

    def _kill(self, words: list[str]) -> None:
        name, services = self._services(words)
        running = [it for it in services if self._stage.nodes[name].running(it)]
        self._runner.run(self._stage.kill(name, *running))
        self._say(f"{name}: killed {', '.join(running)}" if running else f"{name}: none of them runs")

    def _start(self, words: list[str]) -> None:
        name, services = self._services(words)
        missing = [it for it in services if not self._stage.nodes[name].running(it)]
        self._runner.run(self._stage.revive(name, *missing))
        self._say(f"{name}: {', '.join(missing)} ready" if missing else f"{name}: they run already")

    def _log(self, words: list[str]) -> None:
        name = self._known(words[0], self._stage.hosts, "host")
        names = [*self._stage.services(name)] if name in self._stage.nodes else []
        file = self._known(words[1], [*names, "programs"], "log")
        path = self._stage.folder / name / f"{file}.log"
        if not path.exists():
            raise Refused(f"{name} has no log of {file}", RUNTIME)
        self._say("\n".join(path.read_text(errors="replace").splitlines()[-TAIL:]))

    def _help(self, _: list[str]) -> None:
        for name, order in self.table.items():
            said = f"  {name} {order.usage}"
            gap = "\n" + " " * 26 if len(said) > 25 else " " * (26 - len(said))
            self._say(f"{said}{gap}{order.summary}")

    def _quit(self, _: list[str]) -> None:
        raise Leave

    # -- helpers

    async def _look(self) -> list[dict[str, Any]]:
        stage = self._stage
        names = [name for name in stage.hosts if name in stage.nodes or stage.programs.get(name)]
        taken = await asyncio.gather(*(snapshot.take(stage.nodes[name].run_dir) for name in stage.nodes))
        snapshots = dict(zip(stage.nodes, taken, strict=True))
        return [
            {
                "name": name,
                "services": {it: stage.nodes[name].running(it) for it in stage.services(name)}
                if name in stage.nodes
                else {},
                "programs": {it.argv[-1]: it.code for it in stage.programs.get(name, [])},
                "snapshot": snapshots.get(name),
            }
            for name in names
        ]

    def _services(self, words: list[str]) -> tuple[str, Sequence[str]]:
        name = self._known(words[0], self._stage.nodes, "host with a node")
        own = self._stage.services(name)
        return name, [self._known(it, own, f"service of {name}") for it in words[1:]] or own

    def _parts(self, words: list[str]) -> Collection[str]:
        if not words:
            return self._stage.nodes
        return self._stage.services(words[0]) if words[0] in self._stage.nodes else ()

    def _places(self) -> list[str]:
        return [*self._stage.hosts, *self._stage.lans, "internet"]

    def _known(self, name: str, names: Collection[str], what: str) -> str:
        if name in names:
            return name
        near = nearest(name, names)
        raise Refused(
            f"no {what} {name!r}: " + (f"did you mean {near}?" if near else f"expected {', '.join(names) or 'none'}")
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


WIRE_WORDS = ("out", "in", "delay=", "jitter=", "loss=", "rate=", "queue=", "down", "up")


async def _mesh_ping(node: Node, peer: str) -> str:
    """A round trip inside the mesh, in words; builds a session if there is none."""
    rtt = await node.ping(peer)
    link = await node.active(peer)
    kind = path_kind(link.kind) if link is not None else "no path any more"
    relay = f" via {link.relay}" if link is not None and link.relay else ""
    return f"{rtt * 1000:.1f} ms, {kind}{relay}"


def _change(wire: Wire, words: list[str]) -> None:
    """Applies the words behind `wire NAME`: [out|in] KEY=VALUE… [down|up], in any order."""
    ways: set[str] = set()
    given: dict[str, str] = {}
    dark: bool | None = None
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("out", "in"):
            ways.add(word)
        elif word in ("down", "up"):
            dark = word == "down"
        elif equals:
            given[key] = value
        else:
            raise Refused(f"found {word!r}; expected KEY=VALUE, down, up, or out or in for one direction alone")

    def changed(shape: Shape, way: str) -> Shape:
        if ways and way not in ways:
            return shape
        shape = reshaped(shape, given)
        return shape if dark is None else replace(shape, dark=dark)

    try:
        wire.shape(changed(wire.forward, "out"), changed(wire.backward, "in"))
    except ValueError as error:
        raise Refused(str(error)) from None
