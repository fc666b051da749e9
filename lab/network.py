"""A small internet: public hosts, and LANs behind routers.

    with Network() as net:
        server = net.public("server", shape=Shape(delay=0.005))
        home = net.lan("home", Nat(Kind.SYMMETRIC), shape=Shape(delay=0.005))
        laptop = home.host("laptop")

The internet is one router with a separate link to each public host (so that neither broadcast nor multicast
crosses it) and no route to private ranges. Public addresses are 203.0.113.0/24 (RFC 5737); a LAN is a
switch with 192.168.N.0/24 behind it, 100.64.N.0/24 for a carrier's (RFC 6598), and part of the public
198.51.100.0/24 behind a firewall that does not translate.
"""

from __future__ import annotations

import itertools
from types import TracebackType

from lab.namespace import Namespace, connect
from lab.nat import Kind, Nat
from lab.panel import Panel, Wire
from lab.wire import Shape

GATEWAY = "203.0.113.254"
UNROUTED = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")


class Host:
    """A machine in the network."""

    def __init__(self, namespace: Namespace, address: str, wire: Wire | None) -> None:
        self.namespace = namespace
        self.address = address
        self.wire = wire
        """Its link to the internet; None for a host in a LAN, whose router has one."""

    @property
    def name(self) -> str:
        """Name given at creation."""
        return self.namespace.name


class Lan:
    """Hosts on one switch behind one router."""

    def __init__(self, network: Network, name: str, router: Namespace, prefix: str, first: int, length: int) -> None:
        self._network = network
        self._prefix = prefix
        self._length = length
        self._next = itertools.count(first + 1)
        self.name = name
        self.router = router
        self.gateway = f"{prefix}.{first}"
        self.network = f"{prefix}.{first - 1}/{length}"
        self.wan_address = ""
        self.wire: Wire | None = None
        """The router's link upwards; None when it is a plain cable."""
        router.ip(
            "link add lan type bridge mcast_snooping 0",  # snooping without a querier may swallow mDNS
            "link set lan up",
            f"addr add {self.gateway}/{length} dev lan",
        )

    def host(self, name: str) -> Host:
        """One more machine on the switch."""
        namespace = self._network.namespace(name)
        host = Host(namespace, self.take(), None)
        self.plug(namespace, "eth0")
        namespace.ip(f"addr add {host.address}/{self._length} dev eth0", f"route add default via {self.gateway}")
        return host

    def take(self) -> str:
        """The next free address."""
        return f"{self._prefix}.{next(self._next)}"

    def plug(self, namespace: Namespace, interface: str) -> None:
        """A cable from a namespace to the switch."""
        port = self._network.port()
        connect(namespace, interface, self.router, port)
        self.router.ip(f"link set {port} master lan")


class Network:
    """Owns everything in it; a context manager."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._ports = itertools.count()
        self._public = itertools.count(1)
        self._lans = itertools.count(1)
        self._firewalls = itertools.count()
        self._panel: Panel | None = None
        self.internet = self.namespace("internet")
        self.internet.ip(*(f"route add blackhole {net}" for net in UNROUTED))
        _forward(self.internet)

    def namespace(self, name: str) -> Namespace:
        """A bare namespace that goes away with the network."""
        made = Namespace(name)
        self._namespaces.append(made)
        return made

    def port(self) -> str:
        """An interface name that nobody uses yet."""
        return f"p{next(self._ports)}"

    def public(self, name: str, *, shape: Shape | None = None) -> Host:
        """A machine with a public address. `shape`: of its link, both ways; None: a plain cable."""
        namespace = self.namespace(name)
        address = self._address()
        return Host(namespace, address, self._uplink(namespace, "eth0", address, shape))

    def lan(
        self,
        name: str,
        nat: Nat | None = None,
        *,
        shape: Shape | None = None,
        behind: Lan | None = None,
        carrier: bool = False,
    ) -> Lan:
        """A LAN whose router hangs on the internet, or on the switch of another LAN (double NAT).

        nat: what the router does, PORT_RESTRICTED by default. shape: of the router's link upwards.
        carrier: use the address range of carriers, for the outer of two.
        """
        nat = nat or Nat()
        router = self.namespace(f"{name}-router")
        if nat.kind is Kind.FIREWALL:
            lan = Lan(self, name, router, "198.51.100", 16 * next(self._firewalls) + 1, 28)
        else:
            lan = Lan(self, name, router, f"{'100.64' if carrier else '192.168'}.{next(self._lans)}", 1, 24)
        if behind is None:
            lan.wan_address = self._address()
            lan.wire = self._uplink(router, "wan", lan.wan_address, shape)
            if not nat.translates:
                self.internet.ip(f"route add {lan.network} via {lan.wan_address}")
        else:
            if shape is not None:
                raise ValueError("a router behind another hangs on its switch by a plain cable; shape the outer one")
            lan.wan_address = behind.take()
            behind.plug(router, "wan")
            router.ip(f"addr add {lan.wan_address}/24 dev wan", f"route add default via {behind.gateway}")
            if not nat.translates:
                behind.router.ip(f"route add {lan.network} via {lan.wan_address}")
        _forward(router)
        router.nft(nat.rules(wan="wan", wan_address=lan.wan_address, lan="lan", lan_network=lan.network))
        return lan

    def close(self) -> None:
        """Takes everything down. End the processes you started in it first."""
        if self._panel is not None:
            self._panel.close()
        for namespace in self._namespaces:
            namespace.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _address(self) -> str:
        return f"203.0.113.{next(self._public)}"

    def _uplink(self, namespace: Namespace, interface: str, address: str, shape: Shape | None) -> Wire | None:
        port = self.port()
        wire = None
        if shape is None:
            connect(namespace, interface, self.internet, port)
        else:
            if self._panel is None:
                self._panel = Panel()
            wire = self._panel.wire(namespace, interface, self.internet, port, shape)
        self.internet.ip(f"addr add {GATEWAY}/32 dev {port}", f"route add {address}/32 dev {port}")
        namespace.ip(
            f"addr add {address}/32 dev {interface}",
            f"route add {GATEWAY}/32 dev {interface}",
            f"route add default via {GATEWAY}",
        )
        return wire


def _forward(router: Namespace) -> None:
    router.sysctl("ipv4/ip_forward", 1)
    for interface in ("all", "default"):
        router.sysctl(f"ipv4/conf/{interface}/send_redirects", 0)  # a hairpinning router must not teach a short cut
        router.sysctl(f"ipv4/conf/{interface}/rp_filter", 0)
