"""One line for each event, on standard error.

`key=value` pairs for people, JSON objects with `CAUSEWAY_LOG=json`; `CAUSEWAY_LOG_LEVEL` = debug | info |
warning | error. Fields are given by `extra=`, and mean the same everywhere:

    node      name of this node              peer      name of the other node
    service   of this node                   session   first 8 hex digits of its id
    link      number of the TCP connection   relay     name of the relay node
    path      direct, punched or relayed     stream    number in its session
    address   "ip:port"                      target    what a stream wants to reach
    reason    one word, for programs         error     one line, for people
    source    where knowledge comes from     revision  of a registry or a record
    count     how many                       seconds   how long
    bytes     how much                       file      a path on disk
    key       of the configuration
"""

import datetime
import json
import logging
import os
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(service: str, node: str) -> logging.Logger:
    """Configures logging for the process. ValueError for values of the variables that are not known."""
    level = os.environ.get("CAUSEWAY_LOG_LEVEL", "info").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"CAUSEWAY_LOG_LEVEL: found {level.lower()!r}; expected debug, info, warning or error")
    form = os.environ.get("CAUSEWAY_LOG", "text")
    if form not in ("text", "json"):
        raise ValueError(f"CAUSEWAY_LOG: found {form!r}; expected text or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonLines if form == "json" else KeyValues)(service, node))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of libraries
    logging.getLogger("asyncio").setLevel(logging.ERROR if level != "DEBUG" else logging.DEBUG)
    ours = logging.getLogger("causeway")
    ours.setLevel(level)
    return logging.getLogger(f"causeway.{service}")


class _Lines(logging.Formatter):
    def __init__(self, service: str, node: str) -> None:
        super().__init__()
        self._service = service
        self._node = node

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields: dict[str, object] = {
            "time": when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "node": self._node,
            "message": record.getMessage(),
        }
        if not record.name.startswith("causeway"):
            fields["logger"] = record.name
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info and record.exc_info[1] is not None:
            fields.setdefault("error", f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")
            if logging.getLogger("causeway").isEnabledFor(logging.DEBUG):
                fields["trace"] = self.formatException(record.exc_info)
        return fields


class KeyValues(_Lines):
    """`2026-01-31T12:00:00.000Z info tunnel edge-a: session up peer=edge-b path=direct`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        head = [str(fields.pop(key)) for key in ("time", "level", "service", "node")]
        message = _one_line(str(fields.pop("message")))
        return " ".join([*head[:3], f"{head[3]}:", message, *(f"{key}={_quoted(v)}" for key, v in fields.items())])


class JsonLines(_Lines):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record), default=str, ensure_ascii=False)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text and text.isprintable() and not any(mark in text for mark in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
