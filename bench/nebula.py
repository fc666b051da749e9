"""Nebula (Debian's package) between two network namespaces: an overlay with its own tun devices."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import ClassVar

from bench.process import Child, Failed, run
from bench.rig import Address, NotRun, Rig, Roles

NEAR, FAR = "198.18.0.1", "198.18.0.2"  # underlay: RFC 2544 benchmarking range, inside the namespaces only
OVERLAY_NEAR, OVERLAY_FAR = "198.19.0.1", "198.19.0.2"


class Nebula(Rig):
    """client → tun ═ UDP ═ tun → server, no proxy: the far end is addressed by its overlay IP"""

    name: ClassVar[str] = "nebula"
    title: ClassVar[str] = "nebula"
    bulk_share: ClassVar[float] = 0.125

    @property
    def far_host(self) -> str:
        return OVERLAY_FAR

    def prepare(self) -> None:
        if not shutil.which("nebula") or not shutil.which("nebula-cert"):
            raise NotRun("nebula is not installed")
        if not Path("/dev/net/tun").exists():
            raise NotRun("this host has no /dev/net/tun")
        try:
            near, far = self._namespaces()
        except Failed as failure:
            raise NotRun(f"no network namespaces here: {failure}") from None
        self.near_prefix, self.far_prefix = self._enter(near), self._enter(far)
        self._certify()
        try:
            self._nebulas = [
                self._start("far", self.far_prefix, lighthouse=True),
                self._start("near", self.near_prefix, lighthouse=False),
            ]
            self._await_address(self.far_prefix, OVERLAY_FAR)
            self._await_address(self.near_prefix, OVERLAY_NEAR)
        except Failed as failure:
            raise NotRun(f"nebula does not start here: {failure}") from None

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        return servers

    def roles(self) -> Roles:
        far, near = self._nebulas
        return Roles(near=[near.pid], far=[far.pid])

    def _namespaces(self) -> tuple[Child, Child]:
        """Two namespaces joined by a veth pair, each held by a sleeping process; both in one user namespace."""
        near = self._hold(["unshare", "-Urn", "--keep-caps"])
        far = self._hold([*self._enter(near), "unshare", "-n"])
        inside = self._enter(near)
        run([*inside, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(far.pid)])
        for holder, name, ip in ((near, "near", NEAR), (far, "far", FAR)):
            for line in (
                ["link", "set", "lo", "up"],
                ["addr", "add", f"{ip}/24", "dev", name],
                ["link", "set", name, "up"],
            ):
                run([*self._enter(holder), "ip", *line])
        return near, far

    def _hold(self, prefix: list[str]) -> Child:
        child = self.spawn([*prefix, "sh", "-c", "echo ready; exec sleep infinity"], log="namespace", talk=True)
        child.read_line(10)
        return child

    @staticmethod
    def _enter(holder: Child) -> list[str]:
        return ["nsenter", "-t", str(holder.pid), "-U", "-n", "--preserve-credentials"]

    def _certify(self) -> None:
        run(["nebula-cert", "ca", "-name", "bench"], cwd=self.folder)
        for name, ip in (("near", OVERLAY_NEAR), ("far", OVERLAY_FAR)):
            run(["nebula-cert", "sign", "-name", name, "-ip", f"{ip}/24"], cwd=self.folder)

    def _start(self, name: str, prefix: list[str], *, lighthouse: bool) -> Child:
        anything = [{"port": "any", "proto": "any", "host": "any"}]
        settings = {
            "pki": {key: f"{self.folder}/{file}" for key, file in _files(name).items()},
            "static_host_map": {OVERLAY_FAR: [f"{FAR}:4242"]},
            "lighthouse": {"am_lighthouse": lighthouse, "hosts": [] if lighthouse else [OVERLAY_FAR]},
            "listen": {"host": FAR if lighthouse else NEAR, "port": 4242},
            "tun": {"dev": f"nebula-{name}", "mtu": 1300},
            "logging": {"level": "warning", "format": "text"},
            "firewall": {"outbound": anything, "inbound": anything},
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        return self.spawn(["nebula", "-config", str(file)], log=name, prefix=prefix)

    def _await_address(self, prefix: list[str], ip: str) -> None:
        deadline = time.monotonic() + 10
        while ip not in run([*prefix, "ip", "-4", "-o", "addr"]):
            if time.monotonic() > deadline:
                raise Failed(f"no tun device with {ip}: {self._said()}")
            time.sleep(0.1)

    def _said(self) -> str:
        return next((child.tail() for child in self._nebulas if child.log.stat().st_size), "it said nothing")


def _files(name: str) -> dict[str, str]:
    return {"ca": "ca.crt", "cert": f"{name}.crt", "key": f"{name}.key"}
