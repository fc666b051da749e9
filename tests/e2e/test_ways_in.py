"""SOCKS5 and `causeway forward` across two nodes, with the clients that people have: OpenSSH, scp, nc, curl, and UDP."""

import asyncio
import contextlib
import getpass
import http.server
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.child import Child
from lab.manifest import merged
from lab.mesh import Mesh
from lab.node import Node
from tests import loopback
from tests.causeway.process import Process
from tests.e2e.conftest import print_logs, refuse
from tests.e2e.traffic import PATIENCE, eventually

pytestmark = pytest.mark.slow  # a mesh for the module

PORT = 10800
NOISE = random.Random(9).randbytes(6 << 20)
PAGE = b"hello from b\n" * 2000
PRIVSEP = Path("/run/sshd")  # where Debian's sshd, started as root, wants an empty folder


@dataclass
class Setting:
    """The mesh, and ports of 127.0.0.1 at b."""

    mesh: Mesh
    folder: Path
    ssh: int
    udp: tuple[int, int]
    dead: int  # nobody listens there
    denied: int  # not allowed

    @property
    def proxy(self) -> str:
        return f"{self.mesh.a.place.address}:{PORT}"

    @property
    def nc(self) -> list[str]:
        return [tool("nc"), "-X", "5", "-x", self.proxy]


