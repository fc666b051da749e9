"""A network described in a file, for `causeway lab`: who is where, behind what, and what runs there.

The schema is below; `causeway lab --help` and lab/examples/ show it in use. `load` finds all mistakes at
once and builds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lab import quantity
from lab.manifest import merged
from lab.nat import Kind, Nat
from lab.network import MAX_BEHIND_FIREWALL, MAX_BEHIND_NAT
from lab.references import machines, references
from lab.wire import Shape
from services.runtime import address, document, schema
from services.runtime.config import ConfigError, Problem, validate
from services.runtime.document import KeyPath
from services.runtime.problems import nearest
from services.runtime.section import Section

MAX_DELAY = 60.0  # seconds; a wire holds what is under way in memory

KINDS = {
    "full-cone": Kind.FULL_CONE,
    "restricted": Kind.RESTRICTED,
    "port-restricted": Kind.PORT_RESTRICTED,
    "masquerade": Kind.PORT_RESTRICTED,  # what Linux calls it
    "symmetric": Kind.SYMMETRIC,
    "firewall": Kind.FIREWALL,
}


def _delay(value: object) -> float:
    seconds = quantity.seconds(value)
    if seconds > MAX_DELAY:
        raise ValueError(f"at most {quantity.in_time(MAX_DELAY)}")
    return seconds


Seconds = Annotated[float, BeforeValidator(_delay)]
Share = Annotated[float, BeforeValidator(quantity.share)]
Rate = Annotated[float, BeforeValidator(quantity.bits_per_second)]
Size = Annotated[int, BeforeValidator(quantity.size)]


class Way(Section):
    """What one direction of a wire does; keys that are not given stay as they are. The fields of lab.wire.Shape."""

    delay: Seconds | None = None
    jitter: Seconds | None = None
    loss: Share | None = None
    rate: Rate | None = None
    queue: Size | None = None

    def over(self, shape: Shape) -> Shape:
        """A shape with what is given here."""
        given = {name: value for name in Way.model_fields if (value := getattr(self, name)) is not None}
        return Shape(**{**vars(shape), **given})


class WireSpec(Way):
    """A link. Both directions are alike but for `out` (away from the host or the LAN) and `in`."""

    out: Way = Way()
    in_: Way = Field(default=Way(), alias="in")

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Out and in."""
        both = self.over(Shape())
        return self.out.over(both), self.in_.over(both)


class NatSpec(Section):
    """What a LAN's router does; see lab/nat.py."""

    kind: Literal["full-cone", "restricted", "port-restricted", "masquerade", "symmetric", "firewall"] = (
        "port-restricted"
    )
    hairpin: bool = False
    reset: bool = False
    lifetime: Annotated[float, BeforeValidator(quantity.seconds)] = 0.0

    @model_validator(mode="after")
    def _possible(self) -> NatSpec:
        if self.hairpin and self.kind in ("symmetric", "firewall"):
            raise ValueError(f"a full-cone, restricted or port-restricted one for hairpin, not {self.kind}")
        return self

    @property
    def nat(self) -> Nat:
        """As the lab's network takes it."""
        return Nat(KINDS[self.kind], hairpin=self.hairpin, answers_rst=self.reset, lifetime=self.lifetime)


def _some(key: str) -> BeforeValidator:
    """Lets a bare value stand for a mapping with this one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str | int | float) else value)


NodeService = Literal["discovery", "relay", "tunnel", "proxy"]


def _node(value: object) -> object:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class NodeSpec(Section):
    """A Causeway node. services: the ones that are started; config: keys over those of the lab."""

    services: list[NodeService] = Field(default=[*get_args(NodeService)], max_length=4)
    config: dict[str, Any] = Field(default={})


class HostSpec(Section):
    """A machine. programs: command lines that run on it from the start."""

    wire: Annotated[WireSpec, _some("delay")] = WireSpec()
    node: Annotated[NodeSpec | None, BeforeValidator(_node)] = None
    programs: list[str] = Field(default=[], max_length=16)


class PublicHostSpec(HostSpec):
    """A machine with a public address. ipv6: None takes the topology's."""

    ipv6: bool | None = None


class LanSpec(Section):
    """Machines on one switch behind one router. behind: another LAN, for two routers in a row."""

    nat: Annotated[NatSpec, _some("kind")] = NatSpec()
    wire: Annotated[WireSpec, _some("delay")] = WireSpec()
    behind: str = ""
    carrier: bool = False
    ipv6: bool | None = None
    hosts: dict[str, HostSpec] = Field(default={})

    @model_validator(mode="after")
    def _fits(self) -> LanSpec:
        room = MAX_BEHIND_FIREWALL if self.nat.kind == "firewall" else MAX_BEHIND_NAT
        if len(self.hosts) > room:
            raise ValueError(f"at most {room} hosts behind one {self.nat.kind} router")
        return self


def _listen(text: str) -> str:
    try:
        host, port = address.split(str(text))
    except ValueError:
        host, port = "", 0
    if not address.is_ip(host) or not port:
        raise ValueError("an IP address and port, such as 127.88.0.1:8000")
    return text


class ServiceSpec(Section):
    """A service of the mesh. listen: where every node serves it. backends: "host:port" on hosts with nodes."""

    listen: Annotated[str, BeforeValidator(_listen)]
    backends: list[str] = Field(min_length=1, max_length=64)
    protocol: Literal["tcp", "udp"] = "tcp"


