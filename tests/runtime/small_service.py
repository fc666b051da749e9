"""A real service for tests of how services run: `python -m tests.runtime.small_service --config FILE`.

It is the relay's contract with a body that does what CW_TEST says.
"""

import asyncio
import os
import sys
from typing import Any

import grpc

from protos import relay_pb2 as pb
from protos import relay_pb2_grpc as rpc
from services.runtime import process, serve, telemetry

WHAT = os.environ.get("CW_TEST", "serve")


class Relay(rpc.RelayServiceServicer):
    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(node_name="edge-a", reason=str(os.getpid()))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        if request.deadline.seconds:
            await serve.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "TABLE_FULL", "no room: try later")
        with telemetry.span("work", count=3) as span:
            span.event("half-way", bytes=5)
        return pb.DrainResponse(circuits_left=7)


async def main(service: process.Service) -> None:
    if WHAT == "fail":
        raise OSError(98, "port 20007 is taken; set listenPort")
    if WHAT == "bug":
        raise KeyError("x")
    if WHAT == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(broken())
    server = serve.LocalServer(service)
    server.add(rpc.add_RelayServiceServicer_to_server, Relay(), "causeway.relay.v1.RelayService")
    async with server:
        service.log.info("ready", extra={"file": str(server.path), "count": 2})
        await service.stopping.wait()
        if WHAT == "stubborn":
            await asyncio.Event().wait()


async def broken() -> None:
    raise ValueError("the core of the matter")


if __name__ == "__main__":
    sys.exit(process.command(os.environ.get("CW_NAME", "relay"), main))
