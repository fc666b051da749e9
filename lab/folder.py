"""Where the files of a lab's nodes are."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder, gone at the end of the block. Its path is short, since Unix sockets are in it: the path of one has
    at most 107 bytes (unix(7)), which pytest's and other deep folders leave no room for."""
    with tempfile.TemporaryDirectory(prefix="cw-", ignore_cleanup_errors=True) as path:
        yield Path(path)
