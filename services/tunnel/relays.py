"""Which relays this node deals with, and what it tells others about them."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from services.runtime.identity import Identity
from services.tunnel import dialling
from services.tunnel.config import RELAYS_ASKED, RELAYS_COMMON, RELAYS_HELD, Settings
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.peers import PeerInfo, ReservationReport
from services.tunnel.relay_client import RelayClient

log = logging.getLogger("causeway.tunnel")


class RelayPool:
    """The relays this node deals with: up to RELAYS_HELD with a reservation, up to RELAYS_COMMON more for the sake of
    peers that hold none of these, others for single circuits."""

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
        self._held_by: dict[str, frozenset[str]] = {}
        """Relays at which each peer can be reached; only of those that hold a reservation."""
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
        if info.reservations:
            self._held_by[info.name] = frozenset(info.reservations)
        else:
            self._held_by.pop(info.name, None)
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
        self._held_by.pop(name, None)
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
            if client is None or not client.hold:
                client = self._hold(name)
                held.append(client)
                if not client.failing:
                    working.append(client)
        reserved = sorted((client.name for client in held if client.reserved and client.name in names), key=names.index)
        common = self._common(names, reserved[:RELAYS_HELD])
        for name in common:
            if len(held) < RELAYS_ASKED + RELAYS_COMMON and not ((known := self.clients.get(name)) and known.hold):
                held.append(self._hold(name))
        for name in reserved[RELAYS_HELD:]:
            if name not in common:
                self.clients[name].release()

    def _hold(self, name: str) -> RelayClient:
        client = self.clients.get(name)
        if client is None:
            client = self.clients[name] = RelayClient(self, name, hold=True)
        client.hold = True
        return client

    def _common(self, names: list[str], own: list[str]) -> list[str]:
        """Where those can be met who hold no reservation at any of our `own` relays.

        Perhaps they reach none of ours, and could not call us: only the callee can do something about it. Relays that
        we hold for this already come first, as each change is news for the whole cluster, then those at which most of
        them are; one that does not answer us is no place to meet.
        """
        if not own or len(names) <= len(own):
            return []
        apart = Counter(name for held in self._held_by.values() if held.isdisjoint(own) for name in held)
        failing = {name for name, client in self.clients.items() if client.failing}
        held = {name for name, client in self.clients.items() if client.hold}
        wanted = [name for name in names if name in apart and name not in failing]
        return sorted(wanted, key=lambda name: (name not in held, -apart[name]))[:RELAYS_COMMON]

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
        return [dialling.split(address) for address in sorted(seen)]

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
