"""A cluster with an authority of its own: certificates are issued, renewed under live streams, and revoked."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from causeway.ca import ca
from lab.mesh import Mesh
from lab.node import Node
from tests.e2e.traffic import PORT, TARGET_PORT, Traffic, echo_server, eventually

pytestmark = pytest.mark.slow


@pytest.fixture
async def mesh(short_path: Path) -> AsyncIterator[Mesh]:
    mesh = Mesh.loopback(short_path)
    run_ca("init", "--cluster", "lab", "--out", short_path / "ca")
    for node in mesh.nodes.values():
        issue(short_path, node)
        trust_the_ca(node)
    mesh.publish("echo", PORT, TARGET_PORT)
    async with echo_server(mesh.b.place), mesh.running(lean=True):
        await mesh.a.ping("b", timeout=60)
        await eventually(mesh.warm, "a and b have a link over each relay")
        yield mesh


def run_ca(*arguments: str | Path) -> None:
    result = CliRunner().invoke(ca, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def issue(home: Path, node: Node) -> None:
    """As a person does it: the folder that `issue` writes is copied to the node, the certificate last."""
    run_ca("issue", node.name, "--ca", home / "ca", "--out", home / "issued" / node.name)
    for name in ("ca.crt", "ca.crl", "node.key", "node.crt"):
        shutil.copy(home / "issued" / node.name / name, node.folder / name)


def trust_the_ca(node: Node) -> None:
    config = yaml.safe_load(node.config_file.read_text())
    names = {"caFile": "ca.crt", "certFile": "node.crt", "keyFile": "node.key", "crlFile": "ca.crl"}
    # The certificate is looked at twelve times in this life: once a second.
    psk = {"enable": False, "certificateLifetimeSeconds": 12}
    config["modules"]["edgeTunnel"].update(ca={"enable": True, **names}, psk=psk)
    node.configure(config)


async def test_certificates_are_renewed_and_revoked_under_live_streams(mesh: Mesh, short_path: Path) -> None:
    sessions = [(await node.tunnel()).sessions[0].id for node in (mesh.a, mesh.b)]
    relays = [mesh.r1.place, mesh.r2.place]
    other = Node(mesh.another_place("other"), mesh.folder / "other", psk=mesh.psk, relays=relays, relay_mode="off")
    issue(short_path, other)
    trust_the_ca(other)
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        for node in mesh.nodes.values():
            issue(short_path, node)

        async def renewed() -> bool:
            logs = [node.log(it).read_text() for node in mesh.nodes.values() for it in node.started]
            return all("credentials renewed" in log for log in logs)

        await eventually(renewed, "every service takes its new certificate")
        await mesh.r1.restart("relay")
        await eventually(mesh.warm, "both ends meet at r1 under their new certificates")
        await traffic.flows()
        try:
            other.start("discovery", "tunnel")
            await other.ready("discovery", "tunnel")
            assert await other.ping("b", timeout=60) > 0
            run_ca("revoke", "other", "--ca", short_path / "ca")
            for node in mesh.nodes.values():
                shutil.copy(short_path / "ca" / "ca.crl", node.folder / "ca.crl")
            await other.restart("tunnel")

            async def it_says() -> bool:
                return any("revoked" in it.state for it in (await other.tunnel()).relays)

            async def they_say() -> bool:
                return all(
                    "certificate of other was revoked" in it.log("relay").read_text() for it in (mesh.r1, mesh.r2)
                )

            await eventually(it_says, "the revoked node says that it is")
            await eventually(they_say, "the relays say whom they refuse")
            issue(short_path, other)
            assert await other.ping("b", timeout=60) > 0, "with a new certificate it belongs again"
        finally:
            await other.stop()
        await traffic.flows()
    assert sessions == [(await node.tunnel()).sessions[0].id for node in (mesh.a, mesh.b)]


async def test_a_service_does_not_start_without_its_revocation_list(mesh: Mesh) -> None:
    (mesh.a.folder / "ca.crl").unlink()

    async def warned() -> bool:
        return any("ca.crl" in it and "stays in force" in it for it in (await mesh.a.tunnel()).warnings)

    await eventually(warned, "a running service warns")
    await mesh.a.stop("proxy")
    mesh.a.start("proxy")
    code = await mesh.a._children["proxy"].wait(60)
    assert code == 2 and "the revocation list cannot be read" in mesh.a.tail("proxy")
    shutil.copy(mesh.b.folder / "ca.crl", mesh.a.folder / "ca.crl")
    mesh.a.start("proxy")
    await asyncio.gather(mesh.a.ready("proxy"), mesh.a.ping("b", timeout=60))
