"""What nftables is told, as text for `nft -f -`: one table, in the family inet, that is all ours.

    table inet causeway
      tcp4 tcp6        set   address . port of services; redirected to the one TCP listener
      udp4 udp6        map   address . port of services → the port of their UDP listener
      refused4 refused6  set   cluster IPs: what is sent to another port of them is refused here, and at once
      ours             set   the ports of the listeners: who comes to them by himself, not redirected, is refused
      output           the machine's own traffic            prerouting   what it receives and forwards: of pods
      sent, forwarded  what still goes to a cluster IP there is refused, unless it is for a service: such packets belong to
                       connections from before the redirection, which are about to be forgotten (services/proxy/conntrack.py)

Rules never change while services come and go, elements do. The redirection is made for the first packet of a
connection or flow; all others follow what conntrack remembers, also when the rule is gone.

Rejected: DNAT to 127.0.0.1 for pods, which needs the sysctl route_localnet and thereby opens the loopback services of the
machine to its neighbours; TPROXY, which needs routing rules of its own and does not see the machine's own traffic.
"""

import ipaddress
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.proxy.core.catalog import Network

TABLE = "inet causeway"

# kube-proxy translates at dstnat, -100 (netfilter_ipv4.h); the first chain that translates a connection has it.
BEFORE_KUBE_PROXY = -110
# After all that translate, docker and kube-proxy included: what still goes to a cluster IP then is nobody's.
AFTER_NAT = 10
BEFORE_FIREWALL = -10

# Ports of the UDP listeners: below NodePorts (30000-32767) and Linux' ephemeral ports (32768-60999), above 20006-20009.
FIRST_UDP_PORT = 21000
UDP_PORTS = 9000
MAX_TRIES = 64  # ports that are tried for one address

Target = tuple[str, int]  # address and port of a service


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the table holds. Addresses are in canonical form."""

    port: int  # of the TCP listener
    tcp: frozenset[Target] = frozenset()
    udp: frozenset[tuple[Target, int]] = frozenset()  # with the port of the listener; one for each target
    refused: frozenset[str] = frozenset()  # addresses that belong to services alone
    subnets: tuple[str, ...] = ()  # whole networks of such addresses
    gates: tuple[str, str] = (
        "",
        "",
    )  # address of this host for pods' traffic, IPv4 and IPv6; "": of the way it came in

    def __bool__(self) -> bool:
        """Whether there is anything to redirect."""
        return bool(self.tcp or self.udp)

    @property
    def targets(self) -> set[tuple[Network, str, int]]:
        """All that is redirected."""
        udp: set[tuple[Network, str, int]] = {("udp", *target) for target, _ in self.udp}
        return udp | {("tcp", *target) for target in self.tcp}

    @property
    def frame(self) -> tuple[object, ...]:
        """What the rules depend on, elements aside."""
        return self.port, self.subnets, self.gates


def udp_ports(ip: str, port: int) -> Iterator[int]:
    """Ports for the listener of a UDP target, best first. Always the same ones: what conntrack remembers of a flow then
    still fits after a restart, or when the service was gone for a while."""
    start = zlib.crc32(f"{ip} {port}".encode())
    return (FIRST_UDP_PORT + (start + step) % UDP_PORTS for step in range(MAX_TRIES))


def replace(ruleset: Ruleset) -> str:
    """The whole table in one transaction, whatever was there before."""
    sets = "\n".join(
        f"  {kind} {name} {{ type {key}; {_listed('elements =', found)} }}"
        for (name, (kind, key)), found in zip(_SETS.items(), _elements(ruleset).values(), strict=True)
    )
    four, six = ruleset.gates
    refuse = "\n".join(
        [
            "    ip daddr @refused4 jump refuse",
            "    ip6 daddr @refused6 jump refuse",
            # kube-proxy's IPVS mode gives the host every cluster IP: those are its business.
            *(f"    {_family(net)} daddr {net} fib daddr type != local jump refuse" for net in ruleset.subnets),
        ]
    )
    return f"""{_REMOVE}
