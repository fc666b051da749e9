"""The relay's decisions: messages and legs in, actions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from . import load
from .circuits import Circuit, Circuits
from .dialback import FIRST_PORT, DialBacks
from .drain import spread
from .limits import Limits
from .messages import (
    VERSION,
    Connect,
    DialBack,
    DrainNotice,
    Heartbeat,
    Hello,
    Incoming,
    Message,
    Reason,
    Refused,
    Reject,
    Reserve,
    Reserved,
    Voucher,
    Welcome,
    Withdraw,
)
from .messages import Circuit as CircuitMessage
from .reservations import Reservations

RETRY_AFTER = 5.0
"""Seconds after which a refused request for want of room is worth repeating; sent with up to as much again at
random, so that the refused do not come back together."""
HELD_AT_MOST = 800
"""Permille of load that reservations make by themselves: from there on new pairs stay away, and only above it old ones
leave (LOAD_LIMIT of tunnel/core/choice), which makes room among circuits but frees no reservation."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` on connection `conn`. `id`: of the request it answers, 0 for none."""

    conn: int
    id: int
    message: Message


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close control connection `conn`."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Opening:
    """A circuit was agreed on; its legs are awaited."""

    circuit: Circuit
    traceparent: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A circuit came to nothing; close the leg that had arrived, if any. `given_up`: by one of both sides."""

    circuit: Circuit
    reason: str
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Dial:
    """Try a connection to the client's own IP, tell it on `conn` with `id`, and then `dialled` here."""

    conn: int
    id: int
    ip: str
    port: int


Action = Send | Disconnect | Opening | Failed | Dial


@dataclass(slots=True)
class Connection:
    """A control connection whose peer is proven and greeted."""

    peer: str
    observed: str


