"""Proofs that others reach this port: connections that say a token of ours.

Only a token that was just given out counts, and only once. Its connection is answered with PROOF_BYTES, and the time
until the other side has read them and hung up tells how fast this node can send.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from time import monotonic

from services.runtime.core.proof import TOKEN_LENGTH
from services.runtime.sockets import reset

PROOF_BYTES = 256 * 1024
"""Enough to leave TCP's slow start behind (5 round trips from 10 segments); an hour has room for many."""
TIMEOUT = 5.0
"""Seconds for the other side to take them."""
SETTLE = 1.0
"""Seconds for our own side of a proof, when the other side says that it is over."""
KEPT_ROUNDS = 3
"""Rounds whose tokens count."""
_FILLING = bytes(PROOF_BYTES)


class Proofs:
    """Of the last rounds: a slow dial may outlast its own."""

    def __init__(self) -> None:
        self._expected: OrderedDict[bytes, None] = OrderedDict()
        self._arrived: OrderedDict[bytes, asyncio.Task[int]] = OrderedDict()

    def issue(self, count: int) -> list[bytes]:
        """Tokens of a new round."""
        tokens = [secrets.token_bytes(TOKEN_LENGTH) for _ in range(count)]
        self._expected.update(dict.fromkeys(tokens))
        while len(self._expected) > KEPT_ROUNDS * count:
            self._expected.popitem(last=False)
        while len(self._arrived) > KEPT_ROUNDS * count:
            self._arrived.popitem(last=False)[1].cancel()
        return tokens

    def receive(self, token: bytes, sock: socket.socket) -> None:
        """A connection that said `token`; it is ours to close."""
        if token not in self._expected:
            reset(sock)
            return
        del self._expected[token]
        self._arrived[token] = asyncio.create_task(_measure(sock), name="proof")

    async def throughput(self, token: bytes) -> int | None:
        """Bytes per second, 0: not measured. None when nobody has said this token here."""
        measuring = self._arrived.get(token)
        if measuring is None:
            return None
        await asyncio.wait((measuring,), timeout=SETTLE)
        return measuring.result() if measuring.done() and not measuring.cancelled() else 0

    async def close(self) -> None:
        """End all."""
        tasks = list(self._arrived.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._arrived.clear()
        self._expected.clear()


async def _measure(sock: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    with sock:
        began = monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                await loop.sock_sendall(sock, _FILLING)
                if await loop.sock_recv(sock, 1):
                    return 0
        except (OSError, TimeoutError):
            return 0
        return round(PROOF_BYTES / max(monotonic() - began, 1e-6))
