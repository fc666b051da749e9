"""RelayService: protobuf ↔ domain, server side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from protos import relay_pb2 as pb
from protos import relay_pb2_grpc

from .peers import duration
from .status import Status

FULL_NAME = "causeway.relay.v1.RelayService"
DEFAULT_DRAIN = 10.0
"""Seconds."""
add_to_server = relay_pb2_grpc.add_RelayServiceServicer_to_server


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """`drain(deadline)` returns the circuits left."""

    def __init__(
        self,
        status: Callable[[], Status],
        drain: Callable[[float], Awaitable[int]],
        warnings: Callable[[], list[str]],
    ) -> None:
        self._status = status
        self._drain = drain
        self._warnings = warnings

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        status = self._status()
        limits = status.limits
        return pb.GetStatusResponse(
            warnings=self._warnings(),
            node_name=status.node_name,
            active=status.active,
            reason=status.reason,
            conditions=[
                pb.Condition(type=c.type, status=c.status, reason=c.reason, message=c.message)
                for c in status.conditions
            ],
            listen_port=status.listen_port,
            limits=pb.Limits(
                max_reservations=limits.max_reservations,
                max_circuits=limits.max_circuits,
                max_circuits_per_peer=limits.max_circuits_per_peer,
                max_bytes_per_second_per_peer=limits.max_bytes_per_second_per_peer,
                idle_timeout=duration(limits.idle_timeout),
                max_half_open=limits.max_half_open,
            ),
            reservations=[
                pb.ReservationStatus(peer=r.peer, observed=r.observed, expires_in=duration(r.expires_in))
                for r in status.reservations
            ],
            circuits=[
                pb.CircuitStatus(
                    caller=c.caller,
                    callee=c.callee,
                    age=duration(c.age),
                    bytes_from_caller=c.bytes_from_caller,
                    bytes_from_callee=c.bytes_from_callee,
                )
                for c in status.circuits
            ],
            draining=status.draining,
            load_permille=status.load_permille,
            bytes_total=status.bytes_total,
            circuits_total=status.circuits_total,
            refused_total=sum(status.refused.values()),
        )

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        deadline = request.deadline.ToTimedelta().total_seconds() if request.HasField("deadline") else DEFAULT_DRAIN
        return pb.DrainResponse(circuits_left=await self._drain(max(0.0, deadline)))
