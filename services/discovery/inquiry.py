"""Why a node is refused, for its own operator and for ours.

TLS of the public port ends in gRPC, which closes the connection with whom it does not trust, and tells neither side which
reason it is. So whoever was refused comes once more and asks (`services/runtime/diagnosis.py`): that connection ends here, where
its certificate can be judged as on any other port.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from time import monotonic
from typing import TYPE_CHECKING

from services.runtime.core.seldom import Seldom
from services.runtime.dial import IN_ORDER
from services.runtime.identity import Identity, Rejection

if TYPE_CHECKING:
    from services.runtime.tls import TlsEndpoint

TELL_EVERY, TELL_MOST = 600.0, 256  # s between two lines in the log on one visitor and reason; lines in that time


class Desk:
    """Judges those who ask."""

    def __init__(self, identity: Identity, log: Logger) -> None:
        self._identity = identity
        self._log = log
        self._seldom = Seldom(TELL_EVERY, TELL_MOST)

    def open(self, ip: str, send: Callable[[bytes], None]) -> Inquiry:
        """One who asks. `send`: to them."""
        # pyOpenSSL is not needed as long as everybody is who they should be.
        from services.runtime.tls import TlsEndpoint

        return Inquiry(self, TlsEndpoint(self._identity, server=True), ip, send)

    def judge(self, endpoint: TlsEndpoint, ip: str) -> bytes:
        """What they are told."""
        try:
            endpoint.judge()
        except Rejection as rejection:
            self.tell(ip, rejection.reason, rejection.message)
            return f"{rejection.reason}: {rejection.message}".encode()
        return IN_ORDER

    def tell(self, ip: str, reason: str, message: str) -> None:
        """Our operator."""
        if self._seldom.first((ip, reason), monotonic()):
            self._log.warning("visitor refused", extra={"address": ip, "reason": reason, "error": message})


class Inquiry:
    """One connection: a handshake, and the answer."""

    def __init__(self, desk: Desk, endpoint: TlsEndpoint, ip: str, send: Callable[[bytes], None]) -> None:
        self._desk = desk
        self._endpoint = endpoint
        self._ip = ip
        self._send = send

    def receive(self, data: bytes | bytearray) -> bool:
        """Bytes from the one who asks. True when all has been said."""
        from services.runtime.tls import TlsError

        endpoint = self._endpoint
        try:
            endpoint.receive(data)
            if endpoint.handshake_done:
                endpoint.write(self._desk.judge(endpoint, self._ip))
                endpoint.close()
            over = endpoint.handshake_done
        except TlsError as error:
            self._desk.tell(self._ip, "tls", str(error))
            over = True
        self._send(endpoint.data_to_send())
        return over
