"""A router that maps ports on request: `miniupnpd`, as it runs in many homes, on a router of the lab."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from lab.network import GATEWAY, Lan, Network
from tests.patience import PATIENCE

EXTERNAL = "11.0.0.1"
"""The router's outside address here. miniupnpd refuses to work behind reserved ones, those for documentation included,
so it is an ordinary address of the real Internet, which these namespaces have no way to."""
TABLE = """
table inet miniupnpd {
  chain forward { type filter hook forward priority filter - 10; policy accept; jump miniupnpd; }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }
  chain prerouting_miniupnpd { }
  chain postrouting { type nat hook postrouting priority srcnat - 5; jump postrouting_miniupnpd; }
  chain postrouting_miniupnpd { }
}
"""
PROTOCOLS = {
    "PCP": "enable_natpmp=yes\nenable_upnp=no",
    "UPnP": "enable_natpmp=no\nenable_upnp=yes",
    "all": "enable_natpmp=yes\nenable_upnp=yes",
}

READY = {"PCP": "NAT-PMP/PCP traffic on port", "UPnP": "HTTP listening on port", "all": "NAT-PMP/PCP traffic on port"}
"""What it says last before it can be asked."""


def program() -> str | None:
    """Its path; None when it is not installed."""
    return shutil.which("miniupnpd", path="/usr/sbin:/sbin:/usr/local/sbin")


class Miniupnpd:
    """Runs on the router of a LAN; a context manager. `kill` and `start`: the router's power."""

    def __init__(self, network: Network, lan: Lan, protocols: str = "all", *, external: str = EXTERNAL) -> None:
        """`external`: address that the router gets; empty: it keeps what it has, and the daemon finds out."""
        self._lan = lan
        self._protocols = protocols
        self._folder = Path(tempfile.mkdtemp(prefix="cw-"))
        self._process: subprocess.Popen[bytes] | None = None
        router = lan.router
        if external:
            network.internet.ip(f"route add {external}/32 via {lan.wan_address}")
            # The outside address comes first, so that masquerading takes it.
            router.ip(
                f"addr add {external}/32 dev wan",
                f"addr del {lan.wan_address}/32 dev wan",
                f"addr add {lan.wan_address}/32 dev wan",
                f"route replace {GATEWAY}/32 dev wan src {external}",
                f"route replace default via {GATEWAY} src {external}",
            )
        (self._folder / "conf").write_text(
            f"""ext_ifname=wan
listening_ip=lan
{f"ext_ip={external}" if external else ""}
{PROTOCOLS[protocols]}
secure_mode=yes
system_uptime=no
min_lifetime=1
max_lifetime=86400
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=00000000-0000-4000-8000-000000000001
http_port=5555
allow 1024-65535 {lan.network} 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
        )

    def start(self) -> None:
        """It comes up, until it can be asked, and knows of no mapping."""
        assert self._process is None
        self._lan.router.nft(f"table inet miniupnpd\ndelete table inet miniupnpd\n{TABLE}")
        found = program()
        assert found is not None
        with (self._folder / "log").open("ab") as log:
            argv = [found, "-d", "-f", str(self._folder / "conf"), "-P", str(self._folder / "pid")]
            before = log.tell()
            self._process = self._lan.router.popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while READY[self._protocols] not in self.log[before:]:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """It is gone, with all its mappings."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        self._lan.router.nft("delete table inet miniupnpd")

    @property
    def rules(self) -> str:
        """The mappings as the kernel has them."""
        return self._lan.router.run(["nft", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"])

    @property
    def log(self) -> str:
        """What it said."""
        return (self._folder / "log").read_text(errors="replace")

    def __enter__(self) -> Miniupnpd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
