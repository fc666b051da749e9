"""Which relays this node deals with, and what it tells others about them."""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

from services.runtime.identity import Identity
from services.tunnel import dialling
from services.tunnel.config import RELAYS_ASKED, RELAYS_COMMON, RELAYS_HELD, Settings
from services.tunnel.core import choice
from services.tunnel.core.choice import Nearness, Option, Relay, Use
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.errors import FULL, LinkFailed, RelayRefused
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
        self._near: dict[str, Nearness] = {}
        self._loads: dict[str, int] = {}
        """As relays themselves said, permille; of all others as their records say."""
        self._published: dict[str, float] = {}
        """What this node's record says of its reservations: relay and round trip."""
        self._peers: dict[str, PeerInfo] = {}
        """Those that hold a reservation."""
        self._leaving: set[asyncio.Task[None]] = set()

    def strays(self, client: RelayClient) -> bool:
        """Its relay could see the mapping of the listen port, and does not: the connection comes from another one, for
        when it was made another still held that port."""
        ip, port = self.control_source()
        same_family = not ip or (":" in ip) == (":" in client.far)
        return bool(port) and client.reserved and not client.from_listen_port and same_family

    def unmap(self, client: RelayClient) -> None:
        """Where its relay saw the listen port is not known any more."""
        if client.mapped:
            client.mapped = ""
            self._on_change()

    def control_source(self) -> tuple[str, int]:
        """Control connections come from the listen port, so that relays see its mapping."""
        return self.settings.listen_address, self.settings.listen_port

    def relay_info(self, name: str) -> PeerInfo | None:
        return self._known.get(name)

    def known(self) -> list[str]:
        """Relays that may serve circuits, in the order in which reservations are wanted (core/choice.prefer)."""
        now = time.monotonic()
        relays = [
            Relay(
                info.name,
                choice.domain(info.relay_addresses[0][0]),
                info.relay_rank,
                self.rtt(name, now),
                self.load(name),
            )
            for name, info in self._known.items()
            if not info.relay_draining
        ]
        return choice.prefer(relays, {name for name, client in self.clients.items() if client.hold})

    # ---------------------------------------------------------------- how far, and how full

    def rtt(self, name: str, now: float) -> float | None:
        """Seconds to a relay; None: not measured lately."""
        near = self._near.get(name)
        return near.best(now) if near is not None else None

    def load(self, name: str) -> int:
        """Permille of a relay's tightest limit: by its own word to us, else by its record."""
        client, info = self.clients.get(name), self._known.get(name)
        if client is not None and client.connected:
            return client.load
        return self._loads.get(name, info.relay_load if info is not None else 0)

    def draining(self, name: str) -> bool:
        client, info = self.clients.get(name), self._known.get(name)
        return (client is not None and client.draining) or (info is not None and info.relay_draining)

    def measured(self, name: str, seconds: float, now: float) -> None:
        """A round trip to a relay. What would change others' choice goes into the record."""
        self._near.setdefault(name, Nearness()).sample(seconds, now)
        published, best = self._published.get(name), self.rtt(name, now)
        if published is None or best is None:
            return
        if not published or choice.worth(published, best) or choice.worth(best, published):
            self._on_change()

    def probed(self, name: str, seconds: float, load: int, now: float) -> None:
        """A relay without a control connection was measured."""
        if name in self._known:
            self._loads[name] = load
            self.measured(name, seconds, now)
            self._choose()

    def unmeasured(self, now: float) -> list[str]:
        """Relays that nothing else measures, the nearest first."""
        clients = self.clients
        names = [name for name in self._known if not ((it := clients.get(name)) and (it.hold or it.connected))]
        return sorted(names, key=lambda name: self.rtt(name, now) or float("inf"))

    def serving(self) -> list[str]:
        """Relays that hold a reservation for this node now."""
        return [name for name, client in self.clients.items() if client.reserved]

    def options(self, peer: str, now: float) -> list[Option]:
        """Relays at which a peer says it can be reached, as far as they can be used."""
        info = self._peers.get(peer)
        found = []
        for index, name in enumerate(info.reservations if info is not None else ()):
            client = self.clients.get(name)
            if name not in self._known or self.draining(name) or (client is not None and client.failing):
                continue
            assert info is not None
            mine, theirs = self.rtt(name, now), info.rtts[index] if index < len(info.rtts) else 0.0
            found.append(Option(name, mine + theirs if mine is not None and theirs else None, self.load(name)))
        return found

    def ranked(self, peer: str, use: Use, suggested: Collection[str] = ()) -> list[str]:
        """`options`, the best first, and then all other relays, those first that others named when they refused."""
        options = [replace(it, used=use.sessions.get(it.relay, 0)) for it in self.options(peer, time.monotonic())]
        pair = frozenset((self.settings.node_name, peer))
        best = choice.standbys(options, use.without, pair) if use.without else choice.order(options, pair)
        order = [it.relay for it in best]
        others = [name for name in self.known() if name not in order]
        return order + sorted(others, key=lambda name: name not in suggested)

    def published(self, reservations: list[ReservationReport]) -> None:
        """This node's record says so now: what it does not name any more may be left."""
        self._published = {it.relay: it.rtt for it in reservations}
        self._choose()

    # ---------------------------------------------------------------- which are held

    def update(self, info: PeerInfo) -> None:
        """A peer appeared or changed."""
        if info.name == self.settings.node_name:
            return
        if info.reservations:
            self._peers[info.name] = info
        else:
            self._peers.pop(info.name, None)
        if info.relay_addresses:
            news = self._known.get(info.name)
            self._known[info.name] = info
            client = self.clients.get(info.name)
            if client is not None and news is not None and news.relay_addresses != info.relay_addresses:
                client.retry_now()
            if news is None or news.relay_load != info.relay_load:
                self._loads.pop(info.name, None)
        else:
            self._forget_relay(info.name)
        self._choose()

    def _forget_relay(self, name: str) -> None:
        self._known.pop(name, None)
        self._near.pop(name, None)
        self._loads.pop(name, None)

    def remove(self, name: str) -> None:
        """A peer is gone. A control connection that works is kept: the relay knows better."""
        self._forget_relay(name)
        self._peers.pop(name, None)
        client = self.clients.get(name)
        if client is not None and client.reserved_until is None:
            self.forget(client)
        self._choose()

    def changed(self) -> None:
        """A relay granted a reservation, or was lost, or does not answer."""
        self._choose()
        self._on_change()

    def _choose(self) -> None:
        """Holds the best RELAYS_HELD that work: for each that does not answer another one is asked, until it is back.

        One that a better one replaces is left only when this node's record names all that stay: until then it is where
        others look for us.
        """
        names = self._suggested_first(self.known())
        held = [client for client in self.clients.values() if client.hold]
        working = 0
        for name in names:
            if working >= RELAYS_HELD:
                break
            client = self.clients.get(name)
            if client is None or not client.hold:
                if len(held) >= RELAYS_ASKED:
                    continue
                client = self._hold(name)
                held.append(client)
            working += not client.failing
        reserved = sorted((client.name for client in held if client.reserved and client.name in names), key=names.index)
        kept = reserved[:RELAYS_HELD]
        common = self._common(names, kept)
        for name in common:
            if len(held) < RELAYS_ASKED + RELAYS_COMMON and not ((known := self.clients.get(name)) and known.hold):
                held.append(self._hold(name))
        if self._published.keys() >= set(kept):
            for name in reserved[RELAYS_HELD:]:
                if name not in common:
                    self.clients[name].release()
                    self._on_change()

    def _suggested_first(self, names: list[str]) -> list[str]:
        """A relay that refuses names others, and knows why."""
        refusing = [client for client in self.clients.values() if client.failing and client.alternatives]
        suggested = {name for client in refusing for name in client.alternatives}
        held = {name for name, client in self.clients.items() if client.hold}
        return sorted(names, key=lambda name: name not in held | suggested) if suggested else names

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
        ours = frozenset(own)
        elsewhere = (info.reservations for info in self._peers.values() if ours.isdisjoint(info.reservations))
        apart = Counter(name for relays in elsewhere for name in set(relays))
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

    async def circuit(self, relay: str, peer: str, traceparent: str = "") -> socket.socket:
        """A circuit to a peer over a relay, ready for its first byte. LinkFailed or RelayRefused."""
        client = self.get(relay)
        if client is None:
            raise LinkFailed(f"no address of relay {relay} is known")
        try:
            return await client.connect(peer, traceparent)
        except RelayRefused as refusal:
            if refusal.reason == FULL:
                client.load = 1000  # until it says otherwise: others are asked first meanwhile
            raise

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
        if not successor.from_listen_port:  # as it cannot while the other one does; the next one will again
            successor.mapped = client.mapped
        self.clients[client.name] = successor
        self.changed()
        return True

    def reservations(self) -> list[ReservationReport]:
        """For this node's record, the nearest first. One that is about to be left is not named any more."""
        now = time.monotonic()
        reports = [
            ReservationReport(client.name, self.rtt(client.name, now) or 0.0)
            for client in self.clients.values()
            if client.reserved and client.hold
        ]
        return sorted(reports, key=lambda report: report.rtt)

    def observed(self) -> list[tuple[str, int]]:
        """Addresses under which relays see this node's listen port, each once; none when it does not listen."""
        if not self.settings.listen_port:
            return []
        seen = {client.mapped for client in self.clients.values() if client.reserved and client.mapped}
        return [dialling.split(address) for address in sorted(seen)]

    def addresses_in_use(self) -> list[tuple[str, tuple[str, int]]]:
        """Relays that hold a reservation for this node, the nearest first, and where they are reached."""
        now = time.monotonic()
        serving = [client for client in self.clients.values() if client.reserved and client.address]
        serving.sort(key=lambda client: self.rtt(client.name, now) or float("inf"))
        return [(client.name, dialling.split(client.address)) for client in serving]

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
