"""What happens to the mesh. Each event strikes it, and restores what it did not restore itself.

Limits are for the 99th percentile of a client's stall. The requirement names 100 ms for resets and drains, 1 s for silent
loss, 2 s for loss in one direction and 50 ms for an upgrade of the path; that a rolling restart "stalls nobody" is taken
for 100 ms, and where every path is lost at once, which it does not name, for 2 s.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import ClassVar

from lab.matrix.conditions import Ground, paths
from lab.mesh import Mesh
from lab.node import WITHOUT_RELAY, Node, NodeError
from protos import tunnel_pb2 as pb

OUTAGE = 5.0  # seconds without any relay
RESET, SILENT, ONE_WAY, UPGRADE, ALL_PATHS = 0.100, 1.0, 2.0, 0.050, 2.0  # seconds, see above
PATIENCE = 60.0  # seconds until a path is found that takes one to six

# A table of its own, which the router's other rules do not know of. Before conntrack (priority -200), so that what is
# dropped leaves no trace there.
FAULT = """
table ip fault {{
  chain fault {{
    type filter hook prerouting priority -300;
    {rules}
  }}
}}
"""


class Event:
    """Nothing happens: what the machine and the network do by themselves."""

    name: ClassVar[str] = "nothing"
    title: ClassVar[str] = "nothing happens"
    ground: ClassVar[Ground] = Ground.RELAYED
    outage: ClassVar[float] = 0.0
    """Seconds for which nothing could have got through, however good the mesh is."""
    limit: ClassVar[float | None] = None
    """Seconds, see the module; None: there is none."""
    usual: ClassVar[str] = "nothing"
    """Name of the event that shows what is usual on the path to which this one leads."""
    share: ClassVar[float] = 1.0
    """Of the runs that are asked for: what takes long is done less often."""

    def __init__(self, mesh: Mesh, relay: Node) -> None:
        """relay: the one in use by a; on a direct path, one that could be."""
        self.mesh = mesh
        self.relay = relay

    async def prepare(self) -> None:
        """What has to be so before the traffic begins."""

    async def strike(self) -> None:
        """Lets it happen. Returns when it has."""

    async def restore(self) -> None:
        """Mends what is still broken, except for processes that do not run: Mesh.heal starts those."""


class NothingDirect(Event):
    """The same on the direct path. What its wires lose is missed a whole round trip later; on a relayed one each half of the
    path has a TCP of its own, which mends it sooner."""

    name = "nothing-direct"
    title = "nothing happens, direct path"
    ground = Ground.DIRECT


class RelayReset(Event):
    """SIGKILL to the relay in use: the kernel resets its connections."""

    name = "relay-reset"
    title = "relay reset (kill -9)"
    limit = RESET

    async def strike(self) -> None:
        await self.relay.kill("relay")


class RelaySilent(Event):
    """The wire of the relay in use goes dark."""

    name = "relay-silent"
    title = "relay silent (cut off)"
    limit = SILENT

    async def strike(self) -> None:
        self.relay.silence()

    async def restore(self) -> None:
        self.relay.unsilence()


class HalfOpen(Event):
    """SIGSTOP to the relay in use: its kernel goes on confirming what nobody forwards."""

    name = "half-open"
    title = "half-open (relay frozen)"
    limit = SILENT

    async def strike(self) -> None:
        self.relay.signal(signal.SIGSTOP, "relay")

    async def restore(self) -> None:
        self.relay.signal(signal.SIGCONT, "relay")


class OneWayOut(Event):
    """a's router drops what goes to the relay in use; what comes from it arrives."""

    name = "one-way-out"
    title = "one way: a → relay lost"
    limit = ONE_WAY
    direction: ClassVar[str] = "daddr"

    async def strike(self) -> None:
        rules = f"ip {self.direction} {self.relay.place.address} drop"
        self.mesh.homes["a"].router.nft(FAULT.format(rules=rules))

    async def restore(self) -> None:
        self.mesh.homes["a"].router.nft("delete table ip fault")


class OneWayIn(OneWayOut):
    """a's router drops what comes from the relay in use; what goes to it arrives."""

    name = "one-way-in"
    title = "one way: relay → a lost"
    direction = "saddr"


