"""Asking the tunnel of this machine's node: the connection, and why there is no answer, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from causeway import place
from causeway.errors import CommandError

if TYPE_CHECKING:
    import grpc.aio

    from protos.tunnel_pb2_grpc import TunnelServiceAsyncStub


@contextlib.asynccontextmanager
async def tunnel(run_dir: Path) -> AsyncIterator[TunnelServiceAsyncStub]:
    """The tunnel's calls, for the length of a block. Raises CommandError where no socket of it is."""
    path = run_dir / "tunnel.sock"
    if not path.exists():
        raise CommandError(place.not_running("tunnel", path))

    from protos import tunnel_pb2_grpc
    from services.runtime.dial import local_channel

    async with local_channel(run_dir, "tunnel") as channel:
        yield tunnel_pb2_grpc.TunnelServiceStub(channel)


def why(error: grpc.aio.AioRpcError, run_dir: Path, late: str) -> str:
    """One line for a call that failed. late: the line for an answer that did not come in time."""
    import grpc

    from services.runtime.dial import reason

    if error.code() == grpc.StatusCode.UNAVAILABLE and not reason(error):  # gRPC's own, not the tunnel's NO_PATH
        return place.not_running("tunnel", run_dir / "tunnel.sock")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return late
    return error.details() or f"the tunnel answered {error.code().name}"
