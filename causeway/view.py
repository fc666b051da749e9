"""`status` for eyes: the snapshot as text and tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from services.runtime.core.age import spell

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render(found: dict[str, Any]) -> RenderableType:
    """Everything of a snapshot that a person wants to see at a glance."""
    parts: list[RenderableType] = [_head(found)]
    if found["peers"]:
        parts += ["", _peers(found["peers"])]
    if found["relays"]:
        parts += ["", _relays(found["relays"])]
    if found["roles"]["relay"]["circuits"]:
        parts += ["", _circuits(found["roles"]["relay"]["circuits"])]
    if found["listeners"]:
        parts += ["", _listeners(found["listeners"])]
    warnings = _warnings(found)
    if warnings:
        parts += ["", *warnings]
    return Group(*parts)


def _head(found: dict[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    zone = f", zone {escape(found['zone'])}" if found["zone"] else ""
    grid.add_row("node", f"{escape(found['node'])}  (cluster {escape(found['cluster'] or '?')}{zone})")
    services = [
        f"[green]{name}[/]" if service["up"] else f"[red]{name} down[/]" for name, service in found["services"].items()
    ]
    grid.add_row("services", "  ".join(services))
    if found["self"]:
        record = found["self"]
        grid.add_row("addresses", escape(", ".join(record["addresses"]) or "none known yet"))
        grid.add_row("ports", f"tunnel {_port(record['tunnel_port'])}, discovery {_port(record['discovery_port'])}")
    if found["services"]["relay"]["up"]:
        grid.add_row("relay", _relay_role(found["roles"]["relay"]))
        for condition in found["roles"]["relay"]["conditions"]:
            grid.add_row("", _condition(condition))
    for name, state in found["sources"].items():
        grid.add_row(f"source {escape(name)}", escape(state))
    streams, connections = found["streams"], found["connections"]
    interpreted = found["services"]["tunnel"]["up"] and not found["roles"]["tunnel"]["compiled"]
    way = "; the data path is interpreted (make native)" if interpreted else ""
    grid.add_row("streams", f"{streams['open']} open, {streams['total']} since the start{way}")
    refused = ", ".join(f"{reason} {count}" for reason, count in connections["refused"].items())
    line = f"{connections['accepted_total']} accepted, {connections['dialled_total']} dialled here"
    grid.add_row("connections", escape(line + (f", refused: {refused}" if refused else "")))
    return grid


def _relay_role(role: dict[str, Any]) -> str:
    word = "draining" if role["draining"] else "active" if role["active"] else "not active"
    text = f"{word}: {role['reason']}" if role["reason"] else word
    if role["active"]:
        text += (
            f"; port {role['listen_port']}, load {role['load_permille'] / 10:.1f} %, "
            f"{len(role['reservations'])} reservations, {len(role['circuits'])} circuits"
        )
    return escape(text)


def _condition(condition: dict[str, Any]) -> str:
    text = f"{condition['type']}={condition['status']} ({condition['reason']})"
    # Why it is capable or not is why it is a relay or not, and stands above.
    return escape(text if condition["type"] == "RelayCapable" else f"{text}: {condition['message']}")


def _peers(peers: list[dict[str, Any]]) -> Table:
    table = plain_table("peer", "known by", "path", ">RTT", ">streams", ">sent", ">received", "why")
    for peer in peers:
        session = peer["session"]
        name = peer["name"] + (f" (relay{_claim(peer['claim'])})" if peer["is_relay"] else "")
        sources = ", ".join(peer["sources"]) + ("" if peer["verified"] else " (unverified)")
        if "cache" in peer["sources"] and peer["record_age"] is not None:
            sources += f" ({spell(peer['record_age'])} old)"  # nobody has renewed it since
        if not peer["sources"]:
            sources = "its session"  # it dialled us, and proved its name there
        standby = [link["relay"] or link["kind"] for link in peer["links"] if link["state"] == "standby"]
        table.add_row(
            escape(name),
            escape(sources),
            _path(peer, session, standby),
            _rtt(peer["rtt_ms"]),
            str(session["streams"]) if session else "",
            size(session["bytes_sent"]) if session else "",
            size(session["bytes_received"]) if session else "",
            escape(peer["why"]),
        )
    return table


def _claim(claim: dict[str, Any] | None) -> str:
    if claim is None:
        return ""
    speed = f", {size(claim['bytes_per_second'])}/s" if claim["bytes_per_second"] else ""
    return f"{speed}, up {spell(claim['uptime'])}"


def _path(peer: dict[str, Any], session: dict[str, Any] | None, standby: list[str]) -> str:
    if session is None:
        return "[dim]no session[/]"
    if not peer["path"]:
        return f"[yellow]{escape(session['state'])}[/]"
    via = f" via {peer['relay']}" if peer["relay"] else ""
    also = f" (standby {', '.join(standby)})" if standby else ""
    return escape(f"{peer['path']}{via}{also}")


def _relays(relays: list[dict[str, Any]]) -> Table:
    table = plain_table("relay", "address", "state", ">RTT", "sees us as", ">expires in")
    for relay in relays:
        style = "green" if relay["state"] == "reserved" else "yellow"
        table.add_row(
            escape(relay["relay"]),
            escape(relay["address"]),
            Text(relay["state"], style),
            _rtt(relay["rtt_ms"] or None),
            escape(relay["observed"]),
            f"{relay['expires_in']:.0f} s" if relay["expires_in"] else "",
        )
    return table


def _circuits(circuits: list[dict[str, Any]]) -> Table:
    table = plain_table("circuit", ">age", ">from caller", ">from callee")
    for circuit in circuits:
        table.add_row(
            escape(f"{circuit['caller']} → {circuit['callee']}"),
            f"{circuit['age']:.0f} s",
            size(circuit["bytes_from_caller"]),
            size(circuit["bytes_from_callee"]),
        )
    return table


def _listeners(listeners: list[dict[str, Any]]) -> Table:
    table = plain_table("listener", "network", "service", ">ready endpoints", "")
    for listener in listeners:
        table.add_row(
            escape(listener["address"]),
            listener["network"],
            escape(listener["service"]),
            _endpoints(listener),
            Text(listener["error"], "red") if listener["error"] else "intercepted" if listener["intercepted"] else "",
        )
    return table


def _endpoints(listener: dict[str, Any]) -> str:
    count, preferred = listener["endpoints"], listener["preferred"]
    return f"{count}, {preferred} preferred" if 0 < preferred < count else str(count)


def _warnings(found: dict[str, Any]) -> list[Text]:
    lines = [service["error"] for service in found["services"].values() if not service["up"]]
    lines += [f"{warning['service']}: {warning['message']}" for warning in found["warnings"]]
    return [Text(f"! {line}", "yellow") for line in lines]


def plain_table(*columns: str) -> Table:
    """A plain table; a column whose title begins with '>' is aligned to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _rtt(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.1f} ms"


def _port(port: int) -> str:
    return str(port) if port else "does not listen"


def size(count: int) -> str:
    """A number of bytes in the largest unit that leaves it at 1 or more: "512 B", "1.5 MiB"."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"
