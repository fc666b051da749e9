"""What the relay tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from .core.limits import Limits
from .core.role import Condition


@dataclass(frozen=True, slots=True)
class ReservationStatus:
    """`expires_in` in seconds."""

    peer: str
    observed: str
    expires_in: float


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """`age` in seconds, from the call on."""

    caller: str
    callee: str
    age: float
    bytes_from_caller: int
    bytes_from_callee: int


@dataclass(frozen=True, slots=True)
class Status:
    """The whole at one moment."""

    node_name: str
    active: bool
    reason: str
    conditions: list[Condition]
    listen_port: int
    limits: Limits
    reservations: list[ReservationStatus]
    circuits: list[CircuitStatus]
    draining: bool
    load_permille: int
    bytes_total: int
    circuits_total: int
    refused: dict[str, int]
    half_open: int
    connections: int
    splices_total: int
