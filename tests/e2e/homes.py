"""Homes behind every kind of NAT with a node in each, and two relays: who gets a direct path to whom?

`python -m lab.rootless python -m tests.e2e.homes [--tries N]` prints the punch table.
"""

import argparse
import asyncio
import contextlib
import secrets
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lab.folder import short_folder
from lab.nat import Kind, Nat
from lab.network import Lan, Network
from lab.node import Node, together
from lab.place import simulated
from lab.wire import Shape
from protos import tunnel_pb2 as pb
from tests.e2e.traffic import eventually

HOME = Shape(delay=0.010)  # one way, seconds
RELAY = Shape(delay=0.005)
DIRECT_RTT = 0.040
RELAYED_RTT = 0.060
SERVICES = ("discovery", "tunnel")

PAIRS = {
    "masquerade + masquerade": ("m1", "m2"),
    "masquerade + firewall": ("m1", "f1"),
    "firewall + firewall": ("f1", "f2"),
    "cone + masquerade": ("c1", "m1"),
    "cone + symmetric": ("c1", "s1"),
    "double NAT + masquerade": ("d1", "m1"),
    "one carrier, hairpin": ("g1", "g2"),
    "masquerade + masquerade, resets": ("t1", "t2"),
    "symmetric + masquerade": ("s1", "m1"),
    "symmetric + symmetric": ("s1", "s2"),
    "one carrier, no hairpin": ("h1", "h2"),
}
HOPELESS = {"symmetric + masquerade", "symmetric + symmetric", "one carrier, no hairpin"}


@dataclass(frozen=True, slots=True)
class Try:
    """How one session found its path."""

    kind: int
    """PathKind of the active link at the end."""
    seconds: float
    """From the session's start until that link was there."""


class Homes:
    """The network and its nodes. Start, use, stop."""

    def __init__(self, folder: Path, names: set[str] | None = None) -> None:
        self.network = Network()
        self.routers: dict[str, Lan] = {}
        """The router at each home, by the node's name."""
        try:
            hosts = self._hosts(names)
            places = [simulated(host) for host in hosts]
            relays = [simulated(self.network.public(name, shape=RELAY)) for name in ("r1", "r2")]
            psk = secrets.token_hex(32)
            self.relays = [Node(it, folder / it.name, psk=psk, relays=relays) for it in relays]
            self.nodes = {
                it.name: Node(
                    it,
                    folder / it.name,
                    psk=psk,
                    relays=relays,
                    relay_mode="off",
                    # As on real machines, each has a port of its own: two behind one NAT would fight for it.
                    modules={"edgeTunnel": {"listenPort": 21000 + number}},
                )
                for number, it in enumerate(places)
            }
        except BaseException:
            self.network.close()
            raise

    def _hosts(self, names: set[str] | None):
        network, masquerade = self.network, Nat(Kind.PORT_RESTRICTED)
        kinds = {
            "m1": masquerade,
            "m2": masquerade,
            "f1": Nat(Kind.FIREWALL),
            "f2": Nat(Kind.FIREWALL),
            "c1": Nat(Kind.FULL_CONE),
            "s1": Nat(Kind.SYMMETRIC),
            "s2": Nat(Kind.SYMMETRIC),
            "t1": Nat(Kind.PORT_RESTRICTED, answers_rst=True),
            "t2": Nat(Kind.PORT_RESTRICTED, answers_rst=True),
        }
        for name, nat in kinds.items():
            if names is None or name in names:
                self.routers[name] = network.lan(f"home-{name}", nat, shape=HOME)
                yield self.routers[name].host(name)
        carriers = {"d": (masquerade, ("d1",)), "g": (Nat(hairpin=True), ("g1", "g2")), "h": (masquerade, ("h1", "h2"))}
        for carrier, (nat, customers) in carriers.items():
            if names is None or names & set(customers):
                above = network.lan(f"carrier-{carrier}", nat, carrier=True, shape=Shape(delay=0.005))
                for name in customers:
                    shape = Shape(delay=0.005)
                    self.routers[name] = network.lan(f"home-{name}", masquerade, shape=shape, behind=above)
                    yield self.routers[name].host(name)

    async def start(self) -> None:
        """Starts everything and waits until each home is reachable over both relays."""
        for relay in self.relays:
            relay.start("discovery", "relay")
        for node in self.nodes.values():
            node.start(*SERVICES)
        await together(relay.ready("discovery", "relay", timeout=120) for relay in self.relays)
        await together(node.ready(*SERVICES, timeout=120) for node in self.nodes.values())
        for node in self.nodes.values():
            await eventually(lambda node=node: reserved(node), f"{node.name} has its reservations")

    async def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.network.close)
            await asyncio.gather(*(node.stop(timeout=5) for node in [*self.nodes.values(), *self.relays]))

    async def attempt(self, a: str, b: str, *, within: float) -> Try:
        """A new session from a to b, and the path that it has found after at most so many seconds."""
        caller, callee = self.nodes[a], self.nodes[b]
        await caller.restart("tunnel")
        await eventually(lambda: reserved(caller), f"{a} has its reservations")
        await eventually(lambda: forgotten(callee, a), f"{b} has forgotten the session")
        await caller.ping(b, timeout=60)
        deadline = time.monotonic() + within
        while True:
            session = next(it for it in (await caller.tunnel()).sessions if it.peer == b)
            active = next((link for link in session.links if link.state == "active"), None)
            if active is not None and active.kind != pb.PATH_KIND_RELAYED:
                return Try(active.kind, (session.age.ToMilliseconds() - active.age.ToMilliseconds()) / 1000)
            if time.monotonic() > deadline:
                return Try(pb.PATH_KIND_RELAYED, 0.0)
            await asyncio.sleep(0.1)


async def reserved(node: Node) -> bool:
    """Whether a node has reservations on both relays and has told discovery."""
    states = [relay.state for relay in (await node.tunnel()).relays]
    return states == ["reserved", "reserved"]


async def forgotten(node: Node, peer: str) -> bool:
    """Whether a node has no session with a peer."""
    return all(session.peer != peer for session in (await node.tunnel()).sessions)


async def table(folder: Path, tries: int, only: list[str]) -> int:
    """Prints the punch table; returns how many pairs were not as they must be."""
    pairs = {name: pair for name, pair in PAIRS.items() if not only or any(word in name for word in only)}
    homes = Homes(folder, {name for pair in pairs.values() for name in pair})
    bad = 0
    try:
        await homes.start()
        print(f"{'pair':34} direct   seconds from the session's start: median, max", flush=True)
        for name, (a, b) in pairs.items():
            done = []
            for number in range(tries):
                # Both ways in turn: who dials differs.
                one, other = (a, b) if number % 2 == 0 else (b, a)
                done.append(await homes.attempt(one, other, within=6.0))
            seconds = sorted(it.seconds for it in done if it.kind != pb.PATH_KIND_RELAYED)
            times = f"{statistics.median(seconds):.3f} {seconds[-1]:.3f}" if seconds else ""
            fine = not seconds if name in HOPELESS else len(seconds) >= 0.95 * tries
            bad += not fine
            print(
                f"{name:34} {len(seconds):3}/{tries:<3} {times} {'' if fine else '  <-- not as it must be'}", flush=True
            )
    finally:
        await homes.stop()
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", action="append", default=[], help="pairs whose name contains this")
    options = parser.parse_args()
    with short_folder() as folder:
        return 1 if asyncio.run(table(folder, options.tries, options.only)) else 0


if __name__ == "__main__":
    sys.exit(main())
