"""Files that survive a power cut, and locks between processes."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

# Seconds after which what a killed writer left behind is removed; no write takes so long.
ABANDONED = 300.0


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` as a whole: readers see the old or the new content, also after a crash. OSError as it comes."""
    _tidy(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _tidy(path: Path) -> None:
    """Removes halves that killed writers left: nobody else would, and a small disk is soon full of them."""
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` (made when missing); waits for other processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes whenever the file does (symlink swaps included); None when there is no such file."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None
