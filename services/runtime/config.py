"""The one schema of the configuration file, and the one loader.

Keys are camelCase in the file and snake_case here. EdgeMesh's `edgemesh-agent.yaml` is accepted as it is;
its keys without effect are removed by `edgemesh` and reported in `Config.warnings`.
"""

import os
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, ValidationError, model_validator

from services.runtime import document, edgemesh, schema
from services.runtime.dns_section import EdgeDns
from services.runtime.document import KeyPath
from services.runtime.gateway_section import EdgeGateway
from services.runtime.problems import ConfigError, Problem, nearest
from services.runtime.proxy_section import EdgeProxy
from services.runtime.section import (
    Count,
    FilePath,
    NodeName,
    Port,
    Section,
    Switch,
    cluster_name,
    contact,
    endpoint,
    ip_or_empty,
    short_enough,
)

__all__ = ["Config", "ConfigError", "Problem", "RelayNode", "load"]

# Where EdgeMesh's DaemonSet mounts the secret; used when no path is given and nothing lies beside the file.
EDGEMESH_PSK = Path("/etc/edgemesh/psk")


class Metrics(Section):
    """Prometheus metrics. base_port 0: off; else discovery +0, tunnel +1, relay +2, proxy +3."""

    listen_address: Annotated[str, AfterValidator(ip_or_empty)] = "127.0.0.1"
    base_port: Annotated[int, Field(ge=0, le=65532)] = 0


class Mdns(Section):
    """Finding nodes in the LAN."""

    enable: bool = True


class Dht(Section):
    """Finding nodes across LANs."""

    enable: bool = True


class EdgeDiscovery(Section):
    """Who is out there. bootstrap: extra first contacts, "host:port" of discovery services."""

    listen_port: Port = 20008
    mdns: Mdns = Mdns()
    dht: Dht = Dht()
    bootstrap: list[Annotated[str, AfterValidator(contact)]] = Field(default=[], max_length=256)
    services_file: FilePath | None = None


class RelayNode(Section):
    """A node named as relay. advertise_address: IP or DNS name, ":port" where it differs from the relay port."""

    node_name: NodeName
    advertise_address: list[Annotated[str, AfterValidator(endpoint)]] = Field(default=[], max_length=64)


class Psk(Section):
    """One secret for the whole cluster. accept_paths: secrets beside it whose holders are accepted, too, while the
    secret is being replaced. certificate_lifetime_seconds: of the certificates derived from the one at `path`."""

    enable: bool = True
    path: FilePath = Path("psk")
    accept_paths: list[FilePath] = Field(default=[], max_length=4)
    certificate_lifetime_seconds: Annotated[int, Field(ge=3, le=365 * 86400)] = 86400


class Ca(Section):
    """Certificates from `causeway ca`, instead of a PSK. crl_file is optional and reread when it changes."""

    enable: bool = False
    ca_file: FilePath = Path("ca.crt")
    cert_file: FilePath = Path("node.crt")
    key_file: FilePath = Path("node.key")
    crl_file: FilePath | None = None


