"""Homes behind every kind of NAT with a node in each, and two relays: who gets a direct path to whom?

`python -m tests.e2e.punch` asks all pairs and prints the table.
"""

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from lab.nat import Kind, Nat
from lab.network import Lan, Network
from lab.node import Node, together
from lab.place import simulated
from lab.wire import Shape
from protos import tunnel_pb2 as pb
from tests.e2e.traffic import eventually

HOME = Shape(delay=0.010)  # one way, seconds
RELAY = Shape(delay=0.005)
CARRIER = Shape(delay=0.005)  # of a carrier's router, and of each home's behind it
SERVICES = ("discovery", "tunnel")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two homes."""

    one: str
    other: str
    rtt: float = 0.040
    """Seconds there and back on the direct way; 0.060 over a relay."""
    hopeless: bool = False
    """No hole can be punched: both ends would have to guess a port."""

    @property
    def names(self) -> tuple[str, str]:
        """Of the two nodes."""
        return self.one, self.other


PAIRS = {
    "masquerade + masquerade": Pair("m1", "m2"),
    "masquerade + firewall": Pair("m1", "f1"),
    "firewall + firewall": Pair("f1", "f2"),
    "cone + masquerade": Pair("c1", "m1"),
    "cone + symmetric": Pair("c1", "s1"),
    "restricted + masquerade": Pair("a1", "m1"),
    # Who filters by address alone lets in a port that nobody could foresee.
    "restricted + symmetric": Pair("a1", "s1"),
    "double NAT + masquerade": Pair("d1", "m1"),
    "one carrier, hairpin": Pair("g1", "g2", rtt=0.020),
    "masquerade + masquerade, resets": Pair("t1", "t2"),
    "symmetric + masquerade": Pair("s1", "m1", hopeless=True),
    "symmetric + symmetric": Pair("s1", "s2", hopeless=True),
    "one carrier, no hairpin": Pair("h1", "h2", rtt=0.020, hopeless=True),
}


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
            "a1": Nat(Kind.RESTRICTED),
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
                above = network.lan(f"carrier-{carrier}", nat, carrier=True, shape=CARRIER)
                for name in customers:
                    self.routers[name] = network.lan(f"home-{name}", masquerade, shape=CARRIER, behind=above)
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
