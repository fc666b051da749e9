"""From the services known to answers of the DNS, as Kubernetes' DNS specification has them (version 1.1.0).

Names are lower case without the final dot. Below the cluster's domain all is ours; beyond it only what we know: the
short names of services (`name` in the namespace default, `name.namespace`, `name.namespace.svc`), and the addresses
of services and of headless services' endpoints, for which there are pointers.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from services.proxy.core.catalog import Endpoint, Service

TTL = 5  # s: CoreDNS's for cluster names; an endpoint that went is soon forgotten
NAMESPACE = "default"  # of a name that says none
# Of one name: what fits in 64 KiB, the most that TCP carries, also for SRV with long names.
MAX_RECORDS = 500

# Of the specification; where clients find it (2.2, record for schema version).
VERSION = "1.1.0"

Kind = Literal["A", "AAAA", "CNAME", "SRV", "PTR", "SOA", "NS", "TXT"]

# Pointers of addresses that every host has would be wrong on all hosts but one.
_EVERYBODYS = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record; `data` in presentation format (RFC 1035, 5.1), names in it with the final dot."""

    name: str
    kind: Kind
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Without records and with `exists` it is NODATA, without `exists` NXDOMAIN; both come with `soa`."""

    records: tuple[Record, ...]
    soa: Record
    extra: tuple[Record, ...] = ()  # addresses of the names in SRV records
    exists: bool = True
    alias: str = ""  # the name has no such records, but is another name for this one, at which they may be


class Names:
    """`update` after every change of the services, `answer` for every question."""

    def __init__(self, domain: str) -> None:
        self.domain = domain.lower().strip(".")
        self._services: dict[tuple[str, str], Service] = {}  # by namespace and name
        self._namespaces: set[str] = set()
        self._hosts: dict[str, dict[str, dict[str, None]]] = {}  # of headless ones: key, label → addresses, in order
        self._pointers: dict[str, dict[str, None]] = {}  # names by address, in order
        self._pods: dict[str, dict[str, str]] = {}  # by namespace, label → address
        self._version = 0

    def update(self, services: Iterable[Service]) -> None:
        self._version += 1
        self._services, self._hosts, self._pointers, self._pods = {}, {}, {}, {}
        for service in sorted(services, key=lambda service: service.key):
            namespace, _, name = service.key.partition("/")
            self._services[namespace, name] = service
            own = f"{name}.{namespace}.svc.{self.domain}"
            pods = self._pods.setdefault(namespace, {})
            pods |= {_dashed(ip): ip for endpoint in service.endpoints for ip in endpoint.addresses[:1]}
            pointers = [(ip, own) for ip in service.cluster_ips]
            if service.headless:
                hosts = self._hosts[service.key] = {}
                for endpoint in ready(service):
                    hosts.setdefault(label(endpoint), {})[endpoint.addresses[0]] = None
                pointers += [(ip, f"{host}.{own}") for host, ips in hosts.items() for ip in ips]
            for ip, target in pointers:
                if ip not in _EVERYBODYS:
                    self._pointers.setdefault(ip, {})[target] = None
        self._namespaces = {namespace for namespace, _ in self._services}

    def covers(self, name: str) -> bool:
        """Whether `name` is in the cluster's domain: nobody else knows better."""
        return name == self.domain or name.endswith("." + self.domain)

    def answer(self, name: str, kind: str) -> Answer | None:
        """To a question for records of `kind` ("ANY": all) at `name`. None: the name is not ours."""
        if self.covers(name):
            zone = self.domain
            records = self._apex(kind) if name == zone else self._below(name.removesuffix(zone)[:-1].split("."), kind)
        elif name.endswith((".in-addr.arpa", ".ip6.arpa")):
            zone, records = name, self._pointer(name, kind)
        else:
            zone, records = name, self._short(name.split("."), kind)
        if records is None:
            return None if zone != self.domain else Answer((), self._soa(zone), exists=False)
        found = tuple(Record(name, kind, data) for kind, data in records[:MAX_RECORDS])
        alias = found[0].data[:-1] if found and found[0].kind == "CNAME" and kind not in ("CNAME", "ANY") else ""
        return Answer(found, self._soa(zone), tuple(self._addresses(found)), alias=alias)

    def _soa(self, zone: str) -> Record:
        text = f"ns.dns.{self.domain}. hostmaster.{self.domain}. {self._version} 7200 1800 86400 {TTL}"
        return Record(zone, "SOA", text)

    def _apex(self, kind: str) -> "list[tuple[Kind, str]]":
        if kind == "NS":
            return [("NS", f"ns.dns.{self.domain}.")]
        return [("SOA", self._soa(self.domain).data)] if kind == "SOA" else []

    def _short(self, labels: list[str], kind: str) -> "list[tuple[Kind, str]] | None":
        match labels:
            case [_]:
                return self._below([*labels, NAMESPACE, "svc"], kind)
            case [_, _]:
                return self._below([*labels, "svc"], kind)
            case [*_, _, _, "svc"]:
                return self._below(labels, kind)
        return None

    def _below(self, labels: list[str], kind: str) -> "list[tuple[Kind, str]] | None":
        """At a name relative to the domain. None: there is no such name."""
        match labels:
            case ["dns-version"]:
                return [("TXT", f'"{VERSION}"')] if kind in ("TXT", "ANY") else []
            case ["svc" | "pod"]:
                return []
            case [namespace, "svc" | "pod"]:
                return [] if namespace in self._namespaces else None
            case [pod, namespace, "pod"]:
                # Only of pods that are known: any address at all would be a name below the cluster's domain for whoever
                # wants one (CoreDNS, "pods verified").
                ip = self._pods.get(namespace, {}).get(pod)
                return _of_kind([ip], kind) if ip is not None else None
            case [*inner, name, namespace, "svc"]:
                service = self._services.get((namespace, name))
                if service is None:
                    return None
                match inner:
                    case []:
                        return _of_service(service, kind)
                    case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                        return self._ports(service, port[1:], protocol[1:], f"{name}.{namespace}", kind)
                    case [protocol] if protocol.startswith("_"):
                        return [] if any(port.network == protocol[1:] for port in service.ports) else None
                    case [host] if host in self._hosts.get(service.key, ()):
                        return _of_kind(self._hosts[service.key][host], kind)
        return None

    def _ports(
        self, service: Service, name: str, protocol: str, own: str, kind: str
    ) -> "list[tuple[Kind, str]] | None":
        ports = [port for port in service.ports if port.name == name and port.network == protocol]
        if not ports:
            return None
        if kind not in ("SRV", "ANY"):
            return []
        own = f"{own}.svc.{self.domain}."
        if not service.headless:
            return [("SRV", f"0 100 {ports[0].number} {own}")]
        return [
            ("SRV", f"0 100 {port.number} {label(endpoint)}.{own}")
            for endpoint in ready(service)
            for port in endpoint.ports
            if port.name == name and port.network == protocol
        ]

    def _addresses(self, found: Iterable[Record]) -> Iterable[Record]:
        for target in dict.fromkeys(record.data.split()[-1][:-1] for record in found if record.kind == "SRV"):
            for kind, data in self._below(target.removesuffix(self.domain)[:-1].split("."), "ANY") or ():
                yield Record(target, kind, data)

    def _pointer(self, name: str, kind: str) -> "list[tuple[Kind, str]] | None":
        targets = self._pointers.get(_reversed(name))
        if targets is None:
            return None
        return [("PTR", f"{target}.") for target in targets] if kind in ("PTR", "ANY") else []


