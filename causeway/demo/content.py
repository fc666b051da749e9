"""The file of the demo: pseudo-random bytes that nobody has to store.

Blocks are made from the seed and their number, so that the server can begin anywhere and the reader can know
the digest without having seen the file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

BLOCK = 1 << 20  # bytes


def blocks(seed: str, size: int) -> Iterator[bytes]:
    """The `size` bytes of the file, in order, in pieces of at most BLOCK."""
    for start in range(0, size, BLOCK):
        yield random.Random(f"{seed}/{start // BLOCK}").randbytes(min(BLOCK, size - start))


def digest(seed: str, size: int) -> str:
    """SHA-256 of the file, in hexadecimal."""
    total = hashlib.sha256()
    for block in blocks(seed, size):
        total.update(block)
    return total.hexdigest()
