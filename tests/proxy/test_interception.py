"""Cluster IPs that no host has, intercepted by nftables: real nodes, a pod, kill -9, and neighbours in the kernel."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.child import Child
from lab.node import Node
from lab.rootless import available, probe
from services.proxy import ownership
from services.proxy.nft import NftError
from tests.proxy.interception_lab import (
    IP4,
    IP6,
    PATIENCE,
    POD4,
    POD6,
    PORT,
    TARGET,
    Lab,
    ask,
    datagrams,
    manifest,
    say,
    stream,
    until,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FAR, FAR6 = f"{IP4}:{PORT}", f"[{IP6}]:{PORT}"

# As kube-proxy does it: translate service addresses at dstnat, refuse what has no endpoint.
KUBE_PROXY = """
table ip kube-proxy {
  chain services {
    ip daddr 10.96.0.0/12 tcp dport 80 dnat to 192.0.2.77:1
  }
  chain nat-prerouting {
    type nat hook prerouting priority dstnat;
    jump services
  }
  chain nat-output {
    type nat hook output priority -100;
    jump services
  }
  chain filter-output {
    type filter hook output priority filter;
    ip daddr 10.96.0.0/12 ct state new reject
  }
}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Lab]:
    why = probe()
    if why is not None:
        refuse = pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip
        refuse(f"{available() or 'run the tests under `python -m lab.rootless`'}: {why}")
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    lab = Lab(folder)
    try:
        asyncio.run(lab.start())
        yield lab
    finally:
        asyncio.run(lab.stop())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def lab(running: Lab) -> Lab:
    """Node a intercepts the service."""
    running.a.publish(running.web)
    if not running.a.running("proxy"):
        running.a.start("proxy")
        await running.a.ready("proxy")
    await running.intercepting(FAR, FAR6)
    return running


@pytest.mark.parametrize("place", ["host", "pod"])
async def test_both_transports_and_versions(lab: Lab, place: str) -> None:
    client = lab.host if place == "host" else lab.pod

    def talk() -> None:
        for ip in (IP4, IP6):
            with stream(client, ip) as sock:
                assert sock.getpeername()[:2] == (ip, PORT)
                say(sock, os.urandom(200_000))
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        with datagrams(client) as socks:
            for size in (3, 0, 1400, 9000, 1, 512):  # every border is kept, and one socket serves all
                for ip, sock in socks.items():
                    ask(sock, os.urandom(size), ip)

    await asyncio.to_thread(talk)
    assert (await lab.a.proxy()).warnings == []


async def test_many_clients_at_once_over_udp(lab: Lab) -> None:
    """Each has an address of its own, and gets its own answers."""

    def talk(number: int) -> None:
        with datagrams(lab.pod if number % 2 else lab.host) as socks:
            for turn in range(3):
                for ip, sock in socks.items():
                    ask(sock, b"%d of %d" % (turn, number), ip)

    await asyncio.gather(*(asyncio.to_thread(talk, number) for number in range(40)))


@pytest.mark.parametrize("place", ["host", "pod"])
async def test_what_no_service_has_is_refused_at_once(lab: Lab, place: str) -> None:
    client = lab.host if place == "host" else lab.pod
    for ip in (IP4, IP6):
        with pytest.raises(ConnectionRefusedError), stream(client, ip, PORT + 1):
            pass
        with client.socket(socket.SOCK_DGRAM, socket.AF_INET6 if ip == IP6 else socket.AF_INET) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((ip, PORT + 1))
            # The host's own datagram is refused by `send` itself, a pod's by ICMP.
            with pytest.raises((PermissionError, ConnectionRefusedError)):
                sock.send(b"anybody?")
                sock.recv(1)


async def test_the_listeners_are_not_for_who_was_not_redirected(lab: Lab) -> None:
    port = 20009
    for place, ip in ((lab.pod, f"{POD4}.1"), (lab.pod, f"{POD6}1"), (lab.host, "127.0.0.1")):
        with pytest.raises(ConnectionRefusedError), stream(place, ip, port):
            pass


