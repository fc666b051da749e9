"""The name servers of this host."""

import time
from pathlib import Path

from services.proxy.core.upstreams import Upstream
from services.runtime import address, files

MAX_SERVERS = 8
LOOK = 5.0  # s between two looks at the file


class ResolvConf:
    """The name servers of resolv.conf(5), read again when it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: object = None
        self._looked = float("-inf")
        self._servers: tuple[Upstream, ...] = ()

    def servers(self) -> tuple[Upstream, ...]:
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            stamp = files.stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._servers = self._read()
        return self._servers

    def _read(self) -> tuple[Upstream, ...]:
        try:
            with self._path.open(errors="replace") as file:
                lines = file.read(65_536).splitlines()
        except OSError:
            return ()
        words = [line.split() for line in lines]
        found = [Upstream(word[1]) for word in words if len(word) > 1 and word[0] == "nameserver"]
        return tuple(one for one in found if address.is_ip(one.ip.partition("%")[0]))[:MAX_SERVERS]