@dataclass(slots=True)
class Broker:
    """Knows who is here, who may be reached, and which circuits there are. Connections and legs are numbers
    that the driver gives; `voucher(peer, ttl)` signs; `random` must be unpredictable (tokens)."""

    node_name: str
    cluster: str
    limits: Limits
    random: Random
    voucher: Callable[[str, float], Voucher]
    alternatives: tuple[str, ...] = ()
    """Other relays to name in refusals."""
    draining: bool = False
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by reason."""
    circuits_total: int = 0
    busy_share: float = 0.0
    """Share of the core in use, set by the driver."""
    connections: dict[int, Connection] = field(default_factory=dict)
    reservations: Reservations = field(init=False)
    circuits: Circuits = field(init=False)
    dial_backs: DialBacks = field(default_factory=DialBacks)
    _of_peer: dict[str, list[int]] = field(default_factory=dict)  # oldest connection first

    def __post_init__(self) -> None:
        self.reservations = Reservations(self.limits.max_reservations, self.limits.reservation_ttl)
        self.circuits = Circuits(self.random, self.limits.pairing_timeout)

    def adjust(self, limits: Limits, alternatives: tuple[str, ...]) -> None:
        """Other limits, for what comes from now on: nobody who is here has to go."""
        self.limits = limits
        self.alternatives = alternatives
        self.reservations.limit, self.reservations.ttl = limits.max_reservations, limits.reservation_ttl

    # --- control connections -----------------------------------------------------------------------------------

    def greet(
        self, conn: int, hello: Message, proven: str, observed: str
    ) -> tuple[Welcome | Refused | Reject, list[Action]]:
        """First message of a client whose certificate says `proven`. Anything but Welcome: say it and close."""
        if not isinstance(hello, Hello):
            return self._reject("bad-version", f"got {type(hello).__name__} as first message, expected Hello"), []
        if hello.version != VERSION:
            return self._reject(
                "bad-version",
                f"got version {hello.version} of the relay protocol, expected {VERSION}; upgrade one side",
            ), []
        if hello.cluster != self.cluster:
            return self._reject(
                "wrong-cluster", f"got a node of cluster {hello.cluster!r}, this relay serves {self.cluster!r}"
            ), []
        if hello.node_name != proven:
            return self._reject(
                "name-mismatch", f"got the name {hello.node_name!r}, the certificate says {proven!r}"
            ), []
        if hello.expected_relay and hello.expected_relay != self.node_name:
            return self._reject(
                "name-mismatch", f"this is {self.node_name!r}, not {hello.expected_relay!r}; check advertiseAddress"
            ), []
        if len(self.connections) >= self.limits.max_connections and proven not in self._of_peer:
            return self._full("control connections"), []
        actions: list[Action] = []
        mine = self._of_peer.setdefault(proven, [])
        mine.append(conn)
        self.connections[conn] = Connection(proven, observed)
        if len(mine) > self.limits.max_connections_per_peer or len(self.connections) > self.limits.max_connections:
            oldest = mine[0]
            self.leave(oldest)
            actions.append(Disconnect(oldest, "the same node has too many newer connections"))
        return Welcome(VERSION, self.node_name, observed), actions

    def receive(self, conn: int, id: int, message: Message, now: float) -> list[Action]:  # noqa: A002  the wire's word
        """Any later message."""
        if conn not in self.connections:
            return []
        match message:
            case Heartbeat():
                return [Send(conn, id, Heartbeat(self.load_permille))]
            case Reserve():
                return [Send(conn, id, self._reserve(conn, now))]
            case Connect(peer=callee, traceparent=traceparent):
                return self._connect(conn, id, callee, traceparent, now)
            case Withdraw(token=token):
                circuit = self.circuits.withdraw(token)
                return [] if circuit is None else [_given_up(circuit, circuit.tokens.index(token))]
            case DialBack(port=port):
                return [self._dial_back(conn, id, port, now)]
            case Reject(reason=reason):
                self.leave(conn)
                return [Disconnect(conn, f"rejected by the client: {reason}")]
            case _:
                name = type(message).__name__
                return [
                    Send(conn, id, self._refuse(Reason.BAD_REQUEST, f"got {name}, which a client may not send now"))
                ]

    def leave(self, conn: int) -> None:
        """The connection is gone: its reservation goes with it, circuits stay."""
        connection = self.connections.pop(conn, None)
        if connection is not None:
            self.reservations.drop(conn)
            mine = self._of_peer[connection.peer]
            mine.remove(conn)
            if not mine:
                del self._of_peer[connection.peer]

    # --- circuits ----------------------------------------------------------------------------------------------

    def arrive(self, token: bytes, leg: int, now: float) -> Circuit | None:
        """A leg came. None: close it. Else the circuit, which is `paired` when this was the second."""
        circuit = self.circuits.arrive(token, leg, now)
        if circuit is None:
            self.refused["bad-token"] += 1
        elif circuit.paired:
            self.circuits_total += 1
        return circuit

    def hang_up(self, circuit: Circuit, leg: int) -> list[Action]:
        """A leg was closed by its owner while it waited for the other one."""
        self.circuits.close(circuit.id)
        return [_given_up(circuit, circuit.legs.index(leg))]

    def finish(self, circuit_id: int) -> None:
        """A circuit is over."""
        self.circuits.close(circuit_id)

    # --- time --------------------------------------------------------------------------------------------------

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        times = [t for t in (self.reservations.next_expiry, self.circuits.next_expiry) if t is not None]
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        """Let go of what is over."""
        self.reservations.expire(now)
        return [
            Failed(circuit, "the " + ("callee" if circuit.legs[0] is not None else "caller") + "'s leg did not arrive")
            for circuit in self.circuits.expire(now)
        ]

    def drain(self, deadline: float) -> list[Action]:
        """Grant nothing any more; ask everybody connected to move within `deadline` seconds. May be repeated."""
        self.draining = True
        notice = DrainNotice(deadline, spread(len(self.connections), len(self.circuits), deadline))
        return [Send(conn, 0, notice) for conn in self.connections]

    @property
    def load_permille(self) -> int:
        limits = self.limits
        held = load.permille([(len(self.reservations), limits.max_reservations)])
        carried = load.permille([(len(self.circuits), limits.max_circuits), (self.busy_share, 1.0)])
        return max(carried, min(held, HELD_AT_MOST))

    # --- answers -----------------------------------------------------------------------------------------------

    def _reserve(self, conn: int, now: float) -> Reserved | Refused:
        peer = self.connections[conn].peer
        if self.draining:
            return self._refuse(Reason.DRAINING, f"{self.node_name} is about to stop")
        if self.reservations.full and not self.reservations.has(peer):
            return self._full("reservations")
        ttl = self.reservations.grant(conn, peer, now).ttl
        return Reserved(ttl, self.voucher(peer, ttl))

    def _connect(self, conn: int, id: int, callee: str, traceparent: str, now: float) -> list[Action]:  # noqa: A002
        caller = self.connections[conn].peer
        refusal = self._objection(caller, callee)
        if refusal is not None:
            return [Send(conn, id, refusal)]
        callee_conn = self.reservations.active(callee)
        assert callee_conn is not None
        circuit = self.circuits.open(caller, callee, now)
        timeout = self.limits.pairing_timeout
        return [
            Opening(circuit, traceparent),
            Send(callee_conn, 0, Incoming(caller, circuit.tokens[1], timeout)),
            Send(conn, id, CircuitMessage(circuit.tokens[0], timeout)),
        ]

    def _dial_back(self, conn: int, id: int, port: int, now: float) -> Action:  # noqa: A002
        connection = self.connections[conn]
        if self.draining:
            return Send(conn, id, self._refuse(Reason.DRAINING, f"{self.node_name} is about to stop"))
        if not FIRST_PORT <= port <= 65535:
            text = f"got port {port} to dial back, expected {FIRST_PORT} to 65535"
            return Send(conn, id, self._refuse(Reason.BAD_REQUEST, text))
        if wait := self.dial_backs.wait(connection.peer, now):
            return Send(conn, id, self._refuse(Reason.LIMIT, f"{self.node_name} was asked too often to dial", wait))
        ip = connection.observed.rpartition(":")[0].strip("[]")
        return Dial(conn, id, ip, port)

    def _objection(self, caller: str, callee: str) -> Refused | None:
        limits = self.limits
        if self.draining:
            return self._refuse(Reason.DRAINING, f"{self.node_name} is about to stop")
        if not callee or callee == caller:
            return self._refuse(Reason.BAD_REQUEST, f"got a call from {caller} to {callee!r}, expected another node")
        if not self.reservations.has(callee):
            return self._refuse(Reason.NO_RESERVATION, f"{callee} holds no reservation at {self.node_name}")
        if len(self.circuits) >= limits.max_circuits:
            return self._full("circuits")
        for peer in (caller, callee):
            if self.circuits.of(peer) >= limits.max_circuits_per_peer:
                return self._full(f"circuits of {peer}")
        return None

    def _full(self, what: str) -> Refused:
        wait = RETRY_AFTER * (1 + self.random.random())
        return self._refuse(Reason.LIMIT, f"{self.node_name} has no room for more {what}", wait)

    def _refuse(self, reason: Reason, message: str, retry_after: float = 0.0) -> Refused:
        self.refused[reason.value] += 1
        useless = reason in (Reason.BAD_REQUEST, Reason.NO_RESERVATION)
        return Refused(reason, message, () if useless else self.alternatives, retry_after)

    def _reject(self, reason: str, message: str) -> Reject:
        self.refused[reason] += 1
        return Reject(reason, message)


def _given_up(circuit: Circuit, side: int) -> Failed:
    return Failed(circuit, f"the {('caller', 'callee')[side]} gave it up", given_up=True)
