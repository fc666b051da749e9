"""A small internet: public hosts, and LANs behind routers.

    with Network() as net:
        server = net.public("server", shape=Shape(delay=0.005))
        home = net.lan("home", Nat(Kind.SYMMETRIC), shape=Shape(delay=0.005))
        laptop = home.host("laptop")

The internet is one router with a separate link to each public host (so that neither broadcast nor multicast
crosses it) and no route to private ranges. Public addresses are 203.0.113.0/24 (RFC 5737); a LAN is a
switch with 192.168.N.0/24 behind it, 100.64.N.0/24 for a carrier's (RFC 6598), and part of the public
198.51.100.0/24 behind a firewall that does not translate.

With `ipv6`, a public host also has an address in 2001:db8::/64 (RFC 3849) and a LAN the prefix
2001:db8:1:N::/64, which its router filters but does not translate.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import TracebackType

from lab.namespace import Namespace, connect
from lab.nat import Kind, Nat
from lab.panel import Panel, Wire
from lab.wire import Shape

GATEWAY = "203.0.113.254"
CITY_GATEWAY = "192.0.2.1"  # a city's end (RFC 5737): it must not take the address of its own gateway for itself
GATEWAY6 = "fe80::1"  # the internet's end of every link
UNROUTED = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
MAX_PUBLIC = 253  # addresses in 203.0.113.0/24, without the gateway's
MAX_FIREWALLS = 16  # LANs that share 198.51.100.0/24
MAX_BEHIND_FIREWALL = 13  # addresses in a /28, without the router's
MAX_LANS = 254
MAX_BEHIND_NAT = 253

_IPV6 = Path("/proc/sys/net/ipv6")  # not there in a kernel without IPv6


class Host:
    """A machine in the network."""

    def __init__(self, namespace: Namespace, address: str, wire: Wire | None, address6: str = "") -> None:
        self.namespace = namespace
        self.address = address
        self.address6 = address6
        """IPv6 address; empty without."""
        self.wire = wire
        """Its own link, forward is away from it; None for a plain cable."""

    @property
    def name(self) -> str:
        """Name given at creation."""
        return self.namespace.name


class City:
    """A router of the internet with machines of its own: the way to others of them does not leave it."""

    def __init__(self, router: Namespace, address: str, wire: Wire | None) -> None:
        self.router = router
        self.address = address
        self.wire = wire
        """Its link to the rest of the internet."""


class Lan:
    """Hosts on one switch behind one router."""

    def __init__(
        self,
        network: Network,
        name: str,
        nat: Nat,
        router: Namespace,
        subnet: tuple[str, int, int],
        prefix6: str,
        behind: Lan | None,
    ) -> None:
        """subnet: first three bytes of the addresses, last byte of the router's, length of the prefix."""
        self._network = network
        self._prefix, first, self._length = subnet
        self._prefix6 = prefix6
        self._next = itertools.count(first + 1)
        self.name = name
        self.nat = nat
        self.router = router
        self.behind = behind
        self.gateway = f"{self._prefix}.{first}"
        self.network = f"{self._prefix}.{first - 1}/{self._length}"
        self.network6 = f"{prefix6}::/64" if prefix6 else ""
        """IPv6 prefix; empty without."""
        self.wan_address = ""
        self.wan_address6 = ""
        self.wire: Wire | None = None
        """The router's link upwards; None when it is a plain cable."""
        router.ip(
            "link add lan type bridge mcast_snooping 0",  # snooping without a querier may swallow mDNS
            "link set lan up",
            f"addr add {self.gateway}/{self._length} dev lan",
        )
        if prefix6:
            router.ip(f"addr add {prefix6}::1/64 dev lan nodad")

    def host(self, name: str, *, shape: Shape | None = None) -> Host:
        """One more machine on the switch. shape: of its link to the switch, both ways; None: a plain cable."""
        namespace = self._network.namespace(name, ipv6=bool(self._prefix6))
        return Host(namespace, *self.plug(namespace, "eth0", shape))

    def plug(
        self, namespace: Namespace, interface: str, shape: Shape | None, *, ipv6: bool = True
    ) -> tuple[str, Wire | None, str]:
        """Joins a namespace to the switch: its address, its link and its IPv6 address (empty without)."""
        number = next(self._next)
        address = f"{self._prefix}.{number}"
        address6 = f"{self._prefix6}::{number:x}" if self._prefix6 and ipv6 else ""
        port = self._network.port()
        wire = self._network.cable(namespace, interface, self.router, port, shape)
        self.router.ip(f"link set {port} master lan")
        namespace.ip(f"addr add {address}/{self._length} dev {interface}", f"route add default via {self.gateway}")
        if address6:
            namespace.ip(f"addr add {address6}/64 dev {interface} nodad", f"route add default via {self._prefix6}::1")
        return address, wire, address6

    def load(self) -> None:
        """The router starts with its rules and forgets all mappings it has learnt."""
        rules = self.nat.rules(wan="wan", wan_address=self.wan_address, lan="lan")
        self.router.nft(f"flush ruleset\n{rules}")  # one transaction: there is no moment without rules

    def flush(self) -> None:
        """The router forgets every flow and every mapping, as after a reboot. Needs `conntrack`."""
        self.load()
        self.router.run(["conntrack", "-F"])


