"""The SOCKS5 proxy: applications name a node, or a service, and talk to it; `ssh`'s way into a node behind NATs.

    ssh -o ProxyCommand='nc -X 5 -x 127.0.0.1:10800 %h %p' edge-b

The handshake is read here (core/socks.py), and the client then goes its way as any other (`Departure`), with the
handshake's last answer as what it is told of the outcome. UDP is in association.py.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

from services.proxy import errors, peers
from services.proxy.association import Associations
from services.proxy.config import SocksSettings
from services.proxy.core import credentials, socks
from services.proxy.core.catalog import Service, join
from services.proxy.core.credentials import Credentials
from services.proxy.core.socks import Address, Command, Handshake, Reply, Request, SocksError
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.listeners import Row
from services.proxy.names import Names, NoRoute
from services.proxy.tcp import Acceptor
from services.runtime import files

LABEL = "SOCKS5"
MAX_HANDSHAKES = 512  # at once, each with a descriptor; then the one that has been at it the longest makes room
HANDSHAKE = 10.0  # s until the request must be there
_READ = 4096  # bytes; several times the longest handshake, which is about 780
_RETRY_FIRST, _RETRY_LAST = 1.0, 60.0  # s until an address that could not be had is tried again
_DRAIN = 64  # reads of what a refused client had sent already

_REPLIES = {
    errors.DENIED: Reply.NOT_ALLOWED,
    errors.UNREACHABLE: Reply.HOST_UNREACHABLE,
    errors.CONNECTION_REFUSED: Reply.CONNECTION_REFUSED,
    errors.NO_PATH: Reply.HOST_UNREACHABLE,
    errors.UNKNOWN_NODE: Reply.HOST_UNREACHABLE,
    errors.NO_ENDPOINT: Reply.HOST_UNREACHABLE,
    errors.UNKNOWN: Reply.HOST_UNREACHABLE,
}
"""By reason; of others, such as a limit of this node's, SOCKS knows just that it failed."""

OPEN_TO_ALL = "socks5Proxy listens on {} and asks for no password: whoever reaches it reaches all that this node may"


@dataclass(slots=True, eq=False)
class _Greeted:
    """A client in its handshake."""

    sock: socket.socket
    address: tuple[str, int]
    handshake: Handshake
    deadline: float  # loop time