async def test_streams_outlive_kill_and_stop_of_the_proxy(lab: Lab) -> None:
    """The socket is with the tunnel, the translation with conntrack, the rules wait for the next proxy."""
    with stream(lab.host, IP4) as mine, stream(lab.pod, IP6) as pods, datagrams(lab.pod) as socks:
        flows = (mine, pods)

        async def talk() -> None:
            for sock in flows:
                await asyncio.to_thread(say, sock, os.urandom(100_000))
            await asyncio.to_thread(ask, socks[IP4], os.urandom(100), IP4)

        await talk()
        before = lab.table()
        await lab.a.kill("proxy")
        assert lab.table() == before
        await talk()
        with pytest.raises(ConnectionRefusedError), stream(lab.host, IP4):  # nobody behind the redirection
            pass
        lab.a.start("proxy")
        await lab.a.ready("proxy")
        await lab.intercepting(FAR, FAR6)
        assert lab.table() == before  # the same port for the same UDP address, too
        await talk()

        assert await lab.a.stop("proxy") == {"proxy": 0}
        assert lab.table()  # without it nobody would translate for the streams …
        assert "redirect" not in lab.table()  # … but nothing is intercepted any more
        await talk_streams(flows)
        lab.a.start("proxy")
        await lab.a.ready("proxy")
        await lab.intercepting(FAR, FAR6)
        await talk()


async def talk_streams(flows: tuple[socket.socket, ...]) -> None:
    for sock in flows:
        await asyncio.to_thread(say, sock, os.urandom(100_000))


async def test_no_service_no_table(lab: Lab) -> None:
    lab.a.publish([])

    async def gone() -> bool:
        return lab.table() == ""

    await until(gone, "no table without services")


async def test_who_asked_too_early_is_answered(lab: Lab) -> None:
    """conntrack has decided on a SYN or a flow before the service was there; both are tried again from the same port."""
    lab.host.nft(
        "table ip early {\n chain leave {\n type nat hook postrouting priority srcnat;\n ct state new masquerade\n }\n}"
    )
    try:
        other = manifest("other", ips=["10.96.0.13"], node="b", address=lab.b.place.address)
        loop = asyncio.get_running_loop()
        with lab.host.socket() as early, lab.pod.socket(socket.SOCK_DGRAM) as flow:
            early.setblocking(False)
            connecting = asyncio.create_task(loop.sock_connect(early, ("10.96.0.13", PORT)))
            flow.sendto(b"early", ("10.96.0.13", PORT))
            await asyncio.sleep(0)
            lab.a.publish([*lab.web, *other])
            await lab.intercepting(FAR, FAR6, "10.96.0.13:80")
            await asyncio.to_thread(ask, flow, b"again", "10.96.0.13")
            await asyncio.wait_for(connecting, PATIENCE)
            early.settimeout(PATIENCE)
            await asyncio.to_thread(say, early, b"at last")
    finally:
        lab.host.nft("delete table ip early")


async def test_elements_change_and_rules_do_not(lab: Lab) -> None:
    def rules() -> str:
        return lab.host.run(["nft", "-a", "list", "table", "inet", "causeway"]).partition("chain")[2]

    before = rules()
    other = manifest("other", ips=["10.96.0.11"], node="b", address=lab.b.place.address)
    lab.a.publish([*lab.web, *other])
    await lab.intercepting(FAR, FAR6, "10.96.0.11:80")
    with stream(lab.pod, "10.96.0.11") as sock:
        await asyncio.to_thread(say, sock, b"other")
    lab.a.publish(lab.web)
    await lab.intercepting(FAR, FAR6)

    async def gone() -> bool:
        return "10.96.0.11" not in lab.table()

    await until(gone, "its elements are taken away")
    assert rules() == before  # handles included


async def test_cleanup_is_one_command(lab: Lab) -> None:
    def cleanup() -> "subprocess.CompletedProcess[str]":
        with lab.host.entered():
            return subprocess.run(
                [sys.executable, "-m", "causeway", "proxy", "--cleanup"], capture_output=True, text=True, timeout=60
            )

    with pytest.raises(NftError, match="another proxy intercepts"):
        lab.host.call(ownership.cleanup)
    await lab.a.kill("proxy")
    assert lab.table()
    done = await asyncio.to_thread(cleanup)
    assert (done.returncode, done.stderr) == (0, "")
    assert lab.table() == ""

    other = lab.host.call(ownership.lock)
    assert other is not None
    with other:  # somebody else intercepts
        lab.a.start("proxy")
        await lab.a.ready("proxy")

        async def told() -> bool:
            rows = (await lab.a.proxy()).listeners
            return len(rows) == 4 and all("another proxy intercepts" in it.error for it in rows)

        await until(told, "every address says why it is not served")
        assert lab.table() == ""


