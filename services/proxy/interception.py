"""Services on addresses that this host has not: nftables redirects whoever wants them to listeners of ours.

Owns the table of core/ruleset.py and all that belongs to it. Nothing here stops the proxy: where interception is not
possible, that is one line of status, and addresses of this host are served as ever.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from logging import Logger
from typing import Any, TypeVar

from services.proxy import conntrack, errors, nft, ownership
from services.proxy.captured import CapturedListener
from services.proxy.config import Settings
from services.proxy.core import ruleset
from services.proxy.core.catalog import Network, Service, Spot, local_addresses
from services.proxy.core.ruleset import Ruleset, Target
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.interfaces import addresses
from services.proxy.nft import NftError
from services.proxy.route import Route
from services.proxy.tablewatch import TableWatch
from services.proxy.udp import UdpListener

CHECK = 300.0  # s between two looks at the table although nobody reported a change: nft takes 0.2 s for 1,000 addresses
LINGER = 5.0  # s between two looks whether the connections that the table was left for are over
GATHER = 0.05  # s in which reported changes are gathered
RETRY_FIRST = 1.0  # s after a transaction that failed or a repair, until the next; doubles up to RETRY_LAST
RETRY_LAST = 10.0

OFF = "edgeProxy.interception.enable is off"
PENDING = "interception is being set up"
OWN = "an endpoint of this node: clients reach it without the proxy"

_T = TypeVar("_T")


class InterceptionError(Exception):
    """One line on why an address is not intercepted."""


class Captured:
    """One intercepted address, in place of a listener. `route` may be changed at any time."""

    intercepted = True

    def __init__(self, spot: Spot, route: Route, owner: "Interception", udp: UdpListener | None, port: int) -> None:
        self.spot = spot
        self.target: Target = spot.ip, spot.port
        self.port = port  # of the UDP listener
        self._route = route
        self._owner = owner
        self._udp = udp

    @property
    def route(self) -> Route:
        """Where its clients go."""
        return self._route

    @route.setter
    def route(self, route: Route) -> None:
        self._route = route
        if self._udp is not None:
            self._udp.route = route

    @property
    def error(self) -> str:
        """Empty, or why clients do not come here."""
        return self._owner.error(self.spot)

    def close(self) -> None:
        """No longer intercepted. Flows that have their socket live on."""
        self._owner.release(self)
        if self._udp is not None:
            self._udp.close()


class Interception:
    """`open`, then `run` in a task of its owner, `capture` and `learn` at will, then `close`."""

    def __init__(self, settings: Settings, departure: Departure, counters: Counters, log: Logger) -> None:
        self._settings = settings
        self._departure = departure
        self._counters = counters
        self._log = log
        self._captured: dict[Spot, Captured] = {}
        self._listeners: dict[int, CapturedListener] = {}  # by IP version
        self._own: set[tuple[Network, str, int]] = set()
        self._clusters: frozenset[str] = frozenset()  # addresses that are services' only
        self._why = OFF if settings.interception == "off" else ""  # why it is not possible; "": it is
        self._missed = False  # somebody wanted it nevertheless
        self._error = ""  # what the last transaction failed with
        self._installed: Ruleset | None = None
        self._redirected: set[Spot] = set()  # of that
        self._listing: nft.Listing | None = None
        self._leftover = False  # there is a table, whoever made it
        self._skeleton = False  # which redirects nothing
        self._repairs = 0
        self._suspect = False
        self._wake = asyncio.Event()
        self._watch: TableWatch | None = None
        self._lock: socket.socket | None = None
        self._job: asyncio.Future[Any] | None = None

    async def open(self) -> None:
        """Finds out whether interception is possible, and what an earlier proxy left behind."""
        try:
            self._leftover = await self._do(nft.listing) is not None
            if self._why:
                await self._tidy()
            else:
                self._watch = TableWatch(ruleset.TABLE.split()[1], self._touched)
        except (NftError, OSError) as error:
            self._why = self._why or str(error)
        if self._settings.interception == "on" and self._why:
            self._log.warning("not intercepting", extra={"error": self._why})

    async def run(self) -> None:
        """Keeps the table as it should be, for ever."""
        if self._why:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        delay, troubled = RETRY_FIRST, float("-inf")
        while True:
            idle = await self._idle()
            try:
                trouble = (idle or self._suspect) and await self._repair()
                await self._apply()
                self._error = ""
            except (NftError, OSError) as error:
                self._log.warning("the table of the interception cannot be set", extra={"error": str(error)})
                self._error = f"not intercepted: {error}"
                self._wake.set()
                trouble = True
            now = loop.time()
            if trouble:
                delay = min(2 * delay, RETRY_LAST) if now - troubled < RETRY_LAST else RETRY_FIRST
                troubled = now
                await asyncio.sleep(delay)  # whoever fights with us over the table does not keep two processors busy

    def capture(self, spot: Spot, route: Route) -> Captured:
        """Clients of `spot` come here from now on, or as soon as the table says so. Raises InterceptionError."""
        if self._why:
            self._missed = True
            raise InterceptionError(self._why)
        if not self._locked():
            raise InterceptionError(ownership.TAKEN)
        version = 6 if ":" in spot.ip else 4
        if spot.network == "tcp":
            self._listen(version)
            captured = Captured(spot, route, self, None, 0)
        else:
            listener, port = self._udp(spot, version, route)
            captured = Captured(spot, route, self, listener, port)
        self._captured[spot] = captured
        self._wake.set()
        return captured

    def release(self, captured: Captured) -> None:
        """The end of a `Captured`."""
        version = 6 if ":" in captured.spot.ip else 4
        if captured.spot.network == "tcp" and version in self._listeners:
            self._listeners[version].drain()  # those who are here already are still its clients
        self._captured.pop(captured.spot, None)
        self._wake.set()

    def learn(self, services: Iterable[Service]) -> None:
        """These are all the services known now."""
        services = list(services)
        self._own = set(local_addresses(services, self._settings.node_name))
        endpoints = {ip for service in services for endpoint in service.endpoints for ip in endpoint.addresses}
        self._clusters = frozenset({ip for service in services for ip in service.cluster_ips} - endpoints)
        self._wake.set()

    def loops(self, network: Network, ip: str, port: int) -> bool:
        """Whether a connection to this endpoint of ours would come back to us: it has just moved to this node, and the table
        does not know yet."""
        return (network, ip, port) in self._own and Spot(network, ip, port) in self._redirected

    def error(self, spot: Spot) -> str:
        """Why clients of `spot` do not come here; "" when they do."""
        if (spot.network, spot.ip, spot.port) in self._own:
            return OWN
        return "" if spot in self._redirected else self._error or PENDING

    def warnings(self) -> list[str]:
        """For status."""
        found = []
        if self._why and self._why != OFF and (self._missed or self._settings.interception == "on"):
            found.append(f"services on addresses that this host has not are not intercepted: {self._why}")
        if self._error:
            found.append(self._error)
        if self._repairs:
            found.append(
                f"the nftables table of the interception was changed by somebody else, and put right ({self._repairs}×)"
            )
        return found

    async def close(self) -> None:
        """The last thing the proxy does: nothing is intercepted any more."""
        for captured in list(self._captured.values()):
            captured.close()
        if self._watch is not None:
            self._watch.close()
        if self._job is not None:
            await asyncio.gather(self._job, return_exceptions=True)
        try:
            if self._lock is not None:
                await self._tidy()
        except NftError as error:
            self._log.warning(
                "the table of the interception stays: causeway proxy --cleanup", extra={"error": str(error)}
            )
        for listener in self._listeners.values():
            listener.close()
        self._unlock()

    # ── listeners ──

    def _listen(self, version: int) -> None:
        if version in self._listeners:
            return
        try:
            self._listeners[version] = CapturedListener(
                version, self._settings.listen_port, self._route, self._departure, self._stray, self._log
            )
        except OSError as error:
            raise InterceptionError(
                f"port {self._settings.listen_port} cannot be had ({error.strerror}): set modules.edgeProxy.listenPort"
            ) from None

    def _udp(self, spot: Spot, version: int, route: Route) -> tuple[UdpListener, int]:
        why = ""
        for port in ruleset.udp_ports(spot.ip, spot.port):
            here = Spot("udp", "::" if version == 6 else "0.0.0.0", port)
            try:
                return UdpListener(here, route, self._departure, self._counters.dropped, self._log), port
            except OSError as error:
                why = error.strerror or str(error)
                if error.errno != errno.EADDRINUSE:
                    break
        raise InterceptionError(f"no port for a UDP listener: {why}")

    def _route(self, target: Target) -> Route | None:
        captured = self._captured.get(Spot("tcp", *target))
        # What we dial ourselves must not come back to us for ever.
        return None if captured is None or ("tcp", *target) in self._own else captured.route

    def _stray(self) -> None:
        self._counters.refused_local["", errors.STRAY] += 1

    # ── the table ──

    def _target(self) -> Ruleset:
        mine = [one for spot, one in self._captured.items() if (spot.network, spot.ip, spot.port) not in self._own]
        return Ruleset(
            self._settings.listen_port,
            tcp=frozenset(one.target for one in mine if one.spot.network == "tcp"),
            udp=frozenset((one.target, one.port) for one in mine if one.spot.network == "udp"),
            refused=self._clusters & {one.spot.ip for one in mine},
            subnets=self._settings.subnets,
            gates=self._gates(),
        )

    def _gates(self) -> tuple[str, str]:
        """The first IPv4 and the first IPv6 address of `listen_interface`; "": there is none."""
        name = self._settings.listen_interface
        ips = addresses(name) if name else []
        return next((ip for ip in ips if ":" not in ip), ""), next((ip for ip in ips if ":" in ip), "")

    async def _idle(self) -> bool:
        """Waits until there is something to do; True when nobody said so for a long time."""
        try:
            async with asyncio.timeout(LINGER if self._skeleton else CHECK):
                await self._wake.wait()
        except TimeoutError:
            return True
        finally:
            self._wake.clear()
        return False

    async def _repair(self) -> bool:
        """Whether somebody else changed the table: then `_apply` makes all of it anew."""
        if self._suspect:
            await asyncio.sleep(GATHER)
        self._suspect = False
        if self._installed is None or await self._do(nft.listing) == self._listing:
            return False
        self._repairs += 1
        self._holds(None)
        self._log.warning("somebody else changed the table of the interception; putting it right")
        return True

    async def _apply(self) -> None:
        target, installed = self._target(), self._installed
        if not target:
            await self._tidy()
            return
        if target == installed:
            return
        self._skeleton = False
        self._leftover = True
        before = self._redirected
        try:
            if installed is None or installed.frame != target.frame:
                raise NftError
            await self._load(ruleset.change(installed, target))
        except NftError:  # there is none, or somebody changed it a moment ago
            self._holds(None)
            await self._load(ruleset.replace(target))
        self._holds(target)
        try:
            await self._do(conntrack.forget, self._redirected - before)
        except OSError as error:  # a kernel without nf_conntrack_netlink
            self._log.debug("conntrack keeps what it knew", extra={"error": str(error)})
        self._log.info("intercepting", extra={"target": f"{len(target.tcp)} TCP, {len(target.udp)} UDP addresses"})

    async def _load(self, script: str) -> None:
        """And looks at the result, with which later ones are compared. Raises NftError when it is not ours alone."""
        assert self._watch is not None
        before = self._watch.count()
        await self._do(nft.load, script)
        self._listing = await self._do(nft.listing)
        if self._watch.count() - before > 1:
            raise NftError("somebody else changes the table at the same time")
        self._suspect = False  # the one change that was reported is ours

    async def _tidy(self) -> None:
        """Takes the table away. While connections live that came through it, one stays that redirects nothing: the next check,
        the next proxy, the end of `causeway up` or `causeway proxy --cleanup` removes them."""
        if not self._leftover or not self._locked():
            return
        keep = await self._do(ownership.streams, self._settings.listen_port)
        if not (keep and self._skeleton):
            await self._do(nft.load, ruleset.remove(keep_connections=keep))
            self._log.info("intercepting no longer")
        self._holds(None)
        self._leftover = self._skeleton = keep
        if not keep and not self._captured:
            self._unlock()

    def _holds(self, installed: Ruleset | None) -> None:
        self._installed = installed
        self._redirected = {Spot(*target) for target in installed.targets} if installed is not None else set()

    async def _do(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Runs `nft` in a thread. A cancelled caller does not take away what `close` has to wait for."""
        job = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        self._job = job
        return await asyncio.shield(job)

    def _touched(self) -> None:
        self._suspect = True
        self._wake.set()

    def _locked(self) -> bool:
        if self._lock is None:
            self._lock = ownership.lock()
        return self._lock is not None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