table {TABLE} {{
{sets}
  chain output {{
    type nat hook output priority {BEFORE_KUBE_PROXY};
{_redirect(ruleset.port, "", "")}
  }}
  chain prerouting {{
    type nat hook prerouting priority {BEFORE_KUBE_PROXY};
{_redirect(ruleset.port, four, six)}
  }}
  chain refuse {{
    ip daddr . tcp dport @tcp4 return
    ip6 daddr . tcp dport @tcp6 return
    ip daddr . udp dport @udp4 return
    ip6 daddr . udp dport @udp6 return
    meta l4proto tcp reject with tcp reset
    meta l4proto udp reject with icmpx port-unreachable
  }}
  chain sent {{
    type filter hook output priority {AFTER_NAT};
{refuse}
  }}
  chain forwarded {{
    type filter hook forward priority {AFTER_NAT};
{refuse}
  }}
  chain strangers {{
    type filter hook input priority {BEFORE_FIREWALL};
    meta l4proto . th dport @ours ct status & dnat == 0 jump refuse
  }}
}}
"""


def change(before: Ruleset, after: Ruleset) -> str:
    """Elements only, in one transaction. Both have the same `frame`."""
    lines = []
    old, new = _elements(before), _elements(after)
    for verb, these, those in (("delete", old, new), ("add", new, old)):
        for name in _SETS:
            differing = these[name] - those[name]
            if differing:
                lines.append(f"{verb} element {TABLE} {name} {_listed('', differing)}")
    return "\n".join(lines) + "\n" if lines else ""


def remove(*, keep_connections: bool = False) -> str:
    """Takes the table away.

    keep_connections: leaves one that redirects nothing. Without any chain of type nat, and any rule that asks conntrack, the
    kernel stops translating what conntrack remembers: answers then reach the client from an address it never spoke to, and
    it resets the connection.
    """
    if not keep_connections:
        return _REMOVE
    chains = "".join(
        f"  chain {hook} {{ type nat hook {hook} priority {BEFORE_KUBE_PROXY}; ct state new accept; }}\n"
        for hook in ("output", "prerouting")
    )
    return f"{_REMOVE}\ntable {TABLE} {{\n{chains}}}\n"


# `delete` alone fails where there is no table, and nft 1.0.6 knows no `destroy`.
_REMOVE = f"table {TABLE} {{ }}\ndelete table {TABLE}"

_SETS = {
    "tcp4": ("set", "ipv4_addr . inet_service"),
    "tcp6": ("set", "ipv6_addr . inet_service"),
    "udp4": ("map", "ipv4_addr . inet_service : inet_service"),
    "udp6": ("map", "ipv6_addr . inet_service : inet_service"),
    "refused4": ("set", "ipv4_addr"),
    "refused6": ("set", "ipv6_addr"),
    "ours": ("set", "inet_proto . inet_service"),
}


def _elements(ruleset: Ruleset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in _SETS}
    for ip, port in ruleset.tcp:
        found[f"tcp{_version(ip)}"].add(f"{ip} . {port}")
    for (ip, port), own in ruleset.udp:
        found[f"udp{_version(ip)}"].add(f"{ip} . {port} : {own}")
        found["ours"].add(f"udp . {own}")
    for ip in ruleset.refused:
        found[f"refused{_version(ip)}"].add(ip)
    if ruleset.tcp:
        found["ours"].add(f"tcp . {ruleset.port}")
    return found


def _redirect(port: int, four: str, six: str) -> str:
    """To the given addresses, or ("") to the loopback for what this host sends, to the address of the interface for what
    it receives."""
    lines = []
    for ip, version, gate in (("ip", 4, four), ("ip6", 6, six)):
        way = f"dnat {ip} to {f'[{gate}]' if version == 6 else gate}" if gate else "redirect to "
        lines.append(f"    {ip} daddr . tcp dport @tcp{version} {way}:{port}")
        lines.append(f"    meta l4proto udp {way}:{ip} daddr . udp dport map @udp{version}")
    return "\n".join(lines)


def _listed(prefix: str, elements: Iterable[str]) -> str:
    listed = ", ".join(sorted(elements))
    return f"{prefix} {{ {listed} }}".lstrip() if listed else ""


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _family(net: str) -> str:
    return "ip6" if ipaddress.ip_network(net).version == 6 else "ip"
