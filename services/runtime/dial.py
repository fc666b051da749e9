"""Calling the other services of this node."""

import asyncio
import inspect
import logging
import random
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from services.runtime import telemetry

# Deadline of a unary call that names none. Seconds.
DEADLINE = 5.0
# Between attempts of a watch: doubled from the first to the last, with jitter. Seconds.
BACKOFF_FIRST = 0.1
BACKOFF_LAST = 5.0

_log = logging.getLogger("causeway.dial")

# Application protocol (RFC 7301) of a connection to a node's gRPC port that asks why others fail; see `diagnosis`.
DIAGNOSIS = b"causeway-diagnosis"
# What is answered where the two nodes accept each other. Anything else is the reason of a refusal.
IN_ORDER = b"ok"

OPTIONS = (
    ("grpc.http2.bdp_probe", 0),  # see serve.NO_BANDWIDTH_PROBES
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # the other end is a process on this host
    # Despite its name, what an attempt may take until the server has greeted: a busy one must not be given up.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.enable_http_proxy", 0),
)


class Response(Protocol):
    """What a watch yields."""

    @property
    def revision(self) -> int: ...


R = TypeVar("R", bound=Response)
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


def local_channel(run_dir: Path, name: str) -> grpc.aio.Channel:
    """A channel to the service NAME of this node (`run_dir/NAME.sock`). It connects when first used."""
    target = "unix:" + urllib.parse.quote(str(run_dir / f"{name}.sock"))
    return grpc.aio.insecure_channel(target, options=list(OPTIONS), interceptors=interceptors())


def interceptors() -> list[Any]:
    """What client channels carry: trace context while tracing is on, nothing otherwise."""
    if not telemetry.enabled():
        return []
    from services.runtime import tracing

    return tracing.client_interceptors()


async def call(method: Callable[..., Awaitable[_Reply]], request: _Request, *, timeout: float = DEADLINE) -> _Reply:
    """A unary call with a deadline in seconds, which waits for a service that is just restarting."""
    return await method(request, timeout=timeout, wait_for_ready=True)


def reason(error: grpc.RpcError) -> str:
    """The reason word in the ErrorInfo of a failed call; empty when there is none."""
    from google.rpc import error_details_pb2, status_pb2

    metadata: Any = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else ()
    for key, value in metadata or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
        except Exception:
            return ""  # sent by another implementation; the status code still stands
    return ""


async def follow(
    open_watch: Callable[[int], AsyncIterator[R]],
    on_event: Callable[[R], Any],
    *,
    name: str,
    on_relist: Callable[[], Any] | None = None,
) -> None:
    """Watches for ever: resumes from the last revision, starts over when that is compacted (OUT_OF_RANGE),
    and backs off while the service is away.

    open_watch: starts the call, given the revision to resume from (0: a snapshot, then `synced`).
    on_event: takes each response; may be a coroutine function. on_relist: called before every watch from 0, so
    that what the snapshot no longer holds can be dropped at `synced`. Their exceptions end `follow`.
    """
    revision = 0
    delay = BACKOFF_FIRST
    failing = False
    while True:
        if revision == 0 and on_relist is not None:
            await _maybe(on_relist())
        try:
            async for response in open_watch(revision):
                if failing:
                    _log.info("watch resumed", extra={"source": name, "revision": revision})
                failing, delay = False, BACKOFF_FIRST
                await _maybe(on_event(response))
                revision = response.revision or revision
            problem = "ended by the service"
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
            if code is grpc.StatusCode.OUT_OF_RANGE and revision:
                _log.info("watch starts over", extra={"source": name, "revision": revision})
                revision = 0
                continue
            problem = f"{code.name if code else 'UNKNOWN'}: {' '.join(str(getattr(error, 'details', str)()).split())}"
        if not failing:
            failing = True
            _log.warning("watch interrupted, trying again", extra={"source": name, "error": problem})
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(delay * 2, BACKOFF_LAST)


async def _maybe(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
