"""`causeway ca` as a user meets it."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from causeway.ca import ca


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ca, arguments)


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert len(result.output.splitlines()) == 1, "one line"
    assert result.output.startswith("Error: ")
    return result.output


def test_init_issue_show_revoke(home: Path) -> None:
    output("init", "--cluster", "blue")
    assert stat.S_IMODE((home / "ca/ca.key").stat().st_mode) == 0o600
    output("issue", "Edge-A")
    assert stat.S_IMODE((home / "edge-a/node.key").stat().st_mode) == 0o600
    shown = json.loads(output("show", "edge-a/node.crt", "-o", "json"))
    assert (shown["kind"], shown["cluster"], shown["node"]) == ("node certificate", "blue", "edge-a")
    assert shown["expired"] is False
    assert json.loads(output("show", "ca/ca.crt", "-o", "json"))["kind"] == "authority"
    assert json.loads(output("show", "ca/ca.crl", "-o", "json"))["revoked"] == []
    assert "1 revoked now, 1 in all" in output("revoke", "edge-a")
    assert "0 revoked now, 1 in all" in output("revoke", "edge-a/node.crt")
    assert json.loads(output("show", "ca/ca.crl", "-o", "json"))["revoked"] == [shown["serial"]]
    assert "edge-a" in output("show", "edge-a/node.crt")


def test_renewal_keeps_the_key_and_revocation_covers_all(home: Path) -> None:
    output("init")
    output("issue", "edge-a")
    key, first = (home / "edge-a/node.key").read_bytes(), (home / "edge-a/node.crt").read_bytes()
    output("issue", "edge-a")
    assert (home / "edge-a/node.key").read_bytes() == key
    assert (home / "edge-a/node.crt").read_bytes() != first
    output("issue", "edge-b")
    assert "2 revoked now, 2 in all" in output("revoke", "edge-a")


def test_an_authority_is_never_overwritten(home: Path) -> None:
    output("init")
    key = (home / "ca/ca.key").read_bytes()
    assert "choose another folder" in error("init")
    assert (home / "ca/ca.key").read_bytes() == key


def test_errors_are_one_line_that_helps(home: Path) -> None:
    assert "causeway ca init" in error("issue", "edge-a")
    assert "expected lower-case" in error("init", "--cluster", "Bad_Name")
    output("init")
    assert "expected a node name" in error("issue", "bad_name")
    assert "issued to: none yet" in error("revoke", "edge-z")
    output("issue", "edge-a")
    assert "issued to: edge-a" in error("revoke", "edge-z")
    output("init", "--out", "other")
    assert "not issued by the authority" in error("revoke", "edge-a/node.crt", "--ca", "other")
    assert "expected PEM" in error("show", "edge-a/node.key")
    assert "No such file" in error("show", "nothing")
    (home / "file").write_text("")
    assert "file" in error("issue", "edge-b", "--out", "file/x")


def test_no_certificate_outlives_its_authority(home: Path) -> None:
    output("init", "--days", "30")
    assert "when the authority itself ends" in output("issue", "edge-a")
    ends = [json.loads(output("show", file, "-o", "json"))["validUntil"] for file in ("ca/ca.crt", "edge-a/node.crt")]
    assert ends[0] == ends[1]
    assert "20 days" in output("issue", "edge-b", "--days", "20")


def test_damaged_files_of_an_authority_are_said_in_one_line(home: Path) -> None:
    output("init")
    output("issue", "edge-a")
    (home / "ca/ca.crl").write_text("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    assert "expected a PEM revocation list" in error("revoke", "edge-a")
    assert "expected a PEM revocation list" in error("show", "ca/ca.crl")
    (home / "ca/ca.key").write_text("x")
    assert "expected an unencrypted PEM private key" in error("issue", "edge-a")


def test_help_shows_the_whole_way() -> None:
    for word in ("init", "issue", "show", "revoke", "psk", "crlFile"):
        assert word in output("--help")
