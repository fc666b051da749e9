"""TLS 1.3 in memory (`TlsEndpoint`), and messages over it on a socket (`FramedTls`); the peer is judged by us.

OpenSSL's own certificate checks are answered with yes: they would end the handshake with an alert of a few
bits, before either side could say what is wrong and what to do. Instead the owner calls `judge()` when the
handshake is done, and **uses nothing that was received before that passed**. Possession of the key is still
proven by the handshake itself (CertificateVerify, RFC 8446, 4.4.3); what is left to us is whether the
certificate is one of ours, which `Identity.judge` decides for every kind of connection alike.
"""

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from services.runtime import sockets
from services.runtime.identity import Identity

_T = TypeVar("_T")

# Largest plaintext of one TLS record (RFC 8446, 5.1).
_RECORD = 16384
# Content type, version and length before every record, and the most that encryption adds (RFC 8446, 5.2).
_RECORD_HEADER = 5
_RECORD_MAX = _RECORD + 256

# Limit of relay.proto and of the session handshake. Bytes.
MESSAGE_MAX = 65536
_HEADER = 4
_CHUNK = 65536
# How long `close` waits for the other side to read what was said last. Seconds.
_LINGER = 1.0


class TlsError(Exception):
    """The handshake failed, or what came is no TLS; one line. The connection is of no further use, except
    that `data_to_send` may still hold an alert for the other side."""


class TlsEndpoint:
    """One end of a TLS 1.3 connection, without a socket.

    The owner feeds ciphertext to `receive` and sends what `data_to_send` returns, after every other call too.
    """

    def __init__(self, identity: Identity, *, server: bool, alpn: Sequence[bytes] = ()) -> None:
        self._identity = identity
        self._connection = SSL.Connection(_context(identity, server=server), None)
        if alpn:
            self._connection.set_alpn_protos(list(alpn))
        self._plain = bytearray()
        self.handshake_done = False
        self.closed = False
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            self._advance()

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Takes ciphertext. Raises TlsError when it is none."""
        try:
            # OpenSSL's memory takes all that fits an int; its own limits bound a handshake, ours a record.
            self._connection.bio_write(bytes(data))
        except SSL.Error as error:
            raise TlsError(_said(error)) from None
        self._advance()

    def data_to_send(self) -> bytes:
        """Ciphertext for the other side; empty when there is none."""
        parts: list[bytes] = []
        while True:
            try:
                parts.append(self._connection.bio_read(1 << 16))
            except SSL.WantReadError:
                return b"".join(parts)

    def judge(self, expected_node: str = "") -> str:
        """The peer's node name. Raises Rejection, or TlsError while the handshake is not done."""
        if not self.handshake_done:
            raise TlsError("the TLS handshake is not done, so there is nobody to judge")
        return self._identity.judge(self.peer_certificate(), expected_node)

    def peer_certificate(self) -> bytes | None:
        """DER of what the peer presented; None before that, or when it presented nothing."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        return certificate.public_bytes(serialization.Encoding.DER) if certificate else None

    @property
    def protocol(self) -> bytes:
        """The application protocol that the other side chose; empty when it chose none."""
        return self._connection.get_alpn_proto_negotiated()

    def write(self, plain: bytes | bytearray | memoryview) -> None:
        """Queues plaintext for the other side. TlsError before the handshake is done or after `close`."""
        if not self.handshake_done:
            raise TlsError("the TLS handshake is not done, so nothing can be sent")
        view = memoryview(plain)
        try:
            while view:  # a memory BIO always takes all it is given; one call takes at most an int
                view = view[self._connection.send(bytes(view[: 1 << 20])) :]
        except SSL.Error as error:
            raise TlsError(_said(error)) from None

    def read(self) -> bytes:
        """All that was decrypted and not read yet."""
        plain = bytes(self._plain)
        self._plain.clear()
        return plain

    def export(self, label: bytes, length: int) -> bytes:
        """Key material that both ends and nobody else can compute (RFC 8446, 7.5)."""
        if not self.handshake_done:
            raise TlsError("the TLS handshake is not done, so there are no keys")
        return self._connection.export_keying_material(label, length)

    def close(self) -> None:
        """Queues close_notify; nothing can be written afterwards."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            pass  # before the handshake is done there is nothing to close

    def _advance(self) -> None:
        try:
            if not self.handshake_done:
                self._connection.do_handshake()
                self.handshake_done = True
            while not self.closed:
                self._plain += self._connection.recv(_RECORD)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            raise TlsError(_said(error)) from None


