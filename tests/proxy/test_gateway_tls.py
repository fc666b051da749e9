"""TLS at the ingress gateway, with curl and openssl as clients: certificates by name, mutual, passed through, renewed."""

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import websockets

from services.proxy.core.gateway.model import Tls
from services.proxy.gateway import addresses
from services.proxy.gateway import gateway as module
from services.proxy.gateway.certificates import Certificates
from tests.proxy.conftest import until
from tests.proxy.ingress import Authority, Ingress, gateway, route, routes, secret, server, to

pytestmark = pytest.mark.slow  # curl and openssl in most of them


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture
def trust(ca: Authority, tmp_path: Path) -> tuple[str, str]:
    """curl's arguments to trust the CA."""
    (tmp_path / "ca.pem").write_text(ca.pem)
    return "--cacert", str(tmp_path / "ca.pem")


def identity(pems: dict[str, str], folder: Path) -> tuple[str, ...]:
    """curl's arguments to show a certificate of its own."""
    (folder / "client.crt").write_text(pems["tls.crt"])
    (folder / "client.key").write_text(pems["tls.key"])
    return "--cert", str(folder / "client.crt"), "--key", str(folder / "client.key")


def put(folder: Path, pems: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in pems.items():
        (folder / name).write_text(text)


def simple(port: int, host: str, credential: str = "", **more: Any) -> dict[str, Any]:
    return server(port, "HTTPS", host, mode="SIMPLE", credentialName=credential or host.strip("*."), **more)


async def shown(ingress: Ingress, name: str | None, port: int = 8443) -> str:
    """The subject of the certificate that is shown to who asks for `name`; why none was, otherwise."""
    arguments = ["-servername", name] if name else ["-noservername"]
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"{ingress.ip}:{port}", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    for line in out.decode().splitlines():
        if line.startswith("subject="):
            return line.rpartition("= ")[2].rpartition("=")[2].strip()
    return out.decode()


async def test_the_name_asked_for_selects_the_certificate(ingress: Ingress, ca: Authority, trust: Any) -> None:
    await ingress.backend("web")
    put(ingress.folder / "b.test", ca.issue("b.test"))
    put(ingress.folder / "default" / "wild", ca.issue("*.wild.test"))
    files = ca.issue("files.test")
    put(ingress.folder / "elsewhere", files)
    paths = {"serverCertificate": "tls.crt", "privateKey": "tls.key"}
    await ingress.set(
        secret("a.test", ca.issue("a.test")),
        gateway(
            simple(8443, "a.test"),
            simple(8443, "b.test"),
            simple(8443, "*.wild.test", "wild"),
            server(
                8443,
                "HTTPS",
                "files.test",
                mode="SIMPLE",
                **{key: str(ingress.folder / "elsewhere" / name) for key, name in paths.items()},
            ),
        ),
        routes(route("web")),
    )
    for name, certificate in (
        ("a.test", "a.test"),
        ("b.test", "b.test"),
        ("x.wild.test", "*.wild.test"),
        ("files.test", "files.test"),
    ):
        assert await shown(ingress, name) == certificate
        status, body = await ingress.curl(f"https://{name}:8443/", *trust)
        assert status == "200" and json.loads(body)["headers"]["x-forwarded-proto"] == "https"
    assert "unrecognized name" in await shown(ingress, "unknown.test")
    assert "unrecognized name" in await shown(ingress, None)
    # A connection for one name is not good for another.
    status, body = await ingress.curl("https://a.test:8443/", *trust, "-H", "Host: b.test")
    assert (status, body) == ("421", "this connection is for another host")


async def test_mutual_tls_needs_a_certificate_of_the_right_authority(
    ingress: Ingress, ca: Authority, trust: Any, tmp_path: Path
) -> None:
    await ingress.backend("web")
    mutual = server(8443, "HTTPS", "m.test", mode="MUTUAL", credentialName="m.test")
    maybe = server(8443, "HTTPS", "o.test", mode="OPTIONAL_MUTUAL", credentialName="o.test")
    secrets = [secret(name, ca.issue(name)) for name in ("m.test", "o.test")]
    await ingress.set(*secrets, gateway(mutual, maybe), routes(route("web")))
    known = identity(ca.issue("client"), tmp_path)
    assert (await ingress.curl("https://m.test:8443/", *trust, *known))[0] == "200"
    assert (await ingress.curl("https://m.test:8443/", *trust))[0] == "000"
    assert (await ingress.curl("https://o.test:8443/", *trust))[0] == "200"
    # What one server asks for is not to be had through another one without.
    assert (await ingress.curl("https://o.test:8443/", *trust, "-H", "Host: m.test"))[0] == "421"
    stranger = identity(Authority("ca").issue("client"), tmp_path)
    for host in ("m.test", "o.test"):
        assert (await ingress.curl(f"https://{host}:8443/", *trust, *stranger))[0] == "000"


async def test_tls_that_passes_through_and_tls_that_ends_before_a_stream(
    ingress: Ingress, ca: Authority, trust: Any
) -> None:
    """The backend of the first has its own certificate; the one of the second speaks without TLS."""
    web = await ingress.backend("web")
    pems = ca.issue("own.test")
    put(ingress.folder / "own", pems)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ingress.folder / "own" / "tls.crt", ingress.folder / "own" / "tls.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nown")
        writer.close()

    own = await asyncio.start_server(serve, ingress.loopback_ip(), 0, ssl=context)
    ingress.serve("own", own.sockets[0].getsockname())
    await ingress.set(
        secret("web.test", ca.issue("web.test")),
        gateway(
            server(8443, "TLS", "own.test", mode="PASSTHROUGH"),
            simple(8443, "web.test"),
            server(8444, "TLS", "web.test", mode="SIMPLE", credentialName="web.test"),
        ),
        routes(
            route("web"),
            tls=[{"match": [{"sniHosts": ["own.test"]}], "route": [to("own")]}],
            tcp=[{"match": [{"port": 8444}], "route": [to("web")]}],
        ),
    )
    assert await ingress.curl("https://own.test:8443/", *trust) == ("200", "own")
    for port in (8443, 8444):
        status, body = await ingress.curl(f"https://web.test:{port}/", *trust)
        assert (status, json.loads(body)["backend"]) == ("200", "web")
    assert json.loads(body)["headers"].get("x-forwarded-for") is None  # of the stream nobody read a header
    assert web.requests["GET"] == 2
    own.close()


