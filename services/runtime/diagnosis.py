"""Why a gRPC connection between nodes does not come up.

gRPC reports a failed handshake as UNAVAILABLE with a library's words at most. A second, plain TLS handshake
to the same port shows us the other side's certificate, which we can judge, and its alert about ours.
"""

import asyncio
import os

from services.runtime.address import join
from services.runtime.identity import Identity, Rejection
from services.runtime.tls import TlsEndpoint, TlsError

# What the alerts of RFC 8446 (6.2) mean between nodes of a cluster. The names are OpenSSL's.
_ALERTS = {
    "unknown ca": "it does not trust the CA of our certificate: the PSK, CA or cluster differs",
    "decrypt error": "the signature on our certificate is not by its CA: the PSK, CA or cluster differs",
    "bad certificate": "our certificate is not acceptable to it",
    "certificate unknown": "our certificate is not acceptable to it: its clock or CA differs",
    "certificate expired": "our certificate is expired by its clock: one of the two clocks is wrong",
    "certificate revoked": "our certificate was revoked",
    "certificate required": "it requires a certificate",
}


async def diagnose(identity: Identity, host: str, port: int, expected: str = "", *, timeout: float = 5) -> str:
    """One line that says why connecting to the gRPC port of a node fails, or that its TLS is in order.

    expected: name the node should have. timeout: in all, seconds. Never raises but for cancellation.
    """
    place = join(host, port)
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return f"{place}: {await _ask(identity, reader, writer, expected)}"
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"{place}: no answer within {timeout:g} s"
    except OSError as error:
        # asyncio puts its own words into strerror.
        return f"{place}: {os.strerror(error.errno) if error.errno and error.errno > 0 else error}"


async def _ask(identity: Identity, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, expected: str) -> str:
    endpoint = TlsEndpoint(identity, server=False, alpn=b"h2")
    judged = False
    try:
        while True:
            writer.write(endpoint.data_to_send())
            if endpoint.handshake_done and not judged:
                judged = True
                endpoint.judge(expected)
            if endpoint.read():
                return "TLS is in order on both sides"
            data = b"" if endpoint.closed else await reader.read(65536)
            if not data:
                return _silently_refused(identity) if judged else "it closed the connection: it does not speak TLS"
            endpoint.receive(data)
    except Rejection as rejection:
        return f"{rejection.reason}: {rejection.message}"
    except ConnectionResetError:
        return _silently_refused(identity) if judged else "it reset the connection: it does not speak TLS"
    except TlsError as error:
        text = str(error)
        meant = next((words for alert, words in _ALERTS.items() if text.endswith(f"alert {alert}")), "")
        return f"it refused us: {meant}" if meant else f"TLS failed: {text}"


def _silently_refused(identity: Identity) -> str:
    """gRPC's server closes without an alert when it does not like our certificate."""
    try:
        identity.judge(identity.certificate_der)
    except Rejection as rejection:
        return f"it refused us, as our own certificate is not good: {rejection.reason}: {rejection.message}"
    return (
        "it closed the connection after it saw our certificate, which is good here; compare the clocks, the cluster, "
        "the PSK or CA and the revocation list of the two nodes"
    )
