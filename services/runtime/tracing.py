"""Trace context in gRPC metadata, both ways. Imported only while tracing is on."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from services.runtime import telemetry

# Calls that poll or last for ever would drown the rest.
_QUIET = ("/grpc.", "/GetStatus", "/Watch", "/Listen")


def _quiet(method: str) -> bool:
    return any(part in method for part in _QUIET)


if TYPE_CHECKING:
    _ClientBase = grpc.aio.UnaryUnaryClientInterceptor[Any, Any]
    _ServerBase = grpc.aio.ServerInterceptor[Any, Any]
else:  # not generic outside the stubs
    _ClientBase = grpc.aio.UnaryUnaryClientInterceptor
    _ServerBase = grpc.aio.ServerInterceptor


class _Unary(_ClientBase):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        if _quiet(method):
            return await continuation(details, request)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        span = telemetry.start_span(method, parent=str(metadata.get("traceparent", "")), kind="client")
        metadata["traceparent"] = span.traceparent
        call = await continuation(details._replace(metadata=metadata), request)
        try:
            await call  # whoever gets the call awaits it once more, and has the same answer
        except grpc.aio.AioRpcError as error:
            span.end(f"{error.code().name}: {error.details()}")
        except BaseException:
            span.end("cancelled")
            raise
        else:
            span.end()
        return call


class _Server(_ServerBase):
    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or handler.response_streaming or _quiet(details.method):
            return handler
        inner = handler.unary_unary
        parent = next((str(value) for key, value in details.invocation_metadata if key == "traceparent"), "")

        async def serve(request: Any, context: Any) -> Any:
            with telemetry.span(details.method, parent=parent, kind="server"):
                return await inner(request, context)

        return grpc.unary_unary_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)


def client_interceptors() -> list[Any]:
    """For channels."""
    return [_Unary()]


def server_interceptors() -> list[Any]:
    """For servers."""
    return [_Server()]
