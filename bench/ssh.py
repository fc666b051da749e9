"""OpenSSH port forwarding: `ssh -N -L` to an sshd of our own with throw-away keys."""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path
from typing import ClassVar

from bench.gauge import family
from bench.process import run
from bench.rig import PORTS, Address, NotRun, Rig, Roles

PORT = 22022
PRIVSEP = Path("/run/sshd")  # where Debian's sshd, started as root, wants an empty folder


class Ssh(Rig):
    """client → ssh -L ═ SSH ═ sshd → server"""

    name: ClassVar[str] = "ssh"
    title: ClassVar[str] = "ssh -L"
    bulk_share: ClassVar[float] = 0.5

    def prepare(self) -> None:
        if not shutil.which("ssh") or not self._sshd():
            raise NotRun("openssh-client or openssh-server is not installed")

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        near, far = f"{self.block}.1", f"{self.block}.2"
        if os.geteuid() == 0 and not PRIVSEP.exists():
            PRIVSEP.mkdir(mode=0o755)
            self._stack.callback(PRIVSEP.rmdir)
        for name in ("host", "user"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)])
        (self.folder / "authorized").write_text((self.folder / "user.pub").read_text())
        host_key = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"[{far}]:{PORT} {host_key}")
        settings = self.folder / "sshd.conf"
        settings.write_text(
            f"ListenAddress {far}:{PORT}\nHostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/authorized\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "AllowTcpForwarding local\nMaxSessions 1\nLogLevel ERROR\n"
        )
        self._server = self.spawn([self._sshd(), "-D", "-e", "-f", str(settings)], log="sshd")
        forwards: list[str] = []
        for entry, (host, port) in servers.items():
            forwards += ["-L", f"{near}:{PORTS[entry]}:{host}:{port}"]
        options = {
            "UserKnownHostsFile": f"{self.folder}/known",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ExitOnForwardFailure": "yes",
            "ConnectionAttempts": "10",  # a second apart, while sshd starts
            "LogLevel": "ERROR",
        }
        settled = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        self._client = self.spawn(
            [
                "ssh",
                "-F",
                "none",
                "-N",
                "-i",
                f"{self.folder}/user",
                "-p",
                str(PORT),
                *settled,
                *forwards,
                f"{getpass.getuser()}@{far}",
            ],
            log="ssh",
        )
        return {name: (near, PORTS[name]) for name in servers}

    def roles(self) -> Roles:
        return Roles(near=[self._client.pid], far=family([self._server.pid]))

    @staticmethod
    def _sshd() -> str:
        # sshd insists on being started by its full path.
        return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""