async def test_kube_proxy_beside(lab: Lab) -> None:
    """We come first, for our addresses only, touch no other table, and are gone after a stop."""
    lab.host.nft(KUBE_PROXY)
    try:
        foreign = lab.host.run(["nft", "list", "table", "ip", "kube-proxy"])
        for place in (lab.host, lab.pod):
            with stream(place, IP4) as sock:
                await asyncio.to_thread(say, sock, b"first")
        lab.a.publish(manifest("other", ips=["10.96.0.11"], node="b", address=lab.b.place.address))
        await lab.intercepting("10.96.0.11:80")
        assert await lab.a.stop("proxy") == {"proxy": 0}
        assert lab.table() == ""
        assert lab.host.run(["nft", "list", "table", "ip", "kube-proxy"]) == foreign
    finally:
        lab.host.nft("delete table ip kube-proxy")


async def test_a_table_that_somebody_flushed_comes_back(lab: Lab) -> None:
    before = lab.table()

    async def back() -> bool:
        return lab.table() == before

    for crime in (
        "flush ruleset",
        "flush chain inet causeway prerouting",
        f"delete element inet causeway tcp4 {{ {IP4} . {PORT} }}",
    ):
        lab.host.nft(crime)
        assert lab.table() != before
        await until(back, f"the table is whole again after: {crime}")
    with stream(lab.pod, IP4) as sock:
        await asyncio.to_thread(say, sock, b"back")
    assert any("changed by somebody else" in warning for warning in (await lab.a.proxy()).warnings)


async def test_our_own_backends_are_not_intercepted(lab: Lab) -> None:
    """A service whose address is that of its backend, a machine near this node: whom we dial there must not be ourselves."""
    device = f"{POD4}.2"
    server = lab.pod.socket()
    with server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((device, TARGET))
        server.listen()
        server.settimeout(PATIENCE)
        here = manifest("device", ips=[device], node="a", address=device, port=TARGET)
        ways = manifest("way", ips=["10.96.0.12"], node="a", address=device)
        lab.a.publish([*lab.web, *here, *ways])
        await lab.intercepting(FAR, FAR6, "10.96.0.12:80")
        accepted = (await lab.a.proxy()).accepted_total
        for ip, port, passed in ((device, TARGET, 0), ("10.96.0.12", PORT, 1)):
            with stream(lab.host, ip, port) as sock:
                sock.sendall(b"hello")
                peer, _ = await asyncio.to_thread(server.accept)
                with peer:
                    assert await asyncio.to_thread(peer.recv, 10) == b"hello"
            accepted += passed
            assert (await lab.a.proxy()).accepted_total == accepted
        rows = {it.address: it for it in (await lab.a.proxy()).listeners}
        assert "endpoint of this node" in rows[f"{device}:{TARGET}"].error


async def test_a_pod_whose_interface_has_no_address(lab: Lab) -> None:
    """`listenInterface` says where its traffic goes to; `subNet` what is refused though no service has it."""
    for place in (lab.far_host, lab.far_pod):
        with stream(place, IP4) as sock:
            await asyncio.to_thread(say, sock, b"hello")
        with place.socket(socket.SOCK_DGRAM) as flow:
            await asyncio.to_thread(ask, flow, b"hello", IP4)
        with pytest.raises(ConnectionRefusedError), stream(place, "10.96.77.77"):
            pass


async def test_without_permission_it_is_a_line_of_status(lab: Lab) -> None:
    place = lab.b.place
    node = Node(place, lab.folder / "c", psk=lab.psk, modules={"edgeProxy": {"interception": {"enable": "on"}}})
    argv = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "--",
        sys.executable,
        "-m",
        "services.proxy",
    ]
    proxy = Child([*argv, "--config", str(node.config_file)], output=node.log("proxy"), namespace=place.namespace)
    try:

        async def told() -> bool:
            warnings = (await node.proxy()).warnings
            return any("not intercepted" in it and "CAP_NET_ADMIN" in it for it in warnings)

        await until(told, "the warning")
    finally:
        assert await proxy.stop() == 0
