"""Why a gRPC connection between nodes does not come up.

gRPC reports a failed handshake as UNAVAILABLE with a library's words at most. A second TLS handshake with the same port,
which says what it is for, shows us the other side's certificate, which we can judge, and the other side ours: it answers with
its judgement, which is in its log, too.
"""

import asyncio
import os

from services.runtime.address import join
from services.runtime.dial import DIAGNOSIS, IN_ORDER
from services.runtime.identity import Identity, Rejection
from services.runtime.tls import TlsEndpoint, TlsError

GOOD = "TLS is in order on both sides"
# Bytes that are read of the other side's judgement.
SAID_MAX = 4096

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
    endpoint = TlsEndpoint(identity, server=False, alpn=(DIAGNOSIS, b"h2"))
    ours: str | None = None
    said = b""
    try:
        while True:
            writer.write(endpoint.data_to_send())
            if endpoint.handshake_done and ours is None:
                ours = _judged(
                    endpoint, expected
                )  # and on: the other side shall see our certificate, and log its own words
            said += endpoint.read()
            if said and endpoint.protocol == b"h2":  # gRPC itself, which speaks only to whom it trusts
                return ours or GOOD
            data = b"" if endpoint.closed else await reader.read(65536)
            if not data or len(said) > SAID_MAX:
                break
            endpoint.receive(data)
    except ConnectionResetError:
        if ours is None:
            return "it reset the connection: it does not speak TLS"
    except TlsError as error:
        text = str(error)
        meant = next((words for alert, words in _ALERTS.items() if text.endswith(f"alert {alert}")), "")
        return f"it refused us: {meant}" if meant else f"TLS failed: {text}"
    if ours is None:
        return "it closed the connection: it does not speak TLS"
    if said == IN_ORDER:
        return ours or GOOD
    return ours or (f"it refused us: {said.decode(errors='replace')}" if said else _silently_refused(identity))


def _judged(endpoint: TlsEndpoint, expected: str) -> str:
    try:
        endpoint.judge(expected)
    except Rejection as rejection:
        return f"{rejection.reason}: {rejection.message}"
    return ""


def _silently_refused(identity: Identity) -> str:
    """It closed without a word after it saw our certificate."""
    try:
        identity.judge(identity.certificate_der)
    except Rejection as rejection:
        return f"it refused us, as our own certificate is not good: {rejection.reason}: {rejection.message}"
    return (
        "it closed the connection after it saw our certificate, which is good here; compare the clocks, the cluster, "
        "the PSK or CA and the revocation list of the two nodes"
    )
