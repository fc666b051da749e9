"""The command as a user meets it: help, mistakes, and what it does not import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from causeway import wording
from causeway.__main__ import COMMANDS
from protos import tunnel_pb2

# Imported by no command before it needs them: `causeway --help` and a shell's completion stay quick.
HEAVY = ("grpc", "google.protobuf", "pydantic", "yaml", "rich", "cryptography", "opentelemetry", "zeroconf", "asyncio")


def causeway(*arguments: str, cwd: Path | None = None, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "causeway", *arguments],
        cwd=cwd,
        # The repository need not be installed for these tests.
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CAUSEWAY_CONFIG": "", **env},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def modules_after(statement: str) -> set[str]:
    script = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    statement = "import causeway.__main__ as m; sys.argv = ['causeway', '--help']; m.main()"
    assert modules_after(statement).isdisjoint(HEAVY)


def test_a_service_carries_nothing_of_the_status_view() -> None:
    assert modules_after("import causeway.__main__, causeway.service, causeway.up").isdisjoint(
        {"rich", "grpc", "pydantic"}
    )


def test_help_names_every_command_and_shows_examples() -> None:
    done = causeway("--help")
    assert done.returncode == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.summary.split(":")[0] in " ".join(done.stdout.split())
    assert "Examples:" in done.stdout


def test_no_command_shows_the_help() -> None:
    assert causeway().stdout == causeway("--help").stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("ca", "demo")])
def test_every_command_teaches_with_an_example(name: str) -> None:
    done = causeway(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: causeway {name}")
    assert "Example" in done.stdout or "grpcurl" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statu"], "causeway: no command 'statu': did you mean 'status'?"),
        (["xyzzy"], "causeway: no command 'xyzzy': see causeway --help"),
        (["ping"], "causeway: Missing argument 'NODE' (see causeway ping --help)"),
        (["status", "--jsn"], "causeway: No such option '--jsn' (see causeway status --help)"),
        (["nc", "edge-b", "22"], "causeway: '22' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22"),
        (["nc", "edge-b", "host:0"], "causeway: 'host:0' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22"),
        (["nc", "edge-b", "1.1.1.1:²"], "causeway: '1.1.1.1:²' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22"),
        (
            ["nc", "edge-b", "h" * 70_000 + ":22"],
            f"causeway: '{'h' * 80}' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22",
        ),
        (["nc", "n" * 70_000, "h:22"], f"causeway: '{'n' * 80}…' is too long for a node's name"),
        (["up", "--config", "absent.yaml"], "causeway: --config: absent.yaml does not exist; expected a YAML file"),
        (["up", "--config", "."], "causeway: --config: . is a directory; expected a YAML file"),
        (["relay", "--config", "absent.yaml"], "causeway: --config: absent.yaml does not exist; expected a YAML file"),
        (
            ["status", "--config", "a.yaml", "--run-dir", "run"],
            "causeway: --config and --run-dir say the same thing: give one of them",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = causeway(*arguments, cwd=tmp_path)
    assert done.stderr == f"{said}\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_a_named_environment_file_must_exist(tmp_path: Path) -> None:
    done = causeway("up", cwd=tmp_path, CAUSEWAY_CONFIG="absent.yaml")
    assert done.stderr == "causeway: $CAUSEWAY_CONFIG: absent.yaml does not exist; expected a YAML file\n"
    assert done.returncode == 2


@pytest.mark.parametrize("command", ["up", "relay", "status", "ping edge-b", "nc edge-b 127.0.0.1:22"])
def test_all_problems_of_a_configuration_are_listed(command: str, tmp_path: Path) -> None:
    (tmp_path / "causeway.yaml").write_text(
        "nodeName: edge-a\nclustr: default\nmodules:\n  edgeTunnel:\n    listenPort: many\n  edgeRelay: {mode: sometimes}\n"
    )
    done = causeway(*command.split(), cwd=tmp_path)  # ./causeway.yaml is found by itself
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith("causeway: causeway.yaml:") for line in lines)
    assert "clustr" in lines[0] and "cluster" in lines[0]
    assert "modules.edgeTunnel.listenPort" in lines[1]
    assert "modules.edgeRelay.mode" in lines[2]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["up", "relay"])
def test_a_node_without_a_psk_says_how_to_make_one(command: str, tmp_path: Path) -> None:
    (tmp_path / "causeway.yaml").write_text("nodeName: edge-a\n")
    done = causeway(command, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'psk'}: there is no PSK" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["causeway.yaml"], "nothing is left behind"


@pytest.mark.parametrize("run_dir", ["/dev/null/x", "causeway.yaml"])
def test_a_run_dir_that_cannot_be_one_is_one_line(run_dir: str, tmp_path: Path) -> None:
    (tmp_path / "psk").write_text("a secret of tests only, 32 bytes or more\n")
    (tmp_path / "causeway.yaml").write_text(f"nodeName: edge-a\nrunDir: {run_dir}\n")
    done = causeway("up", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "set runDir to a folder that can be written" in done.stderr


def test_values_of_a_newer_service_have_a_word() -> None:
    assert wording.word(tunnel_pb2.PathKind.Name, tunnel_pb2.PATH_KIND_DIRECT, "PATH_KIND_") == "direct"
    newer = tunnel_pb2.Link.FromString(b"\x08\x63")  # field 1, kind, is 99: proto3 keeps what it does not know
    assert wording.path_kind(newer.kind) == "unknown-99"


@pytest.mark.parametrize(
    ("arguments", "socket"), [(["ping", "edge-b"], "tunnel.sock"), (["nc", "edge-b", "127.0.0.1:22"], "tunnel.attach")]
)
def test_a_node_that_does_not_run_is_named(arguments: list[str], socket: str, tmp_path: Path) -> None:
    done = causeway(*arguments, "--run-dir", str(tmp_path))
    path = tmp_path / socket
    assert done.stderr == f"causeway: tunnel is not running (no socket at {path}): start it with causeway up\n"
    assert done.returncode == 1


def test_version_is_the_packages(tmp_path: Path) -> None:
    assert causeway("version").stdout.startswith("causeway 0.")
    assert causeway("--version").stdout == causeway("version").stdout.splitlines()[0] + "\n"
