"""Which configuration file is used."""

from pathlib import Path

import pytest

from causeway import place
from causeway.errors import USAGE, CommandError


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: a working directory, and stand-ins for the files under /etc."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(place.ENVIRONMENT, raising=False)
    monkeypatch.setattr(
        place, "DEFAULTS", (place.DEFAULTS[0], tmp_path / "etc-causeway.yaml", tmp_path / "etc-edgemesh.yaml")
    )
    return tmp_path


def test_the_order_of_the_defaults() -> None:
    assert [str(path) for path in place.DEFAULTS] == [
        "causeway.yaml",
        "/etc/causeway/causeway.yaml",
        "/etc/edgemesh/config/edgemesh-agent.yaml",
    ]


def test_a_file_found_later_gives_way_to_one_found_earlier(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.find(None) is None
    for path in reversed(place.DEFAULTS):
        path.touch()
        assert place.find(None) == path
    named = etc / "named.yaml"
    named.touch()
    monkeypatch.setenv(place.ENVIRONMENT, str(named))
    assert place.find(None) == named
    given = etc / "given.yaml"
    given.touch()
    assert place.find(given) == given


def test_an_empty_variable_names_nothing(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(place.ENVIRONMENT, "")
    assert place.find(None) is None


def test_the_run_directory_comes_from_the_configuration(etc: Path) -> None:
    folder = etc / "conf"
    folder.mkdir()
    (folder / "node.yaml").write_text("nodeName: edge-a\nrunDir: ../sockets\n")
    assert place.run_directory(folder / "node.yaml", None) == etc / "sockets"
    assert place.run_directory(None, Path("elsewhere")) == etc / "elsewhere"
    assert place.run_directory(None, None) == etc / "run"  # built-in values


def test_two_ways_to_name_it_are_refused(etc: Path) -> None:
    with pytest.raises(CommandError) as caught:
        place.run_directory(etc / "a.yaml", etc)
    assert caught.value.code == USAGE


def test_an_unreadable_file_is_one_line(etc: Path) -> None:
    (etc / "causeway.yaml").write_bytes(b"\xff\xfe\x00: [")
    with pytest.raises(CommandError) as caught:
        place.load(None)
    assert len(caught.value.lines) == 1 and "causeway.yaml" in caught.value.lines[0]
