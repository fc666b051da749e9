"""Log lines, as people and programs read them."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from services.runtime import log


@pytest.fixture
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("causeway")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "causeway.tunnel", "msg": message, "levelname": "INFO", "created": 1.0})
    vars(made).update(extra)
    return made


def text(message: str, **extra: Any) -> str:
    return log.KeyValues("tunnel", "edge-a").format(record(message, **extra))


def test_key_values() -> None:
    assert text("session up", peer="edge-b", count=3, seconds=0.123456789) == (
        "1970-01-01T00:00:01.000Z info tunnel edge-a: session up peer=edge-b count=3 seconds=0.123457"
    )


def test_values_never_break_the_line() -> None:
    line = text("bad\nnews\x1b[31m", error='two\nlines "quoted"', reason="", peer="a b", target="x=y")
    assert line.isprintable()
    assert line.endswith(r'error="two\nlines \"quoted\"" reason="" peer="a b" target="x=y"')


def test_json_lines() -> None:
    line = log.JsonLines("tunnel", "edge-a").format(record("session\nup", peer="b", file=__file__, odd=object))
    said = json.loads(line)
    assert "\n" not in line
    assert (said["message"], said["peer"], said["time"]) == ("session\nup", "b", "1970-01-01T00:00:01.000Z")


def test_exceptions_are_one_field() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError as error:
        line = text("failed", exc_info=(ValueError, error, error.__traceback__))
    assert line.endswith(r'error="ValueError: no\nway"')


def test_set_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], restored: None) -> None:
    monkeypatch.setenv("CAUSEWAY_LOG_LEVEL", "warning")
    logger = log.set_up("relay", "r1")
    logger.info("not said")
    logger.warning("said", extra={"peer": "b"})
    logging.getLogger("causeway.identity").error("of the runtime")
    logging.getLogger("zeroconf").info("not said")
    logging.getLogger("zeroconf").warning("of a library")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "warning relay r1: said peer=b",
        "error relay r1: of the runtime",
        "warning relay r1: of a library logger=zeroconf",
    ]
