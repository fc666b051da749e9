"""UPnP Internet Gateway Devices, by async-upnp-client.

The gateway is looked for here, so that the library (28 MiB with its HTTP client) is loaded only where one answers. Only
the default gateway is listened to: any other machine of the LAN may claim to be one.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Coroutine
from datetime import timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from services.tunnel.core.natkind import Endpoint
from services.tunnel.portmap.gateway import Gateway
from services.tunnel.portmap.lease import LIFETIME, Lease, MappingFailed

if TYPE_CHECKING:
    from async_upnp_client.profiles.igd import IgdDevice

_T = TypeVar("_T")

SEARCH_PORT = 1900
SEARCH_GROUP = "239.255.255.250"
SEARCH_TIMEOUT = 2.5
"""Seconds: the gateway may wait up to MX, 1 s, and the first datagram may be lost."""
ASK_TIMEOUT = 5
"""Seconds for an answer over HTTP."""
PERMANENT = 7200.0
"""Seconds after which a mapping without an end is looked at as if it had one."""
OTHER_PORTS = 4
"""Random outside ports that are tried where ours is taken."""
CONFLICT, ONLY_PERMANENT, NO_SUCH_ENTRY = 718, 725, 714
"""Error codes of WANIPConnection."""
DESCRIPTION = "causeway"
KINDS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
)


class _Anybody(IPv4Address):
    """The remote host of a mapping for all: in UPnP the empty string, for which the library has no value. With 0.0.0.0
    miniupnpd makes the mapping, too, but takes its renewal for a conflict with it."""

    @property
    def exploded(self) -> str:
        return ""


ANYBODY = _Anybody(0)


async def search(gateway: Gateway) -> str:
    """URL of the gateway's description. MappingFailed when it has none."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.bind((gateway.local, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(gateway.local))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)  # UPnP Device Architecture 1.1, 1.1.2
            async with asyncio.timeout(SEARCH_TIMEOUT):
                for _ in range(2):
                    for kind in KINDS:
                        await loop.sock_sendto(sock, _request(kind), (SEARCH_GROUP, SEARCH_PORT))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SEARCH_TIMEOUT / 2):
                            return await _answer(sock, gateway)
        except TimeoutError:
            pass
        except OSError as error:
            raise MappingFailed(f"no search for a UPnP gateway: {error.strerror}") from None
    raise MappingFailed("no UPnP gateway answers")


def _request(kind: str) -> bytes:
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {SEARCH_GROUP}:{SEARCH_PORT}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {kind}",
    )
    return "\r\n".join((*lines, "", "")).encode()


async def _answer(sock: socket.socket, gateway: Gateway) -> str:
    while True:
        data, source = await asyncio.get_running_loop().sock_recvfrom(sock, 2048)
        location = location_of(data)
        if source[0] == gateway.ip and host_of(location) == gateway.ip:
            return location


def location_of(answer: bytes) -> str:
    """The description's URL in an answer to a search for gateways; empty when it is none."""
    head, *lines = answer.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    right = head.startswith("HTTP/1.1 200") and fields.get("st") in KINDS
    return fields.get("location", "") if right else ""


def host_of(url: str) -> str:
    """Host of an http URL; empty when it is none."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.scheme == "http" else ""
    except ValueError:
        return ""


class Upnp:
    """One gateway."""

    name = "UPnP"

    def __init__(self, gateway: Gateway) -> None:
        self._local = IPv4Address(gateway.local)
        self._gateway = gateway
        self._device: IgdDevice | None = None
        self._external = 0
        self._lifetime = LIFETIME

    async def map(self, port: int, wish: Endpoint | None) -> Lease:
        device = self._device = self._device or await self._connect()
        ip = await self._ask(device.async_get_external_ip_address())
        if not ip:
            raise MappingFailed("the gateway has no external address")
        first = wish[1] if wish else port
        for external in (first, *(random.randint(20000, 60000) for _ in range(OTHER_PORTS))):
            if await self._add(device, external, port):
                self._external = external
                return Lease((str(ip), external), float(self._lifetime) or PERMANENT)
        raise MappingFailed("the gateway's ports are taken")

    async def _add(self, device: "IgdDevice", external: int, port: int) -> bool:
        """False when the outside port is taken."""
        from async_upnp_client.exceptions import UpnpActionError

        while True:
            lifetime = timedelta(seconds=self._lifetime)
            try:
                await self._ask(
                    device.async_add_port_mapping(
                        ANYBODY, external, "TCP", port, self._local, True, DESCRIPTION, lifetime
                    )
                )
                return True
            except UpnpActionError as error:
                if error.error_code == CONFLICT:
                    return False
                if error.error_code != ONLY_PERMANENT or not self._lifetime:
                    raise MappingFailed(f"the gateway says {error.error_code}: {error.error_desc}") from None
                self._lifetime = 0

    async def holds(self) -> bool:
        from async_upnp_client.exceptions import UpnpActionError

        if self._device is None or not self._external:
            return False
        try:
            entry = await self._ask(self._device.async_get_specific_port_mapping_entry(ANYBODY, self._external, "TCP"))
            return entry is None or entry.internal_client == self._local  # None: it cannot be asked
        except UpnpActionError as error:
            return error.error_code != NO_SUCH_ENTRY
        except MappingFailed:
            # It may have started anew with its description elsewhere.
            self._device = None
            return True

    async def unmap(self, port: int) -> None:
        from async_upnp_client.exceptions import UpnpError

        if self._device is not None and self._external:
            with contextlib.suppress(UpnpError):
                await self._ask(self._device.async_delete_port_mapping(ANYBODY, self._external, "TCP"))

    async def _connect(self) -> "IgdDevice":
        location = await search(self._gateway)
        from async_upnp_client.aiohttp import AiohttpRequester
        from async_upnp_client.client_factory import UpnpFactory
        from async_upnp_client.profiles.igd import IgdDevice

        factory = UpnpFactory(AiohttpRequester(timeout=ASK_TIMEOUT), non_strict=True)
        return IgdDevice(await self._ask(factory.async_create_device(location)), None)

    async def _ask(self, call: Coroutine[Any, Any, _T]) -> _T:
        from async_upnp_client.exceptions import UpnpActionError, UpnpError

        try:
            async with asyncio.timeout(ASK_TIMEOUT + 1):
                return await call
        except UpnpActionError:
            raise
        except (UpnpError, TimeoutError, OSError, ValueError, AttributeError, KeyError) as error:
            # The latter ones: descriptions of real gateways hold anything.
            raise MappingFailed(f"the UPnP gateway is not understood: {error or type(error).__name__}") from error

    async def close(self) -> None:
        self._device = None
