"""An ingress gateway with real backends behind it and real clients before it, all on loopback."""

import asyncio
import datetime
import json
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protos import discovery_pb2 as pb
from services.proxy.gateway.front import Front
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service


def gateway(*servers: dict[str, Any], name: str = "edge") -> pb.GatewayObject:
    return pb.GatewayObject(kind="Gateway", namespace="default", name=name, body=json.dumps({"servers": servers}))


def server(port: int, protocol: str = "HTTP", *hosts: str, **tls: Any) -> dict[str, Any]:
    made = {"port": {"number": port, "protocol": protocol}, "hosts": hosts or ["*"]}
    return made | ({"tls": tls} if tls else {})


def routes(*http: dict[str, Any], name: str = "r", **spec: Any) -> pb.GatewayObject:
    body = {"hosts": ["*"], "gateways": ["edge"], **({"http": http} if http else {}), **spec}
    return pb.GatewayObject(kind="VirtualService", namespace="default", name=name, body=json.dumps(body))


def to(host: str, port: int = 80, **fields: Any) -> dict[str, Any]:
    return {"destination": {"host": host, "port": {"number": port}}, **fields}


def route(host: str, prefix: str = "/", **fields: Any) -> dict[str, Any]:
    return {"match": [{"uri": {"prefix": prefix}}], "route": [to(host)], **fields}


def secret(name: str, pems: dict[str, str]) -> pb.GatewayObject:
    return pb.GatewayObject(kind="Secret", namespace="default", name=name, body=json.dumps(pems))


# ── certificates ──


@dataclass
class Authority:
    """A CA, in memory."""

    name: str = "ca"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str) -> dict[str, str]:
        """A certificate with its key, as a Secret has them."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return {"tls.crt": pem.decode(), "tls.key": private.decode(), "ca.crt": self.pem}

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())


# ── backends ──


@dataclass
class Backend:
    """An aiohttp server that tells what it was asked."""

    name: str
    ip: str
    port: int = 0
    connections: int = 0
    requests: "Counter[str]" = field(default_factory=Counter)
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/ws", self._websocket)
        app.router.add_get("/slow", self._slow)
        app.router.add_get("/large", self._large)
        app.router.add_get("/empty", self._empty)
        app.router.add_route("*", "/{rest:.*}", self._tell)
        self.runner = web.AppRunner(app, keepalive_timeout=60, shutdown_timeout=0.1)
        await self.runner.setup()
        listening = socket.create_server((self.ip, self.port))
        self.port = listening.getsockname()[1]
        await web.SockSite(self.runner, listening).start()

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        """What was asked, as JSON, in chunks and with the number of bytes that came."""
        self.requests[request.method] += 1
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        told = {
            "backend": self.name,
            "method": request.method,
            "target": request.raw_path,
            "headers": {name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers},
            "size": size,
            "from": request.transport.get_extra_info("peername") if request.transport else None,
        }
        response = web.StreamResponse(headers={"X-Backend": self.name, "Connection": "keep-alive, x-hop", "X-Hop": "1"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(json.dumps(told).encode())
        return response

    async def _slow(self, request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response(text="late")

    async def _empty(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.query.get("status", "204")))

    async def _large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        size = int(request.query["size"])
        response.content_length = size
        await response.prepare(request)
        piece = bytes(range(256)) * 256
        for at in range(0, size, len(piece)):
            await response.write(piece[: size - at])
        return response

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=True)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"{self.name}:{message.data}")
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            if message.data == "bye":
                await socket.close(code=4001, message=b"as asked")
        return socket


@dataclass
class Ingress:
    """Node "n" with its gateway on one address, and backends on the same node."""

    node: Node
    ip: str
    loopback_ip: Callable[[], str]
    folder: Path
    backends: dict[str, Backend] = field(default_factory=dict)

    @property
    def front(self) -> Front:
        """Where the gateway has its clients."""
        assert self.node.proxy is not None
        return self.node.proxy._gateway._front

    async def backend(self, name: str) -> Backend:
        """A backend as service `name` port 80."""
        made = self.backends[name] = Backend(name, self.loopback_ip())
        await made.start()
        self.serve(name, (made.ip, made.port))
        return made

    def serve(self, name: str, *endpoints: tuple[str, int]) -> None:
        """A headless service, whose endpoints are here."""
        self.node.discovery.put(service(name, "", *(("n", ip, port) for ip, port in endpoints)))

    async def set(self, *objects: pb.GatewayObject, problems: int = 0) -> None:
        """Puts objects and waits until they are served."""
        self.node.discovery.put_objects(*objects)
        ports = {
            one["port"]["number"]
            for each in self.node.discovery._objects.values()
            if each.kind == "Gateway"
            for one in json.loads(each.body).get("servers", ())
        }

        def served() -> bool:
            gateway = self.node.proxy._gateway if self.node.proxy is not None else None
            assert gateway is not None
            known = {(one.key, one.body) for one in gateway._objects}
            put = {(key, one.body) for key, one in self.node.discovery._objects.items()}
            open_now = {row.spot.port for row in gateway.rows() if not row.error}
            settled = gateway._settling is None and gateway._listeners.applied
            found = [len(warnings) for warnings in (gateway.warnings(), self.node.status().warnings)]
            return known == put and settled and found == [problems] * 2 and (open_now == ports or problems > 0)

        await until(served, "the objects are served")

    async def curl(self, url: str, *arguments: str, sni: bool = True) -> tuple[str, str]:
        """(HTTP status, body) of one curl run; the status is "000" when there was no answer. The URL's host is ours."""
        host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
        resolve = ("--resolve", f"{host}:{port}:{self.ip}") if sni else ()
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "60", "-w", "\n%{http_code}", "--noproxy", "*", *resolve, *arguments, url,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        body, _, status = out.decode("latin-1").rpartition("\n")
        return status, body.rstrip("\n") or error.decode()

    async def raw(self, request: bytes, port: int = 8080) -> bytes:
        """What one connection answers to these bytes, until it is closed."""
        reader, writer = await asyncio.open_connection(self.ip, port)
        writer.write(request)
        try:
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()
