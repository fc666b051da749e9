"""`netcheck` for eyes: the report as text and tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from causeway.view import plain_table

_STYLES = {True: "green", False: "yellow", None: "dim"}


def render(found: dict[str, Any]) -> RenderableType:
    """Everything of a report, the verdict first."""
    parts: list[RenderableType] = [_head(found)]
    if found["addresses"]:
        parts += ["", _addresses(found["addresses"])]
    # Without IPv6 here, that a relay does not answer over it is no news.
    relays = [it for it in found["relays"] if found["ipv6"]["addresses"] or not it["address"].startswith("[")]
    if relays:
        parts += ["", _relays(relays)]
    if found["notes"]:
        parts += ["", *(Text(f"! {note}", "yellow") for note in found["notes"])]
    return Group(*parts)


def _head(found: dict[str, Any]) -> Table:
    nat, ipv6 = found["nat"], found["ipv6"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row("node", Text(found["node"]))
    grid.add_row("NAT", Text(found["verdict"]))
    grid.add_row("mapping", Text(_because(nat["mapping"] or "unknown", nat["mapping_why"])))
    grid.add_row("filtering", Text(_because(nat["filtering"] or "unknown", nat["filtering_why"])))
    if nat["mapping"] != "none" and nat["port_preserved"] is not None:
        grid.add_row("port kept", _yes(nat["port_preserved"]))
    if nat["hairpin"] is not None:
        grid.add_row("hairpin", Text(_because(_yes(nat["hairpin"]), nat["hairpin_why"])))
    elif nat["hairpin_why"]:
        grid.add_row("hairpin", Text(nat["hairpin_why"]))
    mapping = found["port_mapping"]
    granted = f"{mapping['external']} by {mapping['protocol']} of {mapping['gateway']}"
    grid.add_row("port mapping", Text(granted if mapping["external"] else _because("none", mapping["why"])))
    over = f"; {ipv6['relays_reached']} of {ipv6['relays_tried']} relays answer over it" if ipv6["relays_tried"] else ""
    grid.add_row("IPv6", Text(", ".join(ipv6["addresses"]) + over if ipv6["addresses"] else "no global address"))
    return grid


def _addresses(addresses: list[dict[str, Any]]) -> Table:
    table = plain_table("address", "known by", "reachable", "")
    for address in addresses:
        reachable = Text(_yes(address["reachable"]), _STYLES[address["reachable"]])
        table.add_row(Text(address["address"]), Text(address["source"]), reachable, Text(address["why"]))
    return table


def _relays(relays: list[dict[str, Any]]) -> Table:
    table = plain_table("relay", "address", ">RTT", "reserved", "sees us as", "")
    for relay in relays:
        table.add_row(
            Text(relay["relay"]),
            Text(relay["address"]),
            "" if relay["rtt_ms"] is None else f"{relay['rtt_ms']:.1f} ms",
            _yes(relay["reserved"]),
            Text(relay["observed"]),
            Text(relay["error"], "red"),
        )
    return table


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def _yes(finding: bool | None) -> str:
    return "unknown" if finding is None else "yes" if finding else "no"