class Socks5:
    """Owned by the driver: `apply` the settings, `update` with every change of the services, `close`."""

    def __init__(self, run_dir: Path, names: Names, departure: Departure, counters: Counters, log: Logger) -> None:
        self._run_dir = run_dir
        self._names = names
        self._departure = departure
        self._counters = counters
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._settings = SocksSettings()
        self._associations = Associations(names, departure, counters.dropped, log)
        self._acceptor: Acceptor | None = None
        self._error = ""
        self._retry: asyncio.TimerHandle | None = None
        self._delay = _RETRY_FIRST
        self._greeted: dict[_Greeted, None] = {}  # by deadline: all have the same time
        self._expiry: asyncio.TimerHandle | None = None
        self._following: asyncio.Task[None] | None = None
        self._users = Credentials({})
        self._stamp: object = None  # of the file of passwords, when it was read last
        self._unreadable = ""

    def apply(self, settings: SocksSettings) -> None:
        """From now on so. Connections that were made, and associations, are not touched."""
        before, self._settings = self._settings, settings
        self._read_users(anew=True)
        if settings.spot != before.spot or settings.enable != before.enable:
            self._stop()
            if settings.enable:
                self._listen()
        if settings.enable and self._following is None:
            self._following = asyncio.create_task(peers.follow_nodes(self._run_dir, self._names.nodes))
            self._following.add_done_callback(self._followed)

    def update(self, services: Iterable[Service]) -> None:
        """These are all the services known now."""
        self._names.update(services)

    def rest(self, seconds: float) -> None:
        """Time without a datagram until a flow of an association ends, for those that are open as well."""
        self._associations.rest(seconds)

    async def close(self) -> None:
        """Ends handshakes and associations; whoever is on the way, or connected, lives on in the tunnel."""
        self._stop()
        for greeted in list(self._greeted):
            self._forget(greeted)
            greeted.sock.close()
        if self._expiry is not None:
            self._expiry.cancel()
        self._associations.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def rows(self) -> list[Row]:
        """For the status: one line, when it is switched on."""
        return [Row(self._settings.spot, LABEL, 0, self._error)] if self._settings.enable else []

    def warnings(self) -> list[str]:
        """What somebody should see to."""
        settings = self._settings
        if not settings.enable:
            return []
        warnings = [f"socks5Proxy.passwordFile: {self._unreadable}"] if self._unreadable else []
        if not settings.authenticates and not ipaddress.ip_address(settings.spot.ip).is_loopback:
            warnings.append(OPEN_TO_ALL.format(settings.spot))
        return warnings

    # ── listening ──

    def _listen(self) -> None:
        self._retry = None
        spot = self._settings.spot
        try:
            self._acceptor = Acceptor(spot, LABEL, self._greet, self._log)
        except OSError as error:
            text = f"cannot listen: {error.strerror}"
            if text != self._error:
                self._log.warning("no SOCKS5 proxy", extra={"address": str(spot), "error": text})
            self._error = text
            self._retry = self._loop.call_later(self._delay, self._listen)
            self._delay = min(self._delay * 2, _RETRY_LAST)
            return
        self._error, self._delay = "", _RETRY_FIRST
        self._log.info("SOCKS5 proxy listens", extra={"address": str(spot)})

    def _stop(self) -> None:
        """Listens no longer."""
        if self._retry is not None:
            self._retry.cancel()
        self._retry, self._delay, self._error = None, _RETRY_FIRST, ""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
            self._log.info("SOCKS5 proxy no longer listens")

    def _followed(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:  # a fault of ours; names of services still work
            self._log.error("nodes are not followed", extra={"error": repr(task.exception())})

    def _read_users(self, *, anew: bool = False) -> None:
        """From the configuration, and from the file of passwords if that has changed."""
        stamp = files.stamp(self._settings.password_file)
        if not anew and stamp == self._stamp:
            return
        self._stamp, self._unreadable = stamp, ""
        users = dict(self._settings.users)
        if self._settings.password_file is not None:
            try:
                users |= credentials.parse(self._settings.password_file.read_text())
            except (OSError, ValueError) as error:
                self._unreadable = f"{self._settings.password_file}: {error}"
                self._log.error("no passwords for the SOCKS5 proxy", extra={"error": self._unreadable})
        self._users = Credentials(users)

    # ── handshakes ──

    def _greet(self, client: socket.socket, address: tuple[str, int]) -> None:
        client.setblocking(False)
        self._read_users()
        if len(self._greeted) >= MAX_HANDSHAKES:
            self._give_up(next(iter(self._greeted)), f"{MAX_HANDSHAKES} handshakes are under way")
        check = self._users.check if self._settings.authenticates else None
        greeted = _Greeted(client, address, Handshake(check), self._loop.time() + HANDSHAKE)
        self._greeted[greeted] = None
        self._loop.add_reader(client, self._readable, greeted)
        if self._expiry is None:
            self._expiry = self._loop.call_at(greeted.deadline, self._expire)

    def _readable(self, greeted: _Greeted) -> None:
        sock, handshake = greeted.sock, greeted.handshake
        try:
            data = sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(greeted)
            sock.close()
            return
        try:
            answer = handshake.receive(data)
        except SocksError as error:
            self._forget(greeted)
            self._log.info("SOCKS handshake failed", extra={"address": join(*greeted.address[:2]), "error": str(error)})
            _dismiss(sock, error.answer)
            return
        if answer and not _tell(sock, answer):
            self._give_up(greeted, "it does not read")
        elif handshake.request is not None:
            self._forget(greeted)
            self._serve(greeted, handshake.request)

    def _expire(self) -> None:
        now = self._loop.time()
        while self._greeted and (first := next(iter(self._greeted))).deadline <= now:
            self._give_up(first, f"it took longer than {HANDSHAKE:g} s")
        self._expiry = self._loop.call_at(first.deadline, self._expire) if self._greeted else None

    def _give_up(self, greeted: _Greeted, why: str) -> None:
        self._forget(greeted)
        self._log.info("SOCKS handshake ended", extra={"address": join(*greeted.address[:2]), "error": why})
        greeted.sock.close()

    def _forget(self, greeted: _Greeted) -> None:
        del self._greeted[greeted]
        self._loop.remove_reader(greeted.sock)

    # ── requests ──

    def _serve(self, greeted: _Greeted, request: Request) -> None:
        ip, port = greeted.address[:2]
        manners = _Manners(join(ip, port), request.address, self._log)
        target = request.address
        match request.command:
            case Command.CONNECT:
                try:
                    route = self._names.route(target.host, target.port, "tcp")
                except NoRoute as error:
                    self._counters.refused_local["", error.reason] += 1
                    manners.refuse(greeted.sock, error.reason, str(error))
                    return
                self._departure.send(greeted.sock, (ip, port), route, head=greeted.handshake.rest, manners=manners)
            case Command.UDP_ASSOCIATE:
                self._associate(greeted, target)
            case _:
                self._log.info(
                    "refused a SOCKS client", extra={"address": join(ip, port), "error": "BIND is not served"}
                )
                _dismiss(greeted.sock, socks.reply(Reply.COMMAND_NOT_SUPPORTED))

    def _associate(self, greeted: _Greeted, wanted: Address) -> None:
        sock, client = greeted.sock, greeted.address
        try:
            ip, port = self._associations.open(sock, (client[0], client[1]), wanted)
        except OSError as error:
            self._counters.refused_local["", errors.LIMIT] += 1
            self._log.warning("no UDP association", extra={"address": join(*client[:2]), "error": error.strerror})
            _dismiss(sock, socks.reply(Reply.GENERAL_FAILURE))
            return
        _tell(sock, socks.reply(Reply.SUCCEEDED, ip, port))  # if it cannot be told, it is gone, and ends by that


class _Manners:
    """A SOCKS client is told the outcome by a reply."""

    __slots__ = ("_client", "_log", "_target")

    welcome = socks.reply(Reply.SUCCEEDED)  # from which address the exit dials, only the exit knows: zeros

    def __init__(self, client: str, target: Address, log: Logger) -> None:
        self._client = client
        self._target = target
        self._log = log

    def refuse(self, client: socket.socket, reason: str, why: str) -> None:
        self._log.info(
            "refused a SOCKS client",
            extra={"address": self._client, "target": str(self._target), "reason": reason, "error": why},
        )
        _dismiss(client, socks.reply(_REPLIES.get(reason, Reply.GENERAL_FAILURE)))


def _tell(sock: socket.socket, answer: bytes) -> bool:
    """Whether the client's socket took it; it has room for far more than a handshake's answers."""
    try:
        return sock.send(answer) == len(answer)
    except OSError:
        return False


def _dismiss(sock: socket.socket, answer: bytes) -> None:
    """Says so, and closes. What the client had sent already is read first: a socket that is closed with unread data
    sends a reset, which may overtake the answer."""
    try:
        sock.setblocking(False)
        if answer and _tell(sock, answer):
            sock.shutdown(socket.SHUT_WR)
            for _ in range(_DRAIN):
                if not sock.recv(_READ):
                    break
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE):
            raise
    finally:
        sock.close()