async def test_websockets_in_tls(ingress: Ingress, ca: Authority) -> None:
    await ingress.backend("web")
    await ingress.set(secret("a.test", ca.issue("a.test")), gateway(simple(8443, "a.test")), routes(route("web")))
    context = ssl.create_default_context(cadata=ca.pem)
    async with websockets.connect("wss://a.test:8443/ws", host=ingress.ip, port=8443, ssl=context) as client:
        blob = bytes(1 << 20)
        for _ in range(3):
            await client.send(blob)
            assert await client.recv() == blob
        await client.send("bye")
        await client.wait_closed()
        assert client.close_code == 4001


async def test_large_bodies_in_tls(ingress: Ingress, ca: Authority, trust: Any, tmp_path: Path) -> None:
    await ingress.backend("web")
    await ingress.set(secret("a.test", ca.issue("a.test")), gateway(simple(8443, "a.test")), routes(route("web")))
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcdef" * 500_000)
    status, body = await ingress.curl("https://a.test:8443/post", *trust, "-T", str(large))
    assert (status, json.loads(body)["size"]) == ("200", large.stat().st_size)
    got = tmp_path / "got"
    status, _ = await ingress.curl("https://a.test:8443/large?size=8000000", *trust, "-o", str(got))
    assert status == "200" and got.read_bytes() == bytes(range(256)) * 31250


