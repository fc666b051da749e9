"""A short control connection to a relay, to ask what it sees of this node. Reservations are `relay_client`'s."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterable

from services.runtime.identity import Identity, Rejection
from services.runtime.tls import FramedTls, TlsError
from services.tunnel import dialling, peers
from services.tunnel.config import Settings
from services.tunnel.core import natkind
from services.tunnel.core.natkind import Endpoint, Sighting
from services.tunnel.errors import LinkFailed, RelayRefused
from services.tunnel.peers import Denied, DialledBack, Load, RejectedBy, Welcomed

FAILURES = (LinkFailed, TlsError, EOFError, OSError, TimeoutError, ValueError)
"""How it may end."""
ROUND_TRIPS = 3
"""Heartbeats whose quickest counts."""
ANSWER_TIMEOUT = 3.0
"""Seconds for an answer; a dial back takes the relay up to 2.5 s."""


async def dial(addresses: Iterable[Endpoint], source: Endpoint, *, exact: bool) -> socket.socket:
    """A connection to the first of a relay's addresses that answers; see dialling.connect. LinkFailed."""
    failure = LinkFailed("no address of this relay is known")
    for ip, port in addresses:
        try:
            return await dialling.connect(ip, port, source=source, exact=exact)
        except LinkFailed as error:
            failure = error
    raise failure


async def greet(tls: FramedTls, identity: Identity, settings: Settings, relay: str) -> Welcomed:
    """Both sides of a fresh control connection say who they are. LinkFailed when one does not like the other."""
    try:
        tls.judge(relay)
    except Rejection as rejection:
        await tls.send(peers.encode_reject(rejection.reason, str(rejection)))
        raise LinkFailed(f"{rejection.reason}: {rejection}") from rejection
    await tls.send(peers.encode_hello(settings.cluster, settings.node_name, relay))
    _, welcome = peers.decode_relay(await tls.receive())
    if isinstance(welcome, RejectedBy):
        raise LinkFailed(f"refused by the relay: {welcome.reason}: {welcome.message}")
    if isinstance(welcome, Denied):
        raise refusal_of(relay, welcome)
    if not isinstance(welcome, Welcomed):
        raise LinkFailed("the relay did not say welcome")
    return welcome


def refusal_of(relay: str, answer: Denied) -> RelayRefused:
    """A relay's no, as an exception."""
    text = f"relay {relay}: {answer.message or answer.reason}"
    return RelayRefused(answer.reason, text, answer.retry_after, answer.alternatives)


class RelayContact:
    """An open one; `close` it."""

    def __init__(self, relay: str, address: Endpoint, local: Endpoint, observed: Endpoint, tls: FramedTls) -> None:
        self.relay = relay
        self.address = address
        self.sighting = Sighting(relay, address[0], local, observed)
        self.load = 0
        """Permille, as it last said."""
        self._tls = tls
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[peers.RelayMessage]] = {}
        self._reading = asyncio.create_task(self._read(), name=f"contact {relay}")

    @classmethod
    async def open(
        cls, identity: Identity, settings: Settings, relay: str, address: Endpoint, port: int, timeout: float
    ) -> "RelayContact":
        """`port`: local port to come from, 0: any. One of FAILURES after at most `timeout` seconds."""
        async with asyncio.timeout(timeout):
            sock = await dialling.connect(*address, source=(settings.listen_address, port), timeout=timeout, exact=True)
            local = natkind.parse(dialling.name_of(sock.getsockname()))
            tls = await FramedTls.start(sock, identity, server=False, timeout=timeout)
            try:
                welcome = await greet(tls, identity, settings, relay)
                return cls(relay, address, local, natkind.parse(welcome.observed), tls)
            except BaseException:
                tls.abort()
                raise

    async def round_trip(self) -> float:
        """Seconds, the least of a few."""
        return min([await self._beat() for _ in range(ROUND_TRIPS)])

    async def _beat(self) -> float:
        began = time.monotonic()
        answer = await self._ask(peers.encode_heartbeat)
        if isinstance(answer, Load):
            self.load = answer.permille
        return time.monotonic() - began

    async def dial_back(self, port: int) -> DialledBack:
        """The relay tries to connect to our own IP as it sees it. RelayRefused when it does not want to."""
        answer = await self._ask(lambda number: peers.encode_dial_back(number, port))
        if isinstance(answer, Denied):
            raise RelayRefused(answer.reason, answer.message or answer.reason)
        if not isinstance(answer, DialledBack):
            raise LinkFailed("the relay does not know how to dial back")
        return answer

    async def _ask(self, encode: Callable[[int], bytes]) -> peers.RelayMessage:
        if self._reading.done():
            raise LinkFailed("the relay hung up")
        number = next(self._numbers)
        waiting: asyncio.Future[peers.RelayMessage] = asyncio.get_running_loop().create_future()
        self._answers[number] = waiting
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._tls.send(encode(number))
                return await waiting
        except TimeoutError:
            raise LinkFailed(f"no answer within {ANSWER_TIMEOUT:g} s") from None
        finally:
            del self._answers[number]

    async def _read(self) -> None:
        try:
            while True:
                number, message = peers.decode_relay(await self._tls.receive())
                waiting = self._answers.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except FAILURES:
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(LinkFailed("the relay hung up"))

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(0.5):
                await self._tls.close()
        self._tls.abort()
