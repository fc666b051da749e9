"""Which relays this node deals with, and what it tells others about them."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from services.runtime.identity import Identity
from services.tunnel.config import RELAYS_ASKED, RELAYS_HELD, Settings
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.peers import PeerInfo, ReservationReport
from services.tunnel.relay_client import RelayClient

log = logging.getLogger("causeway.tunnel")


class RelayPool:
    """The relays this node deals with: up to RELAYS_HELD with a reservation, others for single circuits."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        lifetimes: Lifetimes,
        on_circuit: Callable[[socket.socket, str], Awaitable[None]],
        on_change: Callable[[], None],
        on_drained: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.lifetimes = lifetimes
        self.on_circuit = on_circuit
        self._on_change = on_change
        self.drained = on_drained
        self.clients: dict[str, RelayClient] = {}
        self._known: dict[str, PeerInfo] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def control_source(self) -> tuple[str, int]:
        """Control connections come from the listen port, so that relays see its mapping."""
        return self.settings.listen_address, self.settings.listen_port

    def relay_info(self, name: str) -> PeerInfo | None:
        return self._known.get(name)

    def known(self) -> list[str]:
        """Relays that may serve circuits, those named in relayNodes first."""
        usable = [info for info in self._known.values() if not info.relay_draining]
        return [info.name for info in sorted(usable, key=lambda info: (info.relay_rank or 1 << 30, info.name))]

    def update(self, info: PeerInfo) -> None:
        """A peer appeared or changed."""
        if info.name == self.settings.node_name:
            return
        if info.relay_addresses:
            news = self._known.get(info.name)
            self._known[info.name] = info
            client = self.clients.get(info.name)
            if client is not None and news is not None and news.relay_addresses != info.relay_addresses:
                client.retry_now()
        else:
            self._known.pop(info.name, None)
        self._choose()

    def remove(self, name: str) -> None:
        """A peer is gone. A control connection that works is kept: the relay knows better."""
        self._known.pop(name, None)
        client = self.clients.get(name)
        if client is not None and client.reserved_until is None:
            self.forget(client)
        self._choose()

    def changed(self) -> None:
        """A relay granted a reservation, or was lost, or does not answer."""
        self._choose()
        self._on_change()

    def _choose(self) -> None:
        """Holds RELAYS_HELD that work: for each that does not answer another one is asked, until it is back."""
        names = self.known()
        held = [client for client in self.clients.values() if client.hold]
        working = [client for client in held if not client.failing]
        for name in names:
            if len(working) >= RELAYS_HELD or len(held) >= RELAYS_ASKED:
                break
            client = self.clients.get(name)
            if client is None:
                client = self.clients[name] = RelayClient(self, name, hold=True)
            elif client.hold:
                continue
            client.hold = True
            held.append(client)
            if not client.failing:
                working.append(client)
        reserved = sorted((client.name for client in held if client.reserved and client.name in names), key=names.index)
        for name in reserved[RELAYS_HELD:]:
            self.clients[name].release()

    def get(self, name: str) -> RelayClient | None:
        """The client of a relay, made on demand; None when no address of it is known."""
        client = self.clients.get(name)
        if client is None and name in self._known and len(self.clients) < 64:
            client = self.clients[name] = RelayClient(self, name, hold=False)
        return client

    def forget(self, client: RelayClient) -> None:
        """Closes a client in the background."""
        if self.clients.get(client.name) is client:
            del self.clients[client.name]
            task = asyncio.create_task(client.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def take_over(self, client: RelayClient, successor: RelayClient) -> bool:
        """Another connection to the same relay serves from now on. False when that is not wanted any more."""
        if self.clients.get(client.name) is not client:
            return False
        successor.used_at = client.used_at
        successor.hold = client.hold
        self.clients[client.name] = successor
        self.changed()
        return True

    def reservations(self) -> list[ReservationReport]:
        """For this node's record, the nearest first."""
        reports = [
            ReservationReport(client.name, client.rtt.smoothed or 0.0)
            for client in self.clients.values()
            if client.reserved
        ]
        return sorted(reports, key=lambda report: report.rtt)

    def observed(self) -> list[tuple[str, int]]:
        """Addresses under which relays see this node's listen port, each once; none when it does not listen."""
        if not self.settings.listen_port:
            return []
        mapped = [client for client in self.clients.values() if client.reserved and client.from_listen_port]
        seen = {client.observed for client in mapped if client.observed}
        return [(ip.strip("[]"), int(port)) for ip, _, port in (address.rpartition(":") for address in sorted(seen))]

    def retry_all(self) -> None:
        """The network changed: forget all backoffs."""
        for client in self.clients.values():
            client.retry_now()

    def moved(self, gone: frozenset[str]) -> None:
        """Addresses or routes of this host changed: control connections that cannot work any more begin anew, and so do
        those that are being made, perhaps from an address or by a way that is gone."""
        for client in list(self.clients.values()):
            if client.local in gone or not client.connected:
                log.info("relay dialled anew", extra={"relay": client.name, "address": client.local})
                self.forget(client)
                self.clients[client.name] = RelayClient(self, client.name, hold=client.hold)

    def far_ends(self) -> set[str]:
        """IP addresses of all relays that are known."""
        return {ip for info in self._known.values() for ip, _ in info.relay_addresses}

    async def close(self) -> None:
        """Ends all control connections."""
        await asyncio.gather(
            *(client.close() for client in self.clients.values()), *self._leaving, return_exceptions=True
        )
        self.clients.clear()