async def test_new_certificates_are_taken_while_running(
    ingress: Ingress, ca: Authority, trust: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD", 0.1)
    await ingress.backend("web")
    folder = ingress.folder / "file.test"
    await ingress.set(gateway(simple(8443, "file.test"), simple(8443, "s.test")), routes(route("web")), problems=2)
    assert "has no tls.crt" in " ".join(ingress.node.status().warnings)
    assert "internal error" in await shown(ingress, "file.test")
    put(folder, ca.issue("file.test"))
    await ingress.set(secret("s.test", ca.issue("s.test")))
    assert (await ingress.curl("https://file.test:8443/", *trust))[0] == "200"
    assert (await ingress.curl("https://s.test:8443/", *trust))[0] == "200"
    # Renewed, in the file and in the Secret.
    put(folder, ca.issue("renewed.test"))
    ingress.node.discovery.put_objects(secret("s.test", ca.issue("other.test")))

    async def renewed(name: str, certificate: str) -> None:
        async with asyncio.timeout(20):
            while await shown(ingress, name) != certificate:
                pass

    await renewed("file.test", "renewed.test")
    await renewed("s.test", "other.test")
    # A bad one changes nothing.
    put(folder, {"tls.key": "nonsense"})
    warnings: Any = await until(lambda: ingress.node.status().warnings)
    assert "the one from before stays" in warnings[0] and "\n" not in warnings[0]
    assert await shown(ingress, "file.test") == "renewed.test"


async def test_http_is_sent_on_to_https(ingress: Ingress, ca: Authority, trust: Any) -> None:
    await ingress.backend("web")
    await ingress.set(
        secret("a.test", ca.issue("a.test")),
        gateway(server(8080, "HTTP", "a.test", httpsRedirect=True), simple(8443, "a.test")),
        routes(route("web")),
    )
    status, body = await ingress.curl("http://a.test:8080/x?y", "-D", "-")
    assert status == "301" and "location: https://a.test/x?y" in body.lower()


async def test_what_is_no_tls_is_reset(ingress: Ingress, ca: Authority) -> None:
    await ingress.set(
        secret("a.test", ca.issue("a.test")), gateway(simple(8443, "a.test")), routes(route("web")), problems=1
    )
    for junk in (
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x10" + b"\1" * 16,
    ):
        with pytest.raises(ConnectionResetError):
            await ingress.raw(junk, 8443)
    reader, writer = await asyncio.open_connection(ingress.ip, 8443)
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00")  # a hello that never comes whole
    writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await reader.read()
        raise ConnectionResetError
    writer.close()
    await until(lambda: not len(ingress.front), "nobody is left")


def test_what_is_no_certificate_is_told(ca: Authority, tmp_path: Path) -> None:
    made = Certificates(None)
    good, other = ca.issue("a"), ca.issue("b")
    tls = Tls("MUTUAL", "default/x")
    for pems, says in (
        ({}, "has no tls.crt"),
        ({**good, "ca.crt": ""}, "has no ca.crt"),
        ({**good, "tls.key": other["tls.key"]}, "KEY_VALUES_MISMATCH"),
        ({**good, "tls.crt": "-----BEGIN CERTIFICATE-----\nx\n"}, "is not usable"),
        ({**good, "ca.crt": "x"}, "is not usable"),
    ):
        made.refresh([tls], {"default/x": pems})
        assert says in made.problems[tls] and good["tls.key"] not in made.problems[tls]
        assert made.get(tls) is None
    assert made.refresh([tls], {"default/x": good}) == [tls] and not made.problems
    assert made.refresh([tls], {"default/x": dict(good)}) == []
    made.refresh([], {})
    assert made.get(tls) is None


def test_the_authority_of_clients_may_be_a_secret_or_a_folder_of_its_own(ca: Authority, tmp_path: Path) -> None:
    """As Istio has it: `<credential>-cacert` beside the credential, whose own is of no use then."""
    made, other = Certificates(tmp_path), Authority()
    tls = Tls("MUTUAL", "default/x")
    pems = {**ca.issue("a"), "ca.crt": other.pem}
    bare = {name: pems[name] for name in ("tls.crt", "tls.key")}
    for secrets in (
        {"default/x": bare, "default/x-cacert": {"ca.crt": ca.pem}},
        {"default/x": pems, "default/x-cacert": {"ca.crt": ca.pem, "tls.key": "not this one"}},
    ):
        made.refresh([tls], secrets)
        context = made.get(tls)
        assert not made.problems and context is not None
        assert context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(ca.pem)]
    put(tmp_path / "default" / "x", pems)
    made.refresh([tls], {})
    put(tmp_path / "default" / "x-cacert", {"ca.crt": ca.pem})
    assert made.refresh([tls], {}) == [tls]
    context = made.get(tls)
    assert context is not None and context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(ca.pem)]


def test_addresses_as_edgemesh_chooses_them() -> None:
    assert "127.0.0.1" in addresses.chosen("*", "*", "*") and "127.0.0.1" in addresses.chosen("", "", "")
    assert addresses.chosen("lo", "127.0.0.1,127.7.7.7", "") == ["127.0.0.1", "127.7.7.7"]
    assert addresses.chosen("lo", "127.0.0.0/8", "") == ["127.0.0.1"]
    assert addresses.chosen("lo", "127.0.0.1,127.7.7.7", "127.0.0.1, 10.0.0.0/8") == ["127.7.7.7"]
    assert addresses.chosen("lo, nosuch0", "", "127.0.0.0/8,::1") == []
    assert addresses.chosen("nosuch0", "127.7.7.7", "") == []