class Topology(Section):
    """The whole file. relays: hosts that every node has in its `relayNodes`; config: keys for every node."""

    name: str = ""
    cluster: str = "lab"
    ipv6: bool = False
    relays: list[str] = Field(default=[])
    config: dict[str, Any] = Field(default={})
    hosts: dict[str, PublicHostSpec] = Field(default={})
    lans: dict[str, LanSpec] = Field(default={})
    services: dict[str, ServiceSpec] = Field(default={})

    @property
    def machines(self) -> dict[str, tuple[HostSpec, str]]:
        """Every host, and the LAN it is in (empty: public)."""
        found: dict[str, tuple[HostSpec, str]] = {name: (host, "") for name, host in self.hosts.items()}
        for lan_name, lan in self.lans.items():
            found |= {name: (host, lan_name) for name, host in lan.hosts.items()}
        return found

    @property
    def nodes(self) -> dict[str, NodeSpec]:
        """The hosts that run a node."""
        return {name: host.node for name, (host, _) in self.machines.items() if host.node is not None}

    def config_of(self, node: str) -> dict[str, Any]:
        """The keys of the file for one node."""
        return merged(self.config, self.nodes[node].config)


def load(path: Path) -> Topology:
    """The network that a file describes. Raises ConfigError with all problems at once."""
    given, lines = document.read(path, keep_nulls=True)
    raw = document.without_nulls(_spelt_out(given))
    file = str(path)
    problems = [
        Problem(file, schema.dotted(at), found, expected, near, schema.line_of(lines, at))
        for at, found, expected, near in references(raw)
    ]
    problems += _node_problems(raw, lines, file)
    topology = None
    try:
        topology = Topology.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        problems += [
            schema.problem(file, item, schema.line_of(lines, item["loc"]), _meant)
            for item in error.errors(include_url=False)
        ]
    if problems or topology is None:
        raise ConfigError(sorted(problems, key=lambda it: it.line))
    return topology


def reshaped(shape: Shape, given: dict[str, str]) -> Shape:
    """A shape with other values, as the file writes them. Raises ValueError, one line with all that is wrong."""
    try:
        return Way.model_validate(given).over(shape)
    except ValidationError as error:
        names = schema.aliases(Way)
        problems = [
            schema.problem("", item, 0, lambda at: (nearest(str(at[-1]), names), f"one of {', '.join(names)}"))
            for item in error.errors(include_url=False)
        ]
        raise ValueError("; ".join(str(it).removeprefix(": ") for it in problems)) from None


def _spelt_out(raw: dict[str, Any]) -> dict[str, Any]:
    """Hosts and LANs that are just named (`web:`, or a list of names) with an empty mapping each."""
    result = {**raw, "hosts": _named(raw.get("hosts")), "lans": _named(raw.get("lans"))}
    if isinstance(result["lans"], dict):
        result["lans"] = {
            name: {**lan, "hosts": _named(lan.get("hosts"))} if isinstance(lan, dict) else lan
            for name, lan in result["lans"].items()
        }
    return result


def _named(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {str(name): {} if inner is None else inner for name, inner in value.items()}
    return {} if value is None else value


# What the lab itself must know of a node to talk to it.
RESERVED = ("nodeName", "stateDir", "runDir")


def _node_problems(raw: dict[str, Any], lines: dict[KeyPath, int], file: str) -> list[Problem]:
    """What is wrong with the configurations, told at the keys of this file; once for what all nodes share."""
    found: dict[str, Problem] = {}
    shared = _below(("config",), lines)
    common = raw["config"] if isinstance(raw.get("config"), dict) else {}
    candidates: list[tuple[KeyPath, dict[str, Any]]] = [((), {})]
    for at, spec in machines(raw):
        node = spec.get("node")
        if isinstance(node, dict) and isinstance(node.get("config"), dict):
            candidates.append(((*at, "node", "config"), node["config"]))
    for at, own in candidates:
        mine = _below(at, lines) if at else {}
        keys = merged(common, own)
        told = [
            Problem(
                file, key, "found in a lab", "it to be left out: the lab sets it", line=(shared | mine).get((key,), 0)
            )
            for key in RESERVED
            if key in keys
        ]
        try:
            validate({**keys, "nodeName": "lab"}, shared | mine, file, Path("/"))
        except ConfigError as error:
            told += error.problems
        here = {schema.dotted(path) for path in mine}
        for it in told:
            prefix = schema.dotted(at) if it.key in here else "config"
            key = f"{prefix}.{it.key}".rstrip(".")
            found.setdefault(key, Problem(file, key, it.found, it.expected, it.nearest, it.line))
    return list(found.values())


def _below(at: KeyPath, lines: dict[KeyPath, int]) -> dict[KeyPath, int]:
    return {path[len(at) :]: line for path, line in lines.items() if path[: len(at)] == at and path != at}


def _meant(location: KeyPath) -> tuple[str, str]:
    """The valid key an unknown one probably stands for, in its place or one level down, and all that are valid."""
    unknown = str(location[-1])
    model: type[Any] | None = Topology
    parts = list(location[:-1])
    while parts and model is not None:
        part = parts.pop(0)
        field = next((it for name, it in model.model_fields.items() if (it.alias or name) == part), None)
        model = schema.children(model).get(str(part))
        if field is not None and getattr(field.annotation, "__origin__", None) is dict and parts:
            parts.pop(0)  # the name of a host or LAN
    if model is None:
        return "", ""
    names = schema.aliases(model)
    deeper = [f"{name}.{unknown}" for name, child in schema.children(model).items() if unknown in schema.aliases(child)]
    return (deeper[0] if deeper else nearest(unknown, names)), f"one of {', '.join(names)}"
