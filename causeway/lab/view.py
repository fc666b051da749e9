"""What a lab looks like, in tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lab import quantity


def overview(told: dict[str, Any]) -> RenderableType:
    """What was built; `told` is `Stage.describe()`."""
    parts: list[RenderableType] = [hosts(told)]
    if told["lans"]:
        parts += ["", lans(told)]
    for service in told["services"]:
        backends = ", ".join(service["backends"])
        parts.append(
            f"service {service['name']}: {service['listen']} ({service['protocol']}) at every node → {backends}"
        )
    return Group(*parts)


def hosts(told: dict[str, Any]) -> Table:
    """One row a host."""
    table = _table("HOST", "ADDRESS", "BEHIND", "SEEN AS", "LINK", "RUNS")
    for host in told["hosts"]:
        table.add_row(
            host["name"],
            _lines(host["address"], host["address6"]),
            " → ".join(f"{router['name']} ({router['kind']})" for router in host["routers"]) or "public",
            host["seen_as"] if host["seen_as"] != host["address"] else "itself",
            link(host["wire"]),
            _runs(host),
        )
    return table


def lans(told: dict[str, Any]) -> Table:
    """One row a LAN."""
    table = _table("LAN", "NETWORK", "ROUTER", "OUTSIDE", "LINK")
    for lan in told["lans"]:
        words = [lan["kind"], *(word for word in ("hairpin", "reset") if lan[word])]
        if lan["lifetime"]:
            words.append(f"lifetime {quantity.in_time(lan['lifetime'])}")
        outside = f"{lan['wan_address']}{' in ' + lan['behind'] if lan['behind'] else ''}"
        table.add_row(
            lan["name"],
            _lines(lan["network"], lan["network6"]),
            ", ".join(words),
            _lines(outside, lan["wan_address6"]),
            link(lan["wire"]),
        )
    return table


def link(wire: dict[str, Any] | None) -> str:
    """A wire in a few words."""
    if wire is None:
        return "cable"
    out, back = (_way(wire[way]) for way in ("out", "in"))
    return out if out == back else f"out: {out}; in: {back}"


def _way(shape: dict[str, Any]) -> str:
    if shape["dark"]:
        return "down"
    words = []
    if shape["delay"] or shape["jitter"]:
        jitter = f" ± {quantity.in_time(shape['jitter'])}" if shape["jitter"] else ""
        words.append(quantity.in_time(shape["delay"]) + jitter)
    if shape["loss"]:
        words.append(f"{quantity.in_share(shape['loss'])} lost")
    if shape["rate"]:
        words.append(quantity.in_rate(shape["rate"]))
    return ", ".join(words) or "no delay"


def status(rows: list[dict[str, Any]]) -> Table:
    """What nodes and programs do; a row has name, services {name: up}, programs {line: code or None}, snapshot."""
    table = _table("HOST", "SERVICES", "RELAY", "PATHS")
    for row in rows:
        words = [name if up else f"[red]{name} down[/red]" for name, up in row["services"].items()]
        words += [
            escape(line) if code is None else f"[red]{escape(line)} ended with {code}[/red]"
            for line, code in row["programs"].items()
        ]
        snapshot = row["snapshot"]
        role = snapshot["roles"]["relay"]["active"] if snapshot else False
        table.add_row(
            row["name"],
            ", ".join(words) or "–",
            "active" if role else "–",
            "\n".join(path(peer) for peer in snapshot["peers"] if peer["session"]) if snapshot else "–",
        )
    return table


def path(peer: dict[str, Any]) -> str:
    """How a node reaches a peer."""
    if not peer["path"]:
        return f"{peer['name']}: no path"
    relay = f" via {peer['relay']}" if peer["relay"] else ""
    return f"{peer['name']}: {peer['path']}{relay}, {peer['rtt_ms']:.1f} ms"


def _runs(host: dict[str, Any]) -> str:
    words = []
    if host["node"] is not None:
        some = host["node"]["services"]
        words.append("node" if len(some) == 4 else f"node ({', '.join(some)})")
        if host["node"]["relay"]:
            words.append("relay of all")
    words += map(escape, host["programs"])
    return ", ".join(words) or "–"


def _lines(*words: str) -> str:
    return "\n".join(word for word in words if word)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
