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
inside port is one outside port whatever the destination. The cones learn (protocol, port) → inside host
from traffic that goes out and translate new flows from outside by that map. They rely on kept ports: two
inside hosts must not use the same port.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAPPING_SECONDS = 300  # life of a learnt mapping; RFC 4787 REQ-5 recommends 5 minutes


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
    """Unwanted TCP from outside is answered by a reset instead of silence."""

    def __post_init__(self) -> None:
        if self.hairpin and self.kind in (Kind.SYMMETRIC, Kind.FIREWALL):
            raise ValueError(f"hairpin needs an endpoint-independent mapping, which {self.kind.value} has not")

    @property
    def translates(self) -> bool:
        """Whether inside addresses are hidden behind the router's own."""
        return self.kind is not Kind.FIREWALL

    def rules(self, *, wan: str, wan_address: str, lan: str, lan_network: str) -> str:
        """The rule set for a router with these two interfaces."""
        filtering = self._filter(wan, lan)
        if not self.translates:
            return filtering
        return filtering + self._translation(wan, wan_address, lan, lan_network)

    def _filter(self, wan: str, lan: str) -> str:
        refusal = "meta l4proto tcp reject with tcp reset" if self.answers_rst else "drop"
        # An unwanted packet must die *before* conntrack confirms it. Otherwise it occupies the tuple that
        # the inside host needs for its own packet to the same place, which then gets another port.
        return f"""
table ip filter {{
  chain input {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
    iifname "{wan}" ip protocol icmp accept
    iifname "{wan}" {refusal}
    iifname "{wan}" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{lan}" accept
    ct status dnat accept
    {refusal}
  }}
}}
"""

    def _translation(self, wan: str, wan_address: str, lan: str, lan_network: str) -> str:
        if self.kind is Kind.SYMMETRIC:
            return f"""
table ip nat {{
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "{wan}" meta l4proto {{ tcp, udp }} masquerade to :1024-65535 fully-random
    oifname "{wan}" masquerade
  }}
}}
"""
        inbound = {
            Kind.FULL_CONE: [f'iifname "{wan}"'],
            Kind.RESTRICTED: [f'iifname "{wan}" meta l4proto . th dport . ip saddr @met'],
            Kind.PORT_RESTRICTED: [],
        }[self.kind]
        learn = [f'oifname "{wan}" ip saddr {lan_network}']
        turn_around = ""
        if self.hairpin:
            inbound.append(f'iifname "{lan}"')
            learn.append(f'iifname "{lan}" oifname "{lan}" ct status dnat ip saddr {lan_network}')
            turn_around = f'iifname "{lan}" oifname "{lan}" ct status dnat snat to {wan_address}'
        transport = "meta l4proto { tcp, udp }"
        remember = "\n    ".join(
            f"{flow} {transport} update @inside {{ meta l4proto . th sport : ip saddr }}\n"
            f"    {flow} {transport} update @met {{ meta l4proto . th sport . ip daddr }}"
            for flow in learn
        )
        translate = "\n    ".join(
            f"{flow} ip daddr {wan_address} {transport} dnat to meta l4proto . th dport map @inside" for flow in inbound
        )
        return f"""
table ip nat {{
  map inside {{
    type inet_proto . inet_service : ipv4_addr; flags dynamic,timeout; timeout {MAPPING_SECONDS}s; size 65535;
  }}
  set met {{
    type inet_proto . inet_service . ipv4_addr; flags dynamic,timeout; timeout {MAPPING_SECONDS}s; size 65535;
  }}
  chain remember {{
    type filter hook postrouting priority srcnat - 10;
    {remember}
  }}
  chain in {{
    type nat hook prerouting priority dstnat;
    {translate}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    {turn_around}
    oifname "{wan}" masquerade
  }}
}}
"""
