"""OpenSSH: commands and scp, by every way that ssh may go."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable

from lab.clients import content
from lab.clients.case import USER, Case, Machine, Port, Use, expect
from lab.clients.content import MIB

PORT = Port(2222)


def _through_nc(use: Use) -> list[str]:
    program = [sys.executable, "-m", "causeway", "nc", "--run-dir", str(use.client.run_dir)]
    return [
        "-o",
        "ProxyCommand=" + shlex.join([*program, use.server.place.name, f"{use.server.address}:{PORT.number}"]),
    ]


def _through_socks(use: Use) -> list[str]:
    name = f"{use.server.address}.{use.server.place.name}"  # an address at a node
    return [
        "-o",
        f"HostName={name}",
        "-o",
        f"Port={PORT.number}",
        "-o",
        "ProxyCommand=nc -X 5 -x 127.0.0.1:10800 %h %p",
    ]


WAYS: dict[str, Callable[[Use], list[str]]] = {
    "causeway nc": _through_nc,
    "SOCKS5": _through_socks,
    "a service": lambda use: ["-o", f"HostName={use.address}", "-o", f"Port={PORT.number}"],
}
"""Options of ssh and scp by the name of the way."""


class Ssh(Case):
    """A server for one user, with keys made for this."""

    name = "OpenSSH"
    tools = ("sshd", "ssh", "scp", "ssh-keygen", "nc")
    ports = (PORT,)

    async def serve(self, machine: Machine) -> None:
        folder = machine.folder / "ssh"
        folder.mkdir()
        for name in ("host", "user"):
            await machine.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        settings = folder / "sshd.conf"
        settings.write_text(
            f"ListenAddress {machine.address}:{PORT.number}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
        )
        machine.start("sshd", ["sshd", "-D", "-e", "-f", str(settings)])

    async def run(self, use: Use) -> None:
        for way, options in WAYS.items():
            await self._run(use, way, options(use))

    async def _run(self, use: Use, way: str, options: list[str]) -> None:
        keys = use.server.folder / "ssh"
        known = use.client.folder / "known"
        known.write_text(f"server {(keys / 'host.pub').read_text()}")
        common = ["-F", "none", "-i", str(keys / "user"), *options]
        for key, value in {
            "UserKnownHostsFile": str(known),
            "HostKeyAlias": "server",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "User": USER,
            "LogLevel": "ERROR",
        }.items():
            common += ["-o", f"{key}={value}"]

        async def command() -> str:
            said = await use.client.call("ssh", *common, "server", "echo here; exit 7", code=7)
            expect(said.strip() == "here", f"it said {said!r}")
            return "output and exit code"

        async def copy(up: bool) -> str:
            here, there = use.client.folder / "scp", use.server.folder / "scp"
            data = content.make(here if up else there, (2 if use.brief else 32) * MIB)
            ways = [str(here), f"server:{there}"]
            start = time.monotonic()
            await use.client.call("scp", "-q", *common, *(ways if up else reversed(ways)))
            seconds = time.monotonic() - start
            content.same(there if up else here, data)
            there.unlink()
            here.unlink()
            return f"{len(data) / MIB / seconds:.1f} MiB/s with the start"

        await use.attempt(f"command by {way}", command)
        await use.attempt(f"scp up by {way}", lambda: copy(True))
        await use.attempt(f"scp down by {way}", lambda: copy(False))
