"""What a client is told of the outcome, where the protocol by which it came has words for it."""

import socket
from typing import Protocol


class Manners(Protocol):
    """Of one client, over TCP. It is told one of the two."""

    @property
    def welcome(self) -> bytes:
        """Sent when a backend has accepted, before any byte of it (`Outbound.welcome` in protos/tunnel.proto)."""

    def refuse(self, client: socket.socket, reason: str, why: str) -> None:
        """No backend has accepted: `reason` is one of `errors`, `why` one line. Owns `client` from now on."""