def tool(name: str) -> str:
    """The path of a program; skips, or fails, when it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        refuse(f"{name} is not installed: make system")
    return path


@pytest.fixture(scope="module")
def running() -> Iterator[Setting]:
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    try:
        mesh = Mesh.loopback(folder)
        ssh, web, dead, denied, first, second = loopback.ports(6)
        configure(mesh, "a", {"socks5Proxy": {"enable": True, "listenAddress": mesh.a.place.address}})
        configure(mesh, "b", {"allowedTargets": [f"127.0.0.1:{port}" for port in (ssh, dead, first, second)]})
        mesh.publish("web", 80, web)
        try:
            with serving(mesh.b.place.address, web):
                asyncio.run(mesh.start(lean=True))
                yield Setting(mesh, folder, ssh, (first, second), dead, denied)
        finally:
            asyncio.run(mesh.stop())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def configure(mesh: Mesh, name: str, proxy: dict[str, object]) -> None:
    node = mesh.nodes[name]
    document = yaml.safe_load(node.config_file.read_text())
    node.configure(merged(document, {"modules": {"edgeProxy": proxy}}))


@contextlib.contextmanager
def serving(address: str, port: int) -> Iterator[None]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, port), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
async def setting(running: Setting) -> AsyncIterator[Setting]:
    try:
        await running.mesh.heal()
        await running.mesh.a.ping("b", timeout=60)
        yield running
    except BaseException:
        print_logs(running.mesh)
        raise


@pytest.fixture(scope="module")
def keys(running: Setting) -> Iterator[list[str]]:
    """Options of ssh for a throw-away sshd at b, of the user that runs the tests."""
    folder = running.folder / "ssh"
    folder.mkdir()
    if os.geteuid() == 0:
        PRIVSEP.mkdir(mode=0o755, exist_ok=True)
    keygen = tool("ssh-keygen")
    for name in ("host", "user"):
        child = Child([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], output=folder / "keygen")
        assert asyncio.run(child.wait(PATIENCE)) == 0
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[b]:{running.ssh} {(folder / 'host.pub').read_text()}")
    (folder / "sshd.conf").write_text(
        f"ListenAddress 127.0.0.1:{running.ssh}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nLogLevel ERROR\n"
    )
    server = Child([tool("sshd"), "-D", "-e", "-f", str(folder / "sshd.conf")], output=folder / "log")
    options = {
        "UserKnownHostsFile": f"{folder}/known",
        "StrictHostKeyChecking": "yes",
        "IdentityFile": f"{folder}/user",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "Port": str(running.ssh),
        "User": getpass.getuser(),
        "ProxyCommand": f"{' '.join(running.nc)} %h %p",
    }
    try:
        asyncio.run(eventually(lambda: listens(running.ssh), "sshd listens"))
        yield ["-F", "none", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    finally:
        server.signal(signal.SIGTERM)
        asyncio.run(server.wait(PATIENCE))


async def listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 5).close()
    return True


async def run(*command: str, data: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, output and complaints of a program."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out, err.decode()


async def test_ssh_by_the_name_of_a_node(setting: Setting, keys: list[str]) -> None:
    for number in range(3):  # the banner of sshd never overtakes the proxy's reply
        done = await run(tool("ssh"), *keys, "b", "cat", data=NOISE[:100_000])
        assert done == (0, NOISE[:100_000], ""), f"run {number}"


async def test_scp_there_and_back(setting: Setting, keys: list[str], tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(NOISE)
    scp = tool("scp")
    assert await run(scp, "-q", *keys, str(tmp_path / "there"), f"b:{tmp_path}/at-b") == (0, b"", "")
    assert await run(scp, "-q", *keys, f"b:{tmp_path}/at-b", str(tmp_path / "back")) == (0, b"", "")
    assert (tmp_path / "back").read_bytes() == NOISE


async def test_curl_by_every_name_of_a_service(setting: Setting) -> None:
    curl = [tool("curl"), "-sS", "-m", str(int(PATIENCE)), "--socks5-hostname", setting.proxy]
    for host in ("web", "web.default", "web.default.svc.cluster.local", setting.mesh.cluster_ips[0]):
        assert await run(*curl, f"http://{host}/") == (0, PAGE, ""), host


async def test_refusals_say_why_on_both_sides(setting: Setting) -> None:
    code, out, err = await run(*setting.nc, "b", str(setting.denied))
    assert (code, out) == (1, b"")
    assert "not allowed" in err.lower(), err
    why = f"tcp 127.0.0.1:{setting.denied} for node 'a' is not an endpoint of a known service on node 'b'"
    for node in (setting.mesh.a, setting.mesh.b):
        assert why in node.log("proxy").read_text(), node.name
    _, _, err = await run(*setting.nc, "b", str(setting.dead))
    assert "refused" in err.lower(), err


async def test_datagrams(setting: Setting) -> None:
    """Two targets at b by one association; sizes up to the largest that loopback takes with the names around."""
    with contextlib.ExitStack() as stack:
        servers = []
        for port in setting.udp:
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind(("127.0.0.1", port))
            server.setblocking(False)
            servers.append(server)
        control = stack.enter_context(socket.create_connection((setting.mesh.a.place.address, PORT), PATIENCE))
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        answer = b""
        while len(answer) < 12:
            answer += control.recv(12 - len(answer))
        assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.bind(("127.0.0.1", 0))
        client.connect((socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big")))
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for size in (1, 0, 1200, 9000, 60_000):
            for port, server in zip(setting.udp, servers, strict=True):
                name = b"\0\0\0\x03\x01b" + port.to_bytes(2, "big")
                client.send(name + NOISE[:size])
                async with asyncio.timeout(PATIENCE):
                    got, back = await loop.sock_recvfrom(server, 65_535)
                    assert got == NOISE[:size]
                    await loop.sock_sendto(server, got[::-1], back)
                    assert await loop.sock_recv(client, 65_535) == name + NOISE[:size][::-1]


async def test_connections_outlive_the_proxy(setting: Setting, keys: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        tool("ssh"), *keys, "b", "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for word in (b"before\n", b"while it is away\n", b"after\n"):
            process.stdin.write(word)
            async with asyncio.timeout(PATIENCE):
                assert await process.stdout.readline() == word
            if word == b"before\n":
                setting.mesh.a.signal(signal.SIGTERM, "proxy")
                await eventually(lambda: gone(setting.mesh), "the proxy has ended")
            else:
                await setting.mesh.heal()
        process.stdin.write_eof()
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await eventually(lambda: reached(setting, keys), "the next one serves")


async def gone(mesh: Mesh) -> bool:
    return not mesh.a.running("proxy")


async def reached(setting: Setting, keys: list[str]) -> bool:
    return (await run(tool("ssh"), *keys, "b", "true"))[0] == 0


# ── causeway forward ──


@contextlib.contextmanager
def forwarding(node: Node, *arguments: str) -> Iterator[tuple[Process, int]]:
    """The command at a node, and the port on which it listens. It is interrupted at the end, and must end well."""
    command = [sys.executable, "-m", "causeway", "forward", *arguments, "--run-dir", str(node.run_dir)]
    with Process(command) as process:
        port = int(process.wait_for(r"listening on 127\.0\.0\.1:(\d+) ")[1])
        yield process, port
        process.signal(signal.SIGINT)
        assert process.end() == 0, process.lines


async def test_a_service_at_a_local_port(setting: Setting) -> None:
    """From the node where it is not, and from the one where it is."""
    for node in (setting.mesh.a, setting.mesh.b):
        with forwarding(node, "0", "web.default:80") as (process, port):
            for _ in range(2):
                assert await run(tool("curl"), "-sS", f"http://127.0.0.1:{port}/") == (0, PAGE, "")
            assert len(process.lines) == 1, process.lines


async def test_a_target_at_a_node_outlives_the_command(setting: Setting, keys: list[str]) -> None:
    with forwarding(setting.mesh.a, "0", f"b:127.0.0.1:{setting.ssh}") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"SSH-2.0-")
    writer.write(b"SSH-2.0-test\r\n")
    async with asyncio.timeout(PATIENCE):
        assert await reader.readexactly(4), "sshd's keys: the connection stands, with nobody forwarding"
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_client_that_is_refused_is_told_of(setting: Setting) -> None:
    for where, reason in ((setting.denied, "denied"), (setting.dead, "connection-refused")):
        with forwarding(setting.mesh.a, "0", f"b:127.0.0.1:{where}") as (process, port):
            with pytest.raises(ConnectionResetError):
                reader, _ = await asyncio.open_connection("127.0.0.1", port)
                async with asyncio.timeout(PATIENCE):
                    await reader.read()
            assert process.wait_for(rf"^refused 127\.0\.0\.1:\d+ \({reason}\): .*{where}")


async def test_a_node_that_nobody_knows_costs_nobody_all_his_patience(setting: Setting) -> None:
    with forwarding(setting.mesh.a, "-w", "600", "0", "nobody:127.0.0.1:22") as (process, port):
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await reader.read()
        assert process.wait_for(r"^refused 127\.0\.0\.1:\d+ \(unknown-node\): nobody knows a node nobody$")
    nc = (*setting.nc, "nobody", "22")
    assert (await run(*nc))[0] == 1


async def test_datagrams_at_a_local_port(setting: Setting) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        forwarding(setting.mesh.a, "-u", "0", f"b:127.0.0.1:{setting.udp[0]}") as (_, port),
        contextlib.ExitStack() as stack,
    ):
        server.bind(("127.0.0.1", setting.udp[0]))
        server.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(2):  # two clients, each with its own flow
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            for size in (1, 0, 1200, 60_000):
                client.send(NOISE[:size])
                async with asyncio.timeout(PATIENCE):
                    got, back = await loop.sock_recvfrom(server, 65_535)
                    assert got == NOISE[:size]
                    await loop.sock_sendto(server, got[::-1], back)
                    assert await loop.sock_recv(client, 65_535) == NOISE[:size][::-1]


async def test_what_it_says_to_programs_and_of_mistakes(setting: Setting) -> None:
    command = [sys.executable, "-m", "causeway", "forward"]
    options = ["--run-dir", str(setting.mesh.a.run_dir)]
    with Process([*command, "0", f"b:127.0.0.1:{setting.denied}", "-o", "json", *options]) as process:
        process.wait_for("listening")
        said = json.loads(process.lines[0])
        target = f"127.0.0.1:{setting.denied} at b"
        assert said == {"event": "listening", "address": said["address"], "network": "tcp", "target": target}
        host, _, port = said["address"].rpartition(":")
        with pytest.raises(ConnectionResetError):
            reader, _ = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(PATIENCE):
                await reader.read()
        process.wait_for("refused")
        said = json.loads(process.lines[1])
        assert (said["event"], said["target"], said["reason"]) == ("refused", target, "denied")
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    code, _, err = await run(*command, "0", "wen:80", *options)
    assert (code, err) == (1, "causeway: there is no service default/wen: did you mean default/web?\n")
    code, _, err = await run(*command, "0", "web:81", *options)
    assert (code, err) == (2, "causeway: default/web has no TCP port 81; it has 80 (main)\n")