def _each_once(nodes: list[RelayNode]) -> list[RelayNode]:
    names = [node.node_name for node in nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each node once, but {', '.join(twice)} is named twice")
    return nodes


class PortMapping(Section):
    """Asking the gateway to let connections in (PCP, NAT-PMP, UPnP)."""

    enable: bool = True


class EdgeTunnel(Section):
    """Sessions to other nodes. listen_port 0: does not listen. Sizes in MiB, times in seconds."""

    enable: bool = True
    listen_port: Port = 20006
    advertise_address: list[Annotated[str, AfterValidator(endpoint)]] = Field(default=[], max_length=64)
    psk: Psk = Psk()
    ca: Ca = Ca()
    relay_nodes: Annotated[list[RelayNode], AfterValidator(_each_once)] = Field(default=[], max_length=256)
    port_mapping: PortMapping = PortMapping()
    session_hold_seconds: Annotated[float, Field(gt=0, le=86400)] = 60
    max_sessions: Count = 1024
    max_streams: Count = 16384
    resend_buffer_mib: Annotated[int, Field(ge=1, le=1024, alias="resendBufferMiB")] = 16
    node_buffer_mib: Annotated[int, Field(ge=1, le=65536, alias="nodeBufferMiB")] = 256

    @model_validator(mode="after")
    def _trusts_something(self) -> "EdgeTunnel":
        if not self.psk.enable and not self.ca.enable:
            raise ValueError("psk.enable or ca.enable to be true: nodes always authenticate each other")
        return self


class RelayLimits(Section):
    """What a relay grants. max_bytes_per_second_per_peer 0: no limit. reservation TTL: libp2p relay v2."""

    max_reservations: Count = 512
    max_circuits: Count = 1024
    max_circuits_per_peer: Count = 256
    max_bytes_per_second_per_peer: Annotated[int, Field(ge=0)] = 0
    idle_timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 300
    max_half_open: Count = 256
    reservation_ttl_seconds: Annotated[float, Field(gt=0, le=86400)] = 3600


class EdgeRelay(Section):
    """Helping nodes that cannot reach each other. auto: when named in relayNodes, or proven capable.

    probe_interval_seconds: between two rounds in which others dial this node, when all is decided (AutoNATv2: 1 h).
    """

    mode: Switch = "auto"
    listen_port: Port = 20007
    probe_interval_seconds: Annotated[float, Field(ge=1, le=86400)] = 3600
    limits: RelayLimits = RelayLimits()


class Modules(Section):
    """One section for each service."""

    edge_discovery: EdgeDiscovery = EdgeDiscovery()
    edge_tunnel: EdgeTunnel = EdgeTunnel()
    edge_relay: EdgeRelay = EdgeRelay()
    edge_proxy: EdgeProxy = EdgeProxy()
    edge_dns: EdgeDns = Field(default=EdgeDns(), alias="edgeDNS")
    edge_gateway: EdgeGateway = EdgeGateway()


class Config(Section):
    """The whole configuration of a node. All paths are absolute after `load`.

    zone: where the node is, as Kubernetes' label topology.kubernetes.io/zone says it; default $NODE_ZONE, else the zone of the
    endpoints on it.
    """

    node_name: NodeName
    zone: Annotated[str, Field(max_length=63)] = ""
    cluster: Annotated[str, AfterValidator(cluster_name)] = "default"
    state_dir: FilePath = Path("state")
    run_dir: Annotated[FilePath, AfterValidator(short_enough)] = Path("run")
    listen_address: Annotated[str, AfterValidator(ip_or_empty)] = ""
    metrics: Metrics = Metrics()
    modules: Modules = Modules()
    _source: Path | None = PrivateAttr(default=None)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def source(self) -> Path | None:
        """The file it was loaded from; None for the embedded defaults."""
        return self._source

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was accepted but has no effect, one line each."""
        return self._warnings


def load(path: Path | None) -> Config:
    """The configuration in the file, or the embedded defaults for None.

    Relative paths are relative to the file (to the working directory for None). Raises ConfigError with all
    problems at once.
    """
    raw, lines = document.read(path) if path else ({}, {})
    name = str(path) if path else "defaults"
    # Not resolved: in a ConfigMap volume the file is a symlink into a folder that changes with every update.
    base = path.absolute().parent if path else Path.cwd()
    config = validate(raw, lines, name, base)
    config._source = path.absolute() if path else None
    return config


def validate(raw: dict[str, Any], lines: dict[KeyPath, int], name: str, base: Path) -> Config:
    """The configuration that plain values say. lines: of their keys in the file `name`; base: for relative paths.

    Raises ConfigError with all problems at once.
    """
    kept, inert, strangers = edgemesh.strip(raw)

    name_source = ""
    if "nodeName" not in kept:
        name_source = "$NODE_NAME" if os.environ.get("NODE_NAME") else "the host name"
        kept["nodeName"] = os.environ.get("NODE_NAME") or socket.gethostname()
    if "zone" not in kept:
        kept["zone"] = os.environ.get("NODE_ZONE", "")
    _default_psk(kept, base)

    problems = [
        Problem(
            name,
            key,
            "unknown key",
            "",
            nearest(key.rpartition(".")[2], tree),
            schema.line_of(lines, tuple(key.split("."))),
        )
        for key, tree in strangers
    ]
    config = None
    try:
        config = Config.model_validate(kept, context=base)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            location = item["loc"]
            told = schema.problem(name, item, schema.line_of(lines, location), _meant)
            if location == ("nodeName",) and name_source:
                hint = f"{told.expected}; it was taken from {name_source}: set nodeName"
                told = Problem(name, "nodeName", told.found, hint)
            problems.append(told)
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda it: it.line))
    warnings = [f"{name}:{schema.line_of(lines, tuple(k.split('.')))}: {k} has no effect here" for k in inert]
    if not config.modules.edge_tunnel.enable:
        warnings.append(f"{name}: modules.edgeTunnel.enable: false has no effect here: do not start the tunnel instead")
    dns = config.modules.edge_dns
    if dns.enable and dns.cache_dns.upstream_servers and not dns.cache_dns.enable:
        warnings.append(
            f"{name}:{schema.line_of(lines, ('modules', 'edgeDNS', 'cacheDNS', 'upstreamServers'))}: "
            "modules.edgeDNS.cacheDNS.upstreamServers has no effect without cacheDNS.enable: true"
        )
    config._warnings = tuple(warnings)
    return config


def _default_psk(kept: dict[str, Any], base: Path) -> None:
    if (base / "psk").exists() or not EDGEMESH_PSK.exists():
        return
    section: Any = kept
    for key in ("modules", "edgeTunnel", "psk"):
        section = section.setdefault(key, {}) if isinstance(section, dict) else None
    if isinstance(section, dict):
        section.setdefault("path", str(EDGEMESH_PSK))


def _meant(location: KeyPath) -> tuple[str, str]:
    """The valid key an unknown one probably stands for (misplaced, or misspelt), and all that would be valid."""
    unknown = str(location[-1])
    elsewhere = [path for path in _paths(Config, "") if path.rpartition(".")[2] == unknown]
    if elsewhere and len(unknown) > 6:  # short names such as `enable` are everywhere
        return elsewhere[0], ""
    model: type[BaseModel] | None = Config
    inert: Any = edgemesh.INERT
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        inert = inert.get(part) if isinstance(inert, dict) else None
        model = schema.children(model).get(part) if model else None
    names = schema.aliases(model) if model else []
    others = list(inert) if isinstance(inert, dict) else []
    return nearest(unknown, [*names, *others]), f"one of {', '.join(names)}"


def _paths(model: type[BaseModel], prefix: str) -> list[str]:
    paths = [prefix + alias for alias in schema.aliases(model)]
    for alias, child in schema.children(model).items():
        paths += _paths(child, f"{prefix}{alias}.")
    return paths
