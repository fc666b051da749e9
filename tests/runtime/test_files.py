import os
import stat
import threading
import time
from pathlib import Path

import pytest

from services.runtime import files


def test_write_replaces_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"one", b"", b"three" * 100_000):
        files.write_atomically(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_failed_write_leaves_the_old_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    files.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_readers_never_see_half(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.write_atomically(path, b"a" * 50_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for letter in (b"a", b"b"):
                files.write_atomically(path, letter * 50_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            content = path.read_bytes()
            assert content in (b"a" * 50_000, b"b" * 50_000)
    finally:
        stop.set()
        writer.join()


def test_lock_keeps_others_out(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with files.locked(tmp_path / "lock"):
            order.append("second")

    with files.locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    assert files.stamp(path) is None
    assert files.stamp(None) is None
    files.write_atomically(path, b"1")
    first = files.stamp(path)
    files.write_atomically(path, b"2")
    assert files.stamp(path) != first
    link.symlink_to("x")
    assert files.stamp(link) == files.stamp(path)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = time.time() - 2 * files.ABANDONED
    strays = {".x.0123abcd": old, ".x.89abcdef": time.time(), ".x.notes": old, ".y.0123abcd": old}
    for name, at in strays.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (at, at))
    files.write_atomically(path, b"whole")
    assert {it.name for it in tmp_path.iterdir()} == {"x", ".x.89abcdef", ".x.notes", ".y.0123abcd"}
