"""What home routers, offices and carriers do to traffic, as nftables rule sets.

Words of RFC 4787: the *mapping* says which outside port a flow gets (endpoint-independent: one for all
destinations; endpoint-dependent: one for each); the *filtering* says who may send in through it.

| kind            | mapping     | filtering                                |
|-----------------|-------------|------------------------------------------|
| FULL_CONE       | independent | anybody                                  |
| RESTRICTED      | independent | addresses the inside host has sent to    |
| PORT_RESTRICTED | independent | address and port it has sent to          |
| SYMMETRIC       | dependent   | address and port it has sent to          |
| FIREWALL        | none        | address and port it has sent to          |

Linux' own masquerade is PORT_RESTRICTED: it keeps the inside port as long as it is free outside, so one
inside port is one outside port whatever the destination. The cones learn (protocol, outside port) → inside
address and port from traffic that goes out and translate new flows from outside by that map.

Of two inside hosts with the same port the first keeps it, the second gets another from OTHER_PORTS. Linux
alone would let both have it towards different destinations, and then nobody could tell whom a packet from
a third one is for.

A *lifetime* ends every TCP flow at that age, used or not, as some carriers do: from then on its packets vanish
(or are reset) in both directions, and nobody is told. A new connection is a new flow, also from the same ports.

What does not translate, and everything with IPv6, is the same stateful filter without the translation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAPPING_SECONDS = 300  # life of a learnt mapping; RFC 4787 REQ-5 recommends 5 minutes
# Outside ports for inside hosts that want one which is taken. Above Linux' ephemeral ports (32768 to 60999),
# so that they are hardly ever wanted themselves.
OTHER_PORTS = "61000-65535"
TRANSPORT = "meta l4proto { tcp, udp }"


class Kind(enum.Enum):
    """What a router does; see the table above."""

    FULL_CONE = "full-cone"
    RESTRICTED = "restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"
    FIREWALL = "firewall"


@dataclass(frozen=True)
class Nat:
    """One router's behaviour."""

    kind: Kind = Kind.PORT_RESTRICTED
    hairpin: bool = False
    """Inside hosts reach each other by their outside addresses."""
    answers_rst: bool = False
    """Unwanted TCP from outside is answered by a reset instead of silence; so is a flow that outlived `lifetime`."""
    lifetime: float = 0.0
    """Seconds after which a TCP flow over IPv4 is cut; 0: never."""

    def __post_init__(self) -> None:
        if self.hairpin and self.kind in (Kind.SYMMETRIC, Kind.FIREWALL):
            raise ValueError(f"hairpin needs an endpoint-independent mapping, which {self.kind.value} has not")

    @property
    def translates(self) -> bool:
        """Whether inside addresses are hidden behind the router's own."""
        return self.kind is not Kind.FIREWALL

    def rules(self, *, wan: str, wan_address: str, lan: str) -> str:
        """The rule set for a router with these two interfaces."""
        filtering = self._filter(wan, lan)
        if not self.translates:
            return filtering
        return filtering + self._translation(wan, wan_address, lan)

    def _lifetime(self, refusal: str) -> tuple[str, str]:
        """A set of the flows that are young enough, and the rules that know no others.

        A set's elements expire to the millisecond, where deleting from conntrack would need a process that looks
        every now and then. conntrack keeps the flow, but what it would let through does not get so far.
        """
        if not self.lifetime:
            return "", ""
        flow = "ct original ip saddr . ct original proto-src . ct original ip daddr . ct original proto-dst"
        young = (
            "set young { type ipv4_addr . inet_service . ipv4_addr . inet_service; "
            f"flags dynamic,timeout; timeout {round(1000 * self.lifetime)}ms; size 65535; }}"
        )
        of_tcp = "meta nfproto ipv4 meta l4proto tcp"
        return (
            young,
            f"""
    {of_tcp} ct direction original tcp flags & (fin | syn | rst | ack) == syn update @young {{ {flow} }}
    {of_tcp} {flow} != @young {refusal.removeprefix("meta l4proto tcp ")}""",
        )

    def _filter(self, wan: str, lan: str) -> str:
        refusal = "meta l4proto tcp reject with tcp reset" if self.answers_rst else "drop"
        # An unwanted packet must die *before* conntrack confirms it. Otherwise it occupies the tuple that
        # the inside host needs for its own packet to the same place, which then gets another port.
        young, cut = self._lifetime(refusal)
        return f"""
table inet filter {{
  {young}
  chain input {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
    iifname "{wan}" meta l4proto {{ icmp, ipv6-icmp }} accept
    iifname "{wan}" {refusal}
    iifname "{wan}" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;{cut}
    ct state established,related accept
    iifname "{lan}" accept
    ct status dnat accept
    {refusal}
  }}
}}
"""

    def _translation(self, wan: str, wan_address: str, lan: str) -> str:
        if self.kind is Kind.SYMMETRIC:
            return f"""
table ip nat {{
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "{wan}" {TRANSPORT} masquerade to :1024-65535 fully-random
    oifname "{wan}" masquerade
  }}
}}
"""
        inbound = {
            Kind.FULL_CONE: [f'iifname "{wan}" {TRANSPORT}'],
            Kind.RESTRICTED: [f'iifname "{wan}" {TRANSPORT} meta l4proto . th dport . ip saddr @met'],
            Kind.PORT_RESTRICTED: [],
        }[self.kind]
        # Replies count, too: they keep a mapping alive through which only others open flows.
        learn = [
            (f'iifname "{lan}" oifname "{wan}" ct direction original {TRANSPORT}', "original"),
            (f'iifname "{lan}" oifname "{wan}" ct direction reply {TRANSPORT}', "reply"),
        ]
        leave = [(f'oifname "{wan}"', "masquerade", "masquerade to ")]
        if self.hairpin:
            around = f'iifname "{lan}" oifname "{lan}" ct status dnat'
            inbound.append(f'iifname "{lan}" {TRANSPORT}')
            learn.append((f"{around} ct direction original {TRANSPORT}", "original"))
            leave.append((around, f"snat to {wan_address}", f"snat to {wan_address}"))
        port = "meta l4proto . th sport"
        remember = "\n    ".join(
            f"{flow} update @inside {{ {port} : ct {way} ip saddr . ct {way} proto-src }}\n"
            f"    {flow} update @taken {{ {port} }}\n"
            f"    {flow} update @owner {{ {port} . ct {way} ip saddr }}\n"
            f"    {flow} update @met {{ {port} . ip daddr }}"
            for flow, way in learn
        )
        enter = "\n    ".join(
            f"{flow} ip daddr {wan_address} dnat ip to meta l4proto . th dport map @inside" for flow in inbound
        )
        out = "\n    ".join(
            f"{flow} {TRANSPORT} {port} @taken {port} . ip saddr != @owner {translate_to}:{OTHER_PORTS}\n"
            f"    {flow} {translate}"
            for flow, translate, translate_to in leave
        )
        kept = f"flags dynamic,timeout; timeout {MAPPING_SECONDS}s; size 65535;"
        return f"""
table ip nat {{
  map inside {{ type inet_proto . inet_service : ipv4_addr . inet_service; {kept} }}
  set taken {{ type inet_proto . inet_service; {kept} }}
  set owner {{ type inet_proto . inet_service . ipv4_addr; {kept} }}
  set met {{ type inet_proto . inet_service . ipv4_addr; {kept} }}
  chain remember {{
    type filter hook postrouting priority srcnat + 10;
    {remember}
  }}
  chain in {{
    type nat hook prerouting priority dstnat;
    {enter}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    {out}
  }}
}}
"""
