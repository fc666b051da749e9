"""ProxyService: what the proxy shows of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protos import proxy_pb2, proxy_pb2_grpc
from services.proxy.listeners import Row
from services.runtime.serve import LocalServer

FULL_NAME = "causeway.proxy.v1.ProxyService"


@dataclass(slots=True)
class Status:
    """The answer of GetStatus, in our shapes."""

    node_name: str
    rows: list[Row]
    accepted: int
    dialled: int
    refused: dict[str, int]  # inbound streams, by reason
    warnings: list[str]
    zone: str = ""


class ProxyServicer(proxy_pb2_grpc.ProxyServiceServicer):
    """Only converts."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    async def GetStatus(self, request: proxy_pb2.GetStatusRequest, context: Any) -> proxy_pb2.GetStatusResponse:
        status = self._status()
        return proxy_pb2.GetStatusResponse(
            node_name=status.node_name,
            listeners=[
                proxy_pb2.Listener(
                    address=str(row.spot),
                    network=row.spot.network,
                    service=row.label,
                    endpoints=row.endpoints,
                    error=row.error,
                    balancing=row.balancing,
                    ejected=row.ejected,
                    intercepted=row.intercepted,
                    preferred=row.preferred,
                )
                for row in status.rows
            ],
            accepted_total=status.accepted,
            dialled_total=status.dialled,
            refused=status.refused,
            warnings=status.warnings,
            zone=status.zone,
        )


def register(server: LocalServer, status: Callable[[], Status]) -> None:
    """Adds ProxyService to the local server."""
    server.add(proxy_pb2_grpc.add_ProxyServiceServicer_to_server, ProxyServicer(status), FULL_NAME)
