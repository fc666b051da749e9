"""Serving the other components of this node, and whoever looks at it with grpcurl."""

import os
import socket
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from services.runtime import address, telemetry
from services.runtime.process import Service

# Local messages: a status of a large node is a few MiB.
MAX_MESSAGE_BYTES = 16 << 20
# Calls that are still open when a service stops get this long. Seconds.
GRACE = 2.0

# gRPC pings with every burst of data, to size its windows for long fat paths: two packets and a dozen wake-ups at each end
# beside every call. What crosses gRPC here is small, or stays on this host.
NO_BANDWIDTH_PROBES = ("grpc.http2.bdp_probe", 0)

LOCAL_OPTIONS = (
    NO_BANDWIDTH_PROBES,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)
# For ports that other nodes call: small messages, few streams, and no patience with silent connections.
PUBLIC_OPTIONS = (
    NO_BANDWIDTH_PROBES,
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 16384),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


class LocalServer:
    """gRPC on `run_dir/NAME.sock`: what was added, health, reflection; channelz with CAUSEWAY_DEBUG_CHANNELZ=1.

    With CAUSEWAY_LOCAL_TCP=127.0.0.1:port also on that address, which must be a loopback one.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._added: list[tuple[Callable[[Any, Any], None], object]] = []
        self._names: list[str] = []
        self._server: grpc.aio.Server | None = None
        self._health: Any = None
        self.path = service.config.run_dir / f"{service.name}.sock"

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object, full_name: str) -> None:
        """Adds a servicer by its generated `add_XServicer_to_server` and full name (causeway.relay.v1.RelayService)."""
        self._added.append((add_to_server, servicer))
        self._names.append(full_name)

    async def start(self) -> None:
        """Listens and is healthy. OSError when the socket cannot be made or another process serves it."""
        _make_way(self.path, self._service.name)
        # Made here, not earlier: a server that was never started complains when it is collected.
        self._server = server = grpc.aio.server(options=list(LOCAL_OPTIONS), interceptors=interceptors())
        for add_to_server, servicer in self._added:
            add_to_server(servicer, server)
        add_introspection(server, self._names)
        self._health = await _add_health(server, self._names)
        # The group may call too: containers of a pod, or an operator's group. Set before the file exists.
        mask = os.umask(0o117)
        try:
            server.add_insecure_port("unix:" + urllib.parse.quote(str(self.path)))
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"{self.path}: the socket cannot be made: {error}") from None
        finally:
            os.umask(mask)
        try:
            _listen_tcp(server)
        except OSError:
            await server.stop(None)
            raise
        await server.start()

    async def stop(self) -> None:
        """Not healthy any more; open calls get two seconds. Does nothing before `start`."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        await self._server.stop(GRACE)

    async def __aenter__(self) -> "LocalServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _listen_tcp(server: grpc.aio.Server) -> None:
    text = os.environ.get("CAUSEWAY_LOCAL_TCP")
    if not text:
        return
    try:
        host, port = address.split(text)
    except ValueError as error:
        raise OSError(f"CAUSEWAY_LOCAL_TCP: found {text!r}; expected {error}") from None
    if not host.startswith("127.") and host != "::1":
        raise OSError(f"CAUSEWAY_LOCAL_TCP: found {text!r}; expected a loopback address, for it is not protected")
    try:
        server.add_insecure_port(address.join(host, port))
    except RuntimeError as error:
        raise OSError(f"CAUSEWAY_LOCAL_TCP: {text} cannot be listened on: {error}") from None


def interceptors() -> list[Any]:
    """What servers carry: trace context while tracing is on, nothing otherwise."""
    if not telemetry.enabled():
        return []
    from services.runtime import tracing

    return tracing.server_interceptors()


def add_introspection(server: grpc.aio.Server, names: list[str]) -> None:
    """Reflection for the services named and for health, so that grpcurl lists and calls them."""
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection

    names = [*names, health.SERVICE_NAME]
    if os.environ.get("CAUSEWAY_DEBUG_CHANNELZ") == "1":
        from grpc_channelz.v1 import channelz

        channelz.add_channelz_servicer(server)  # type: ignore[arg-type]  # its stub knows no aio
        names.append("grpc.channelz.v1.Channelz")
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)


async def abort(
    context: "grpc.aio.ServicerContext[Any, Any]", code: grpc.StatusCode, reason: str, message: str
) -> NoReturn:
    """Ends a call with a google.rpc.Status that carries ErrorInfo{reason, domain "causeway"}."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="causeway"))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=[detail])
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort returned")


async def _add_health(server: grpc.aio.Server, names: list[str]) -> Any:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stub knows no aio
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: is left over and cannot be removed: {error.strerror}; remove it, or set another runDir"
        ) from None


def _make_way(path: Path, name: str) -> None:
    """Removes the socket of a process that is gone; refuses to take over from one that lives."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise OSError(
            f"{path.parent}: cannot be made: {error.strerror}; set runDir to a folder that can be written"
        ) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            _remove(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: it lives
        except OSError as error:
            raise OSError(
                f"{path}: the socket cannot be made: {error.strerror}; run as the user who owns it, or set another runDir"
            ) from None
    raise OSError(f"{path}: another {name} service is running here; stop it, or set another runDir")
