"""PCP and NAT-PMP, which share a port and a way to ask: a datagram there, a datagram back."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from services.tunnel.core import natpmp, pcp
from services.tunnel.core.epoch import Epoch
from services.tunnel.core.natkind import Endpoint
from services.tunnel.portmap.gateway import Gateway
from services.tunnel.portmap.lease import LIFETIME, Lease, MappingFailed

TRIES = (0.25, 0.5, 1.0)
"""Seconds to wait for an answer each time (RFC 6886 section 3.1 goes on for a minute; a gateway in the same room has
answered by then, and most never will)."""

_Answer = TypeVar("_Answer")


class _Port:
    """The gateway's port 5351: a connected socket, so that nobody else's datagrams come in."""

    def __init__(self, gateway: Gateway) -> None:
        """OSError when there is no way there."""
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.bind((gateway.local, 0))
            self._sock.connect((gateway.ip, natpmp.PORT))
        except BaseException:
            self._sock.close()
            raise

    async def ask(self, request: bytes, read: Callable[[bytes], _Answer | None]) -> _Answer:
        """The first answer of which `read` makes something. MappingFailed without one."""
        loop = asyncio.get_running_loop()
        for wait in TRIES:
            try:
                await loop.sock_sendall(self._sock, request)
                async with asyncio.timeout(wait):
                    while True:
                        answer = read(await loop.sock_recv(self._sock, 1100))  # RFC 6887 section 7: the longest
                        if answer is not None:
                            return answer
            except TimeoutError:
                continue
            except OSError as error:  # e.g. port unreachable: nothing listens there
                raise MappingFailed(f"the gateway does not answer: {error.strerror}") from None
        raise MappingFailed("the gateway does not answer")

    def close(self) -> None:
        self._sock.close()


class Pcp:
    """RFC 6887."""

    name = "PCP"

    def __init__(self, gateway: Gateway, nonce: bytes) -> None:
        """`nonce`: the same for as long as the mapping shall be ours, over restarts, too."""
        self._local = gateway.local
        self._nonce = nonce
        self._port = _Port(gateway)
        self._epoch = Epoch()

    async def map(self, port: int, wish: Endpoint | None) -> Lease:
        answer = await self._map(port, wish, LIFETIME)
        self._epoch.fits(answer.epoch, time.monotonic())
        return Lease((answer.ip, answer.external_port), float(answer.lifetime))

    async def holds(self) -> bool:
        with contextlib.suppress(MappingFailed):
            answer = await self._ask(pcp.encode_announce(self._local), pcp.ANNOUNCE)
            return self._epoch.fits(answer.epoch, time.monotonic())
        return True

    async def unmap(self, port: int) -> None:
        await self._map(port, None, 0)

    async def _map(self, port: int, wish: Endpoint | None, lifetime: int) -> pcp.Answer:
        request = pcp.encode_map(self._local, self._nonce, port, wish or ("0.0.0.0", port), lifetime)
        answer = await self._ask(request, pcp.MAP)
        if answer.result != pcp.SUCCESS:
            raise MappingFailed(f"the gateway answers with PCP result {answer.result}")
        if answer.internal_port != port:
            raise MappingFailed(f"the gateway mapped port {answer.internal_port}, asked was {port}")
        return answer

    async def _ask(self, request: bytes, opcode: int) -> pcp.Answer:
        def read(data: bytes) -> pcp.Answer | int | None:
            answer = pcp.decode(data)
            if answer is None:
                return data[0] if data and data[0] != pcp.VERSION else None
            mine = answer.opcode == opcode and (opcode != pcp.MAP or answer.nonce == self._nonce)
            return answer if mine else None

        got: pcp.Answer | int = await self._port.ask(request, read)
        if isinstance(got, int):
            raise MappingFailed(f"the gateway speaks version {got}, not PCP")
        return got

    async def close(self) -> None:
        self._port.close()


class NatPmp:
    """RFC 6886."""

    name = "NAT-PMP"

    def __init__(self, gateway: Gateway) -> None:
        self._port = _Port(gateway)
        self._epoch = Epoch()

    async def map(self, port: int, wish: Endpoint | None) -> Lease:
        address = await self._ask(natpmp.encode_address(), natpmp.ADDRESS)
        answer = await self._ask(natpmp.encode_map(port, wish[1] if wish else port, LIFETIME), natpmp.MAP_TCP)
        if answer.internal_port != port:
            raise MappingFailed(f"the gateway mapped port {answer.internal_port}, asked was {port}")
        self._epoch.fits(answer.epoch, time.monotonic())
        return Lease((address.ip, answer.external_port), float(answer.lifetime))

    async def holds(self) -> bool:
        with contextlib.suppress(MappingFailed):
            answer = await self._ask(natpmp.encode_address(), natpmp.ADDRESS)
            return self._epoch.fits(answer.epoch, time.monotonic())
        return True

    async def unmap(self, port: int) -> None:
        await self._ask(natpmp.encode_map(port, 0, 0), natpmp.MAP_TCP)

    async def _ask(self, request: bytes, opcode: int) -> natpmp.Answer:
        def read(data: bytes) -> natpmp.Answer | None:
            answer = natpmp.decode(data)
            return answer if answer is not None and answer.opcode == opcode else None

        answer = await self._port.ask(request, read)
        if answer.result != natpmp.SUCCESS:
            raise MappingFailed(f"the gateway answers with NAT-PMP result {answer.result}")
        return answer

    async def close(self) -> None:
        self._port.close()