class Drain(Event):
    """SIGTERM to the relay in use: it tells its guests, who leave."""

    name = "drain"
    title = "drain (SIGTERM)"
    limit = RESET

    async def strike(self) -> None:
        await self.relay.stop("relay")


class RollingRestart(Event):
    """One relay after the other is stopped politely and started again, as soon as the one before is ready."""

    name = "rolling-restart"
    title = "rolling restart of all relays"
    limit = RESET
    share = 0.6

    async def strike(self) -> None:
        for node in (self.mesh.r1, self.mesh.r2):
            await node.restart("relay")


class AllRelaysGone(Event):
    """SIGKILL to all relays; they start again after OUTAGE, which is part of the stall."""

    name = "all-relays"
    title = f"all relays gone for {OUTAGE:.0f} s"
    outage = OUTAGE
    share = 0.6

    async def strike(self) -> None:
        relays = (self.mesh.r1, self.mesh.r2)
        for node in relays:
            await node.kill("relay")
        await asyncio.sleep(OUTAGE)
        for node in relays:
            node.start("relay")
        for node in relays:
            await node.ready("relay")


class DirectLost(Event):
    """Between a and b everything is dropped, silently; both reach the relays."""

    name = "direct-lost"
    title = "direct path lost (silent)"
    limit = SILENT
    ground = Ground.DIRECT

    async def strike(self) -> None:
        a, b = self.mesh.homes["a"].wan_address, self.mesh.b.place.address
        rules = f"ip saddr {a} ip daddr {b} drop; ip saddr {b} ip daddr {a} drop"
        self.mesh.network.internet.nft(FAULT.format(rules=rules))

    async def restore(self) -> None:
        self.mesh.network.internet.nft("delete table ip fault")


class Upgrade(DirectLost):
    """The direct path of before is back, while all goes well on a relay: the session moves to it."""

    name = "upgrade"
    title = "upgrade (relay → direct)"
    limit = UPGRADE
    usual = NothingDirect.name

    async def prepare(self) -> None:
        await super().strike()
        await self._moved((pb.PATH_KIND_RELAYED,))

    async def strike(self) -> None:
        await super().restore()
        await self._moved(WITHOUT_RELAY)

    async def restore(self) -> None:
        """It is."""

    async def _moved(self, kinds: Sequence[pb.PathKind.ValueType]) -> None:
        """Waits until both ends use a path of one of these kinds. Raises NodeError."""
        deadline = time.monotonic() + PATIENCE
        while True:
            links = [await self.mesh.a.active("b"), await self.mesh.b.active("a")]
            if all(it is not None and it.kind in kinds for it in links):
                return
            if time.monotonic() > deadline:
                raise NodeError(f"a and b did not change their path within {PATIENCE:.0f} s: {await paths(self.mesh)}")
            await asyncio.sleep(0.1)


class NatRebind(Event):
    """a's router forgets all flows (`conntrack -F`) and gives the next packets of each another outside port."""

    name = "nat-rebind"
    title = "NAT rebind (conntrack -F)"
    limit = ALL_PATHS
    ground = Ground.SYMMETRIC

    async def strike(self) -> None:
        self.mesh.homes["a"].flush()


class AddressChange(Event):
    """a's address in its LAN is replaced by another one, as by DHCP in another network. Nobody is told."""

    name = "address-change"
    title = "address change at a"
    limit = ALL_PATHS

    async def strike(self) -> None:
        home, namespace = self.mesh.homes["a"], self.mesh.a.place.namespace
        assert namespace is not None
        old = namespace.run(["ip", "-4", "-brief", "address", "show", "dev", "eth0"]).split()[2]
        prefix, last = old.split("/")[0].rsplit(".", 1)
        new = f"{prefix}.{201 if last == '200' else 200}/{old.split('/')[1]}"
        namespace.ip(
            f"addr del {old} dev eth0",
            f"addr add {new} dev eth0",
            f"route replace default via {home.gateway}",  # went with the last address
        )


EVENTS: tuple[type[Event], ...] = (
    Event,
    NothingDirect,
    RelayReset,
    RelaySilent,
    HalfOpen,
    OneWayOut,
    OneWayIn,
    Drain,
    RollingRestart,
    AllRelaysGone,
    DirectLost,
    Upgrade,
    NatRebind,
    AddressChange,
)
