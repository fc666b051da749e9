"""Files that are not like any other part of themselves, and comparing them."""

from __future__ import annotations

import random
from pathlib import Path

from lab.clients.case import ClientError

MIB = 1 << 20


def make(path: Path, size: int) -> bytes:
    """Writes and returns `size` bytes of noise."""
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def same(path: Path, expected: bytes) -> None:
    """Raises ClientError where a file differs from what it should hold."""
    found = path.read_bytes() if path.exists() else b""
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        raise ClientError(f"{path.name}: {len(found)} bytes of {len(expected)}, the first difference at {at}")
