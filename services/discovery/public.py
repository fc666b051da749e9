"""The public port: PeerService over mutual TLS, behind a gate that bounds connections."""

from __future__ import annotations

import asyncio
import os
import random
import urllib.parse
from pathlib import Path

import grpc
import grpc.aio

from services.runtime import serve

from .core.backoff import Backoff
from .core.vantage import Guard
from .directory import Directory
from .gate import Gate
from .inquiry import Desk
from .prober import Prober
from .servicer import PeerServicer, add_peer
from .sources.dht import Dht
from .wire import MAX_MESSAGE

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
    """Serves the discovery port; a port that is taken is a warning and tried again, never an exit."""

    def __init__(
        self, directory: Directory, dht: Dht, prober: Prober, guard: Guard, run_dir: Path, rng: random.Random
    ) -> None:
        self._directory = directory
        self._dht = dht
        self._peers = PeerServicer(directory, dht, prober, guard)
        self._socket = run_dir / "peers.sock"
        self._gate = Gate(self._socket, directory.counts, Desk(directory.identity, directory.log))
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
                if self._server is None:
                    self._server = await self._serve()
                where = await self._gate.open(settings.listen_address, settings.listen_port)
            except OSError as error:
                text = error.strerror or str(error)
                board.say("public", f"error: {text}")
                if board.warn("public", text):
                    self._directory.log.error("public port not served", extra={"error": text})
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
        await self._gate.close()
        self._socket.unlink(missing_ok=True)

    async def _serve(self) -> grpc.aio.Server:
        """The server behind the gate. Its socket is not a way around anything: callers need a certificate there too."""
        server = grpc.aio.server(
            options=list(OPTIONS), maximum_concurrent_rpcs=MAX_CALLS, interceptors=serve.interceptors()
        )
        add_peer(self._peers, server)
        self._socket.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server.add_secure_port(
                "unix:" + urllib.parse.quote(str(self._socket)), self._directory.identity.server_credentials()
            )
        except RuntimeError as error:
            raise OSError(f"{self._socket}: the socket cannot be made: {error}") from None
        finally:
            os.umask(mask)
        await server.start()
        return server
