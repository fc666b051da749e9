"""Traces, for next to nothing while nobody asked for them.

On when the standard variables say so (`OTEL_TRACES_EXPORTER` = otlp | console, or an
`OTEL_EXPORTER_OTLP_ENDPOINT`), or with `CAUSEWAY_TRACE_FILE`, which appends one JSON object for each span to a
file. Off, nothing of opentelemetry is imported, and a span only hands its parent's context on.

Context travels as a W3C `traceparent` (https://www.w3.org/TR/trace-context/, 3.2).
"""

import importlib
import json
import os
from collections.abc import Sequence
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

Attribute = str | int | float | bool


class Span:
    """A span that records nothing, and the base of the one that does.

    traceparent: what to send along with whatever this span causes; empty when there is no trace.
    """

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def set(self, **attributes: Attribute) -> None:
        """Adds attributes."""

    def event(self, name: str, **attributes: Attribute) -> None:
        """Notes a point in time."""

    def end(self, error: str = "") -> None:
        """Ends the span, as failed when `error` is not empty. Later calls have no effect."""

    def __enter__(self) -> "Span":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("" if error is None else f"{type(error).__name__}: {error}")


_NOTHING = Span()

# Of the span whose `with` block, or of the call, this task is in: the parent of what names none.
current: ContextVar[str] = ContextVar("traceparent", default="")


class _Tracer:
    """The switch: None of these is set while tracing is off."""

    provider: "TracerProvider | None" = None
    make: Any = None


def enabled() -> bool:
    """Whether spans are recorded."""
    return _Tracer.make is not None


def span(name: str, *, parent: str = "", **attributes: Attribute) -> Span:
    """A span to be used in `with`; an exception that leaves the block fails it.

    parent: a traceparent; by default that of the block or call around.
    """
    return start_span(name, parent=parent, **attributes)


def start_span(name: str, *, parent: str = "", **attributes: Attribute) -> Span:
    """A span that lives until `end()`."""
    if _Tracer.make is not None:
        recording: Span = _Tracer.make(name, parent or current.get(), attributes)
        return recording
    return Span(parent) if parent else _NOTHING


def set_up(service: str, node: str) -> None:
    """Turns tracing on when the environment asks for it. Called once, by `process.run`. OSError when the
    trace file cannot be opened, ValueError for an exporter that is not known."""
    exporters = _exporters()
    if not exporters:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"causeway-{service}"}
    provider = TracerProvider(resource=Resource.create({**named, "service.instance.id": node, "host.name": node}))
    for exporter in exporters:
        # A file is read by people and tests who wait for it; the others follow OTEL_BSP_SCHEDULE_DELAY.
        delay = 200 if isinstance(exporter, _File) else None
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay))
    tracer = provider.get_tracer("causeway")

    def make(name: str, parent: str, attributes: dict[str, Attribute]) -> Span:
        return _Recording(tracer.start_span(name, _context(parent), attributes=attributes))

    _Tracer.provider, _Tracer.make = provider, make


def shut_down() -> None:
    """Sends what is left and turns tracing off."""
    provider, _Tracer.provider, _Tracer.make = _Tracer.provider, None, None
    if provider is not None:
        provider.shutdown()


class _Recording(Span):
    __slots__ = ("_span", "_token")

    def __init__(self, span: "OtelSpan") -> None:
        self._span = span
        self._token: Token[str] | None = None
        context = span.get_span_context()
        super().__init__(f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}")

    def __enter__(self) -> Span:
        self._token = current.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            current.reset(self._token)
        super().__exit__(kind, error, trace)

    def set(self, **attributes: Attribute) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, **attributes: Attribute) -> None:
        self._span.add_event(name, attributes)

    def end(self, error: str = "") -> None:
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        if self._span.is_recording():
            self._span.end()


def _context(parent: str) -> Any:
    """The parent as a context of opentelemetry; an empty one starts a new trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    # version-traceid-parentid-flags; what does not fit is ignored, as the standard asks.
    parts = parent.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return Context()
    try:
        trace, above, flags = (int(part, 16) for part in parts[1:4])
    except ValueError:
        return Context()
    context = SpanContext(trace, above, is_remote=True, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(context), Context()) if context.is_valid else Context()


def _exporters() -> "list[SpanExporter]":
    exporters: list[SpanExporter] = []
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return exporters
    file = os.environ.get("CAUSEWAY_TRACE_FILE")
    if file:
        exporters.append(_file_exporter(Path(file)))
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp" if endpoint else "")
    for name in filter(None, (part.strip() for part in wanted.split(","))):
        if name == "otlp":
            exporters.append(_otlp_exporter())
        elif name == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            exporters.append(ConsoleSpanExporter())
        elif name != "none":
            raise ValueError(f"OTEL_TRACES_EXPORTER: found {name!r}; expected otlp, console or none")
    return exporters


def _otlp_exporter() -> "SpanExporter":
    """By the protocol that the standard variables ask for; that by gRPC is a package of its own."""
    names = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    variable = next((name for name in names if os.environ.get(name)), names[1])
    found = os.environ.get(variable) or "http/protobuf"
    modules = {"http/protobuf": "http", "grpc": "grpc"}
    if found not in modules:
        raise ValueError(f"{variable}: found {found!r}; expected http/protobuf or grpc")
    try:
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{modules[found]}.trace_exporter")
    except ImportError:
        raise ValueError(
            f"{variable}: found {found!r}, for which the package opentelemetry-exporter-otlp-proto-{modules[found]} is not "
            "installed; expected http/protobuf (usually port 4318)"
        ) from None
    exporter: SpanExporter = module.OTLPSpanExporter()
    return exporter


class _File:
    """Marks the exporter to a file."""


def _file_exporter(path: Path) -> "SpanExporter":
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class File(_File, SpanExporter):
        def __init__(self) -> None:
            # Several processes append to one file: each write is whole lines (O_APPEND).
            self._file = path.open("ab", buffering=0)

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            lines = [json.dumps(_plain(span), separators=(",", ":")).encode() + b"\n" for span in spans]
            self._file.write(b"".join(lines))
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            self._file.close()

    return File()


def _plain(span: "ReadableSpan") -> dict[str, Any]:
    context = span.context
    return {
        "name": span.name,
        "service": span.resource.attributes.get("service.name"),
        "node": span.resource.attributes.get("service.instance.id"),
        "trace": f"{context.trace_id:032x}" if context else "",
        "span": f"{context.span_id:016x}" if context else "",
        "parent": f"{span.parent.span_id:016x}" if span.parent else "",
        "start": (span.start_time or 0) / 1e9,
        "end": (span.end_time or 0) / 1e9,
        "error": (span.status.description or "error") if not span.status.is_ok and span.status.description else "",
        "attributes": dict(span.attributes or {}),
        "events": [{"name": event.name, "attributes": dict(event.attributes or {})} for event in span.events],
    }