class FramedTls:
    """Messages, each preceded by its length as 4 bytes big endian, on a socket it owns. Start it with `start`.

    One task receives at a time; any number may send. Ciphertext is decrypted record by record and no further
    than asked for, so that both sides can leave TLS at an agreed message (`detach`).
    """

    def __init__(self, sock: socket.socket, identity: Identity, *, server: bool, head: bytes = b"") -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._raw = bytearray(head)
        self._plain = bytearray()
        self._sending = asyncio.Lock()
        self._broken = ""
        self._aborted = False
        self._waiting = 0
        self.endpoint = TlsEndpoint(identity, server=server)

    @classmethod
    async def start(
        cls, sock: socket.socket, identity: Identity, *, server: bool, head: bytes = b"", timeout: float = 10
    ) -> "FramedTls":
        """Shakes hands within `timeout` seconds. `head`: bytes already read from the socket.

        Raises TlsError, EOFError, OSError or TimeoutError; the socket is then closed, after an alert that
        tells the other side. Judge the peer before anything else.
        """
        sock.setblocking(False)
        self = cls(sock, identity, server=server, head=head)
        try:
            async with asyncio.timeout(timeout):
                await self._flush()
                while not self.endpoint.handshake_done:
                    await self._feed()
            return self
        except TimeoutError:
            pass  # raised below: chained to this one it would be a cycle of task and traceback, kept until the next gc
        except BaseException as error:
            if isinstance(error, TlsError):
                await self._farewell()
            self.abort()
            raise
        self.abort()
        raise TimeoutError(f"the TLS handshake was not done within {timeout:g} s")

    def judge(self, expected_node: str = "") -> str:
        """The peer's node name. Raises Rejection."""
        return self.endpoint.judge(expected_node)

    def export(self, label: bytes, length: int) -> bytes:
        """See TlsEndpoint.export."""
        return self.endpoint.export(label, length)

    async def send(self, message: bytes) -> None:
        """Sends one message. ValueError when it is too long; OSError or TlsError when the connection is gone.

        When cancelled in the middle the connection is aborted: half a message cannot be taken back.
        """
        if len(message) > MESSAGE_MAX:
            raise ValueError(f"a message of {len(message)} bytes; at most {MESSAGE_MAX} can be sent")
        self._check()
        self.endpoint.write(len(message).to_bytes(_HEADER) + message)
        await self._flush()

    async def receive(self) -> bytes:
        """The next message. EOFError at the end; TlsError, OSError when the connection breaks.

        Safe to cancel: nothing is lost.
        """
        while True:
            if len(self._plain) >= _HEADER:
                length = int.from_bytes(self._plain[:_HEADER])
                if length > MESSAGE_MAX:
                    self.abort()
                    raise TlsError(f"a message of {length} bytes was announced; at most {MESSAGE_MAX} are accepted")
                if len(self._plain) >= _HEADER + length:
                    message = bytes(self._plain[_HEADER : _HEADER + length])
                    del self._plain[: _HEADER + length]
                    return message
            self._plain += self.endpoint.read()
            if len(self._plain) >= _HEADER:
                announced = int.from_bytes(self._plain[:_HEADER])
                if announced > MESSAGE_MAX or len(self._plain) >= _HEADER + announced:
                    continue
            if self.endpoint.closed:
                raise EOFError("the other side closed the connection")
            self._check()
            await self._feed()

    def detach(self) -> bytes:
        """Ends TLS without a word, for both sides agreed to; the caller owns the socket again.

        Returns the bytes that were read after the last message. The last TLS message must go from server to
        client: OpenSSL's server sends session tickets after the handshake, which the client skips by reading
        something that comes later. TlsError when the peer sent more TLS messages than agreed.
        """
        self._plain += self.endpoint.read()
        if self._plain:
            raise TlsError("the other side sent more than was agreed before leaving TLS")
        self._broken = "TLS has ended on this connection"
        return bytes(self._raw)

    async def close(self) -> None:
        """Says goodbye and waits up to a second for the other side to read it; never raises.

        Closing with unread input would send a reset, which may destroy what we said last on its way.
        """
        if not self._broken:
            self.endpoint.close()
            await self._farewell()
        self.abort()

    def abort(self, *, reset: bool = False) -> None:
        """Closes the socket now. `reset`: the kernel shall not hold on to the connection, with its addresses and ports,
        until the other side has read what was said and has answered."""
        if reset:
            sockets.reset_on_close(self.socket)
        self._broken = self._broken or "the connection was closed on this side"
        self._aborted = True
        self._shutdown(socket.SHUT_RDWR)
        # A task that waits for the socket is woken by the shutdown, but would sleep for ever on a closed one.
        if not self._waiting:
            self.socket.close()

    async def _feed(self) -> None:
        """Decrypts one record, reading from the socket what is missing of it."""
        while len(self._raw) < _RECORD_HEADER or len(self._raw) < (need := self._record_length()):
            chunk = await self._wait(self._loop.sock_recv(self.socket, _CHUNK))
            if not chunk:
                raise EOFError("the other side closed the connection")
            self._raw += chunk
        record = bytes(self._raw[:need])
        del self._raw[:need]
        self.endpoint.receive(record)
        await self._flush()

    def _record_length(self) -> int:
        length = int.from_bytes(self._raw[3:_RECORD_HEADER])
        # Change cipher spec 20, alert 21, handshake 22, application data 23 (RFC 8446, 5.1).
        if not 20 <= self._raw[0] <= 23 or self._raw[1] != 3 or length > _RECORD_MAX:
            raise TlsError(f"what came is not TLS (it begins with {bytes(self._raw[:_RECORD_HEADER]).hex()})")
        return _RECORD_HEADER + length

    async def _flush(self) -> None:
        data = self.endpoint.data_to_send()
        if not data:
            return
        try:
            async with self._sending:
                await self._wait(self._loop.sock_sendall(self.socket, data))
        except BaseException:
            self._broken = self._broken or "sending failed or was cancelled half-way"
            raise

    async def _farewell(self) -> None:
        try:
            async with asyncio.timeout(_LINGER):
                await self._flush()
                self._shutdown(socket.SHUT_WR)
                while await self._wait(self._loop.sock_recv(self.socket, _CHUNK)):
                    pass
        except (OSError, TimeoutError, RuntimeError):
            pass

    async def _wait(self, operation: Coroutine[Any, Any, _T]) -> _T:
        self._waiting += 1
        try:
            return await operation
        finally:
            self._waiting -= 1
            if self._aborted and not self._waiting:
                self.socket.close()

    def _shutdown(self, how: int) -> None:
        try:
            self.socket.shutdown(how)
        except OSError:
            pass

    def _check(self) -> None:
        if self._broken:
            raise TlsError(self._broken)


