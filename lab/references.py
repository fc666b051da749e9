"""Names in a topology that must fit together. Looks at the plain values of the file, so that it can tell its
findings together with those of the schema, whatever else is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lab.network import MAX_FIREWALLS, MAX_LANS, MAX_PUBLIC
from services.runtime import address
from services.runtime.document import KeyPath
from services.runtime.problems import nearest, show

Finding = tuple[KeyPath, str, str, str]  # where, what was found, what was expected, what was probably meant

MAX_HOSTS = 100  # each is a namespace and a wire, and each node four processes of about 40 MiB
RESERVED = ("internet", "wires")
# A label of RFC 1123, short: the name is part of the path of Unix sockets and of a router's namespace.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def references(raw: dict[str, Any]) -> Iterator[Finding]:
    """Everything that does not fit."""
    yield from _names(raw)
    yield from _amounts(raw)
    yield from _nesting(raw)
    yield from _users(raw)


def machines(raw: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Every host with its place in the file, as far as it is recognisable."""
    for name, host in _mapping(raw.get("hosts")).items():
        yield ("hosts", name), _mapping(host)
    for lan_name, lan in _mapping(raw.get("lans")).items():
        for name, host in _mapping(_mapping(lan).get("hosts")).items():
            yield ("lans", lan_name, "hosts", name), _mapping(host)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lans(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: _mapping(lan) for name, lan in _mapping(raw.get("lans")).items()}


def _names(raw: dict[str, Any]) -> Iterator[Finding]:
    label = "lower-case letters, digits and '-', beginning and ending with a letter or digit, at most"
    cluster = raw.get("cluster", "lab")
    if isinstance(cluster, str) and not address.is_cluster_name(cluster):
        yield ("cluster",), show(cluster), f"{label} 63", ""
    for name in _mapping(raw.get("services")):
        if not address.is_cluster_name(name):  # Kubernetes has the same rule for both
            yield ("services", name), f"the name {name!r}", f"{label} 63", ""
    first: dict[str, KeyPath] = {}
    for at in [*(("lans", name) for name in _lans(raw)), *(at for at, _ in machines(raw))]:
        name = str(at[-1])
        if name in RESERVED:
            yield at, f"the name {name!r}", "another one: the lab uses it itself", ""
        elif not _NAME.fullmatch(name):
            yield at, f"the name {name!r}", f"{label} 32", ""
        if name in first:
            yield at, f"the name {name!r}, which is also at {'.'.join(map(str, first[name]))}", "each name once", ""
        first.setdefault(name, at)


def _amounts(raw: dict[str, Any]) -> Iterator[Finding]:
    lans = _lans(raw)
    outer = sum(not lan.get("behind") for lan in lans.values())
    firewalls = sum(_kind(lan) == "firewall" for lan in lans.values())
    hosts = list(machines(raw))
    public = len(_mapping(raw.get("hosts"))) + outer
    for at, count, most, what in (
        (("hosts",), len(hosts), MAX_HOSTS, "hosts in all"),
        (("lans",), len(lans), MAX_LANS, "LANs"),
        (("lans",), firewalls, MAX_FIREWALLS, "LANs behind firewalls"),
        (("hosts",), public, MAX_PUBLIC, "public addresses, of hosts and LANs"),
    ):
        if count > most:
            yield at, f"found {count} {what}", f"at most {most}", ""
    if not hosts:
        yield ("hosts",), "found no host", "at least one, under hosts or lans.NAME.hosts", ""


def _kind(lan: dict[str, Any]) -> Any:
    nat = lan.get("nat")
    return nat.get("kind") if isinstance(nat, dict) else nat


def _nesting(raw: dict[str, Any]) -> Iterator[Finding]:
    lans = _lans(raw)
    for name, lan in lans.items():
        behind = lan.get("behind")
        if not isinstance(behind, str) or not behind:
            continue
        at = ("lans", name, "behind")
        if behind not in lans:
            yield at, f"found {behind!r}", "the name of a LAN", nearest(behind, lans)
            continue
        chain = [name]
        while isinstance(behind, str) and behind in lans and behind not in chain:
            chain.append(behind)
            behind = lans[behind].get("behind")
        if behind == name:
            yield at, f"found a circle: {' → '.join([*chain, name])}", "a LAN that is not behind this one", ""
        elif _ipv6(raw, lan) and not _ipv6(raw, lans[chain[1]]):
            where = ("lans", name, "ipv6") if "ipv6" in lan else at
            yield where, f"IPv6 behind {chain[1]!r}, which has none", f"lans.{chain[1]}.ipv6 to be true", ""


def _ipv6(raw: dict[str, Any], lan: dict[str, Any]) -> bool:
    return bool(lan.get("ipv6", raw.get("ipv6", False)))


def _users(raw: dict[str, Any]) -> Iterator[Finding]:
    """Relays and backends must be hosts with a node."""
    hosts = [str(at[-1]) for at, _ in machines(raw)]
    nodes = [str(at[-1]) for at, spec in machines(raw) if spec.get("node", False) is not False]
    for index, name in enumerate(raw["relays"] if isinstance(raw.get("relays"), list) else ()):
        if isinstance(name, str):
            yield from _node(("relays", index), name, hosts, nodes)
    for service, spec in _mapping(raw.get("services")).items():
        backends = _mapping(spec).get("backends")
        for index, backend in enumerate(backends if isinstance(backends, list) else ()):
            at = ("services", service, "backends", index)
            try:
                host, port = address.split(str(backend))
            except ValueError:
                host, port = "", 0
            if not port:
                yield at, show(backend), "a host of this file and a port, such as web:8080", ""
                continue
            yield from _node(at, host, hosts, nodes)


def _node(at: KeyPath, name: str, hosts: list[str], nodes: list[str]) -> Iterator[Finding]:
    if name not in hosts:
        yield at, f"no host {name!r}", "a host with a node", nearest(name, nodes)
    elif name not in nodes:
        yield at, f"the host {name!r}, on which no node runs", f"node: true at {name!r}", ""