class Network:
    """Owns everything in it; a context manager."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._ports = itertools.count()
        self._public = itertools.count(1)
        self._lans = itertools.count(1)
        self._firewalls = itertools.count()
        self._panel: Panel | None = None
        self.internet = self.namespace("internet", ipv6=_IPV6.exists())
        self.internet.ip(*(f"route add blackhole {net}" for net in UNROUTED))
        _forward(self.internet)

    def namespace(self, name: str, *, ipv6: bool = False) -> Namespace:
        """A bare namespace that goes away with the network."""
        made = Namespace(name)
        self._namespaces.append(made)
        if ipv6:
            # Addresses work at once, without a second of looking for others that have them.
            for interface in ("all", "default"):
                made.sysctl(f"ipv6/conf/{interface}/accept_dad", 0)
                made.sysctl(f"ipv6/conf/{interface}/accept_ra", 0)
        return made

    def port(self) -> str:
        """An interface name that nobody uses yet."""
        return f"p{next(self._ports)}"

    def cable(self, a: Namespace, a_name: str, b: Namespace, b_name: str, shape: Shape | None) -> Wire | None:
        """Joins two namespaces by a wire of this shape, or by a plain cable."""
        if shape is None:
            connect(a, a_name, b, b_name)
            return None
        if self._panel is None:
            self._panel = Panel()
        return self._panel.wire(a, a_name, b, b_name, shape)

    def city(self, name: str, *, shape: Shape | None = None) -> City:
        """A place whose machines are near each other. `shape`: of its link to the rest of the internet, both ways."""
        router = self.namespace(name)
        _forward(router)
        address, wire, _ = self._uplink(router, "wan", shape, ipv6=False)
        return City(router, address, wire)

    def public(self, name: str, *, shape: Shape | None = None, ipv6: bool = False, city: City | None = None) -> Host:
        """A machine with a public address. `shape`: of its link, both ways; None: a plain cable. `city`: where it is;
        there is no IPv6 there."""
        namespace = self.namespace(name, ipv6=ipv6)
        return Host(namespace, *self._uplink(namespace, "eth0", shape, ipv6, city))

    def lan(
        self,
        name: str,
        nat: Nat | None = None,
        *,
        shape: Shape | None = None,
        behind: Lan | None = None,
        carrier: bool = False,
        ipv6: bool = False,
        city: City | None = None,
    ) -> Lan:
        """A LAN whose router hangs on the internet (in a `city`, perhaps), or on the switch of another LAN (double NAT).

        nat: what the router does, PORT_RESTRICTED by default. shape: of the router's link upwards.
        carrier: use the address range of carriers, for the outer of two. ipv6: needs it in `behind`, too.
        """
        nat = nat or Nat()
        if ipv6 and behind is not None and not behind.network6:
            raise ValueError(f"{name} cannot have IPv6: {behind.name}, which it is behind, has none")
        router = self.namespace(f"{name}-router", ipv6=ipv6)
        number = next(self._lans)
        if nat.kind is Kind.FIREWALL:
            subnet = ("198.51.100", 16 * next(self._firewalls) + 1, 28)
        else:
            subnet = (f"{'100.64' if carrier else '192.168'}.{number}", 1, 24)
        lan = Lan(self, name, nat, router, subnet, f"2001:db8:1:{number:x}" if ipv6 else "", behind)
        if behind is None:
            lan.wan_address, lan.wire, lan.wan_address6 = self._uplink(router, "wan", shape, ipv6, city)
        else:
            lan.wan_address, lan.wire, lan.wan_address6 = behind.plug(router, "wan", shape, ipv6=ipv6)
        if not nat.translates:
            self._announce(lan, lan.network, ipv6=False)
        if ipv6:
            self._announce(lan, lan.network6, ipv6=True)
        _forward(router)
        lan.load()
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

    def _announce(self, lan: Lan, network: str, *, ipv6: bool) -> None:
        """Tells the routers above a LAN the way to its public addresses, up to one that hides them."""
        while True:
            way = f"route add {network} via {lan.wan_address6 if ipv6 else lan.wan_address}"
            if lan.behind is None:
                self.internet.ip(way)
                return
            lan.behind.router.ip(way)
            if lan.behind.nat.translates and not ipv6:
                return
            lan = lan.behind

    def _uplink(
        self, namespace: Namespace, interface: str, shape: Shape | None, ipv6: bool, city: City | None = None
    ) -> tuple[str, Wire | None, str]:
        """Joins a namespace to the internet: its address, its link and its IPv6 address (empty without)."""
        number = next(self._public)
        address = f"203.0.113.{number}"
        port = self.port()
        above, gateway = (self.internet, GATEWAY) if city is None else (city.router, CITY_GATEWAY)
        wire = self.cable(namespace, interface, above, port, shape)
        above.ip(f"addr add {gateway}/32 dev {port}", f"route add {address}/32 dev {port}")
        if city is not None:
            if ipv6:
                raise ValueError("a city has no IPv6")
            self.internet.ip(f"route add {address}/32 via {city.address}")
        namespace.ip(
            f"addr add {address}/32 dev {interface}",
            f"route add {gateway}/32 dev {interface}",
            f"route add default via {gateway}",
        )
        address6 = ""
        if ipv6:
            address6 = f"2001:db8::{number:x}"
            self.internet.ip(f"addr add {GATEWAY6}/64 dev {port} nodad", f"route add {address6}/128 dev {port}")
            namespace.ip(
                f"addr add {address6}/128 dev {interface} nodad",
                f"route add default via {GATEWAY6} dev {interface}",
            )
        return address, wire, address6


def _forward(router: Namespace) -> None:
    router.sysctl("ipv4/ip_forward", 1)
    if _IPV6.exists():
        router.sysctl("ipv6/conf/all/forwarding", 1)
    for interface in ("all", "default"):
        router.sysctl(f"ipv4/conf/{interface}/send_redirects", 0)  # a hairpinning router must not teach a short cut
        router.sysctl(f"ipv4/conf/{interface}/rp_filter", 0)