_contexts: WeakKeyDictionary[Identity, dict[bool, tuple[int, SSL.Context]]] = WeakKeyDictionary()


def _context(identity: Identity, *, server: bool) -> SSL.Context:
    """One context for each role and generation of the credentials: making one costs as much as a handshake."""
    cached = _contexts.setdefault(identity, {})
    generation, context = cached.get(server, (0, None))
    if context is None or generation != identity.generation:
        generation, current = identity.generation, identity.credentials
        context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        # Every handshake is a full one, so that every peer is judged by its present certificate.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        # In this order OpenSSL refuses a key that does not match; in the other it drops it without a word.
        context.use_certificate(current.certificate)
        context.use_privatekey(current.key)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accept)
        cached[server] = generation, context
    return context


def _accept(*_: object) -> bool:
    return True


# What OpenSSL calls the usual failures, in words that help.
_WORDS = {
    "wrong version number": "what came is not TLS",
    "http request": "what came is plain HTTP, not TLS",
    "unsupported protocol": "the other side does not speak TLS 1.3",
    "no protocols available": "the other side does not speak TLS 1.3",
    "tlsv1 alert protocol version": "the other side does not speak TLS 1.3",
    "peer did not return a certificate": "the other side presented no certificate, which is required",
    "tlsv13 alert certificate required": "the other side requires a certificate",
    "unexpected eof while reading": "the other side closed the connection without saying so",
}


def _said(error: SSL.Error) -> str:
    reasons = [entry[-1] for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    text = "; ".join(_WORDS.get(reason, reason) for reason in reasons if reason)
    return text or "TLS failed without a reason"
