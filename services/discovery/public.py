"""The public port: PeerService over mutual TLS, bounded against crowds and floods."""

from __future__ import annotations

import asyncio
import random

import grpc
import grpc.aio

from services.runtime import address, serve

from .core.backoff import Backoff
from .directory import Directory
from .peers import MAX_MESSAGE
from .servicer import PeerServicer, add_peer

# Calls served at once; one takes about a millisecond.
MAX_CALLS = 256
OPTIONS = (
    *(option for option in serve.PUBLIC_OPTIONS if option[0] != "grpc.max_receive_message_length"),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A connection that does not shake hands is closed after this; gRPC's default is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # No reader of ours sends more pings than one in 10 s.
    ("grpc.http2.max_ping_strikes", 2),
)


class PublicServer:
    """Listens on the discovery port; a port that is taken is a warning and tried again, never an exit."""

    def __init__(self, directory: Directory, rng: random.Random) -> None:
        self._directory = directory
        self._backoff = Backoff(1.0, 30.0, rng)
        self._server: grpc.aio.Server | None = None

    async def run(self) -> None:
        """Returns when the port is served."""
        settings, board = self._directory.settings, self._directory.board
        if not settings.listen_port:
            board.say("public", "off: listenPort is 0")
            return
        while True:
            try:
                where = await self._listen(settings.listen_address, settings.listen_port)
            except OSError as error:
                board.say("public", f"error: {error}")
                if board.warn("public", str(error)):
                    self._directory.log.error("public port not served", extra={"error": str(error)})
                await asyncio.sleep(self._backoff.next())
                continue
            board.clear("public")
            board.say("public", f"listening on {where}")
            self._directory.log.info("public port served", extra={"address": where})
            return

    async def close(self) -> None:
        """Stop; open calls get a moment."""
        if self._server is not None:
            await self._server.stop(0.5)

    async def _listen(self, listen_address: str, port: int) -> str:
        hosts = [listen_address] if listen_address else ["::", "0.0.0.0"]
        for host in hosts:
            server = grpc.aio.server(
                options=list(OPTIONS), maximum_concurrent_rpcs=MAX_CALLS, interceptors=serve.interceptors()
            )
            add_peer(PeerServicer(self._directory), server)
            where = address.join(host, port)
            try:
                server.add_secure_port(where, self._directory.identity.server_credentials())
            except RuntimeError:
                continue
            await server.start()
            self._server = server
            return where
        raise OSError(
            f"port {port} cannot be listened on at {listen_address or 'any address'}: another process has it, or the "
            "address is not on this host; change modules.edgeDiscovery.listenPort or listenAddress"
        )
