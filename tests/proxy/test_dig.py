"""dig, the client of those who know, asks the DNS over UDP and TCP."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable

import pytest

from tests.proxy.nameserver import NameServer, answering
from tests.proxy.test_dns import BIG, Running, serving

pytestmark = pytest.mark.slow  # processes


@pytest.fixture
async def own(loopback_ip: Callable[[], str]) -> AsyncIterator[Running]:
    if shutil.which("dig") is None:
        refuse = pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip
        refuse("there is no dig: apt-get install bind9-dnsutils")
    async with (
        NameServer(loopback_ip(), answering("192.0.2.1", ttl=300)) as server,
        serving(loopback_ip(), server) as it,
    ):
        yield it


async def dig(own: Running, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "dig", f"@{own.ip}", "+tries=1", "+time=20", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
async def test_it_understands_all_of_our_answers(own: Running, transport: str) -> None:
    async def short(*arguments: str) -> list[str]:
        return sorted((await dig(own, transport, "+short", *arguments)).split("\n")[:-1])

    assert await short("web.default.svc.cluster.local") == ["127.1.0.1"]
    assert await short("_http._tcp.web.default.svc.cluster.local", "SRV") == ["0 100 80 web.default.svc.cluster.local."]
    assert await short("-x", "127.1.0.1") == ["web.default.svc.cluster.local."]
    assert await short("big-7.big.default.svc.cluster.local") == ["10.0.0.8"]
    assert await short("elsewhere.test") == ["192.0.2.1"]
    assert await short("+search", "+domain=default.svc.cluster.local", "web") == ["127.1.0.1"]  # as a pod's resolv.conf
    for name, status in (("web.default.svc.cluster.local", "NOERROR"), ("no.default.svc.cluster.local", "NXDOMAIN")):
        text = await dig(own, transport, name, "MX")
        assert f"status: {status}" in text and "SOA" in text
        assert "flags: qr aa rd ra" in text and "Malformed" not in text and "malformed" not in text


async def test_it_comes_back_over_tcp_for_what_does_not_fit(own: Running) -> None:
    text = await dig(own, "big.default.svc.cluster.local")
    assert ";; Truncated, retrying in TCP mode." in text
    assert f"ANSWER: {len(BIG.endpoints)}," in text
    assert "flags: qr aa tc rd ra" in await dig(own, "+ignore", "+noedns", "big.default.svc.cluster.local")


async def test_several_questions_on_one_connection(own: Running) -> None:
    names = ["web.default.svc.cluster.local", "elsewhere.test", "web.default"]
    assert (await dig(own, "+tcp", "+keepopen", "+short", *names)).split() == ["127.1.0.1", "192.0.2.1", "127.1.0.1"]