def label(endpoint: Endpoint) -> str:
    """The name of an endpoint below that of its headless service."""
    return endpoint.hostname or _dashed(endpoint.addresses[0])


def _dashed(ip: str) -> str:
    return ip.replace(".", "-").replace(":", "-")


def ready(service: Service) -> list[Endpoint]:
    """Endpoints that have names."""
    return [endpoint for endpoint in service.endpoints if endpoint.ready and endpoint.addresses]


def _of_service(service: Service, kind: str) -> "list[tuple[Kind, str]]":
    if service.external_name:
        return [("CNAME", f"{service.external_name}.")]  # whatever is asked for (RFC 1034, 3.6.2)
    if service.headless:
        return _of_kind([endpoint.addresses[0] for endpoint in ready(service)], kind)
    return _of_kind(service.cluster_ips, kind)


def _of_kind(ips: Iterable[str], kind: str) -> "list[tuple[Kind, str]]":
    records: list[tuple[Kind, str]] = [("AAAA" if ":" in ip else "A", ip) for ip in dict.fromkeys(ips)]
    return [record for record in records if kind in (record[0], "ANY")]


def _reversed(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for; "" for none."""
    parts = name.split(".")[:-2][::-1]
    try:
        if name.endswith(".in-addr.arpa"):
            return str(ipaddress.IPv4Address(".".join(parts)))
        if len(parts) == 32 and all(len(part) == 1 for part in parts):
            return str(ipaddress.IPv6Address(int("".join(parts), 16)))
    except ValueError:
        pass
    return ""
