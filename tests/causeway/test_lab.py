"""`causeway lab` as an operator meets it: mistakes, one command, the prompt, the terminal, and every way to end."""

import contextlib
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import rootless
from tests.causeway.process import PATIENCE, Process, alive
from tests.causeway.test_command import causeway
from tests.lab.test_leftovers import gone

pytestmark = pytest.mark.slow  # real processes: namespaces

SMALL = "hosts: {x: {wire: 1ms}, y: }\nlans: {home: {nat: symmetric, hosts: [z]}}\n"
COMMAND = [sys.executable, "-m", "causeway", "lab"]
THINGS_IN_MEMORY = [Path("/dev/shm") / it for it in ("lab", "hosts", "resolv.conf")]

WriteFile = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def work(text: str) -> Path:
        path = tmp_path / "net.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return work


@pytest.fixture
def small(write: WriteFile) -> str:
    return str(write(SMALL))


@pytest.fixture(scope="module")
def simulation() -> None:
    """Skips where networks cannot be simulated; fails instead with NATLAB_REQUIRED=1."""
    why = rootless.available()
    if why is not None:
        (pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip)(why)


# -- without starting anything


def test_check_finds_no_mistakes(small: str) -> None:
    done = causeway("lab", small, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{small}: no mistakes; hosts: 3, LANs: 1, nodes: 0\n"


def test_check_tells_all_mistakes(write: WriteFile) -> None:
    path = write("hosts: {x: {wire: 5}}\nlan: {}\nrelays: [x]\n")
    done = causeway("lab", str(path), "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"causeway: {path}:1: hosts.x.wire.delay: found 5; expected a time with its unit, such as 40ms or 0.5s",
        f"causeway: {path}:2: lan: unknown key; did you mean lans?",
        f"causeway: {path}:3: relays[0]: the host 'x', on which no node runs; expected node: true at 'x'",
    ]
    assert causeway("lab", str(path), "--", "x", "true").stderr == done.stderr  # and nothing is started


def test_check_as_json(write: WriteFile) -> None:
    done = causeway("lab", str(write(SMALL)), "--check", "-o", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], told["problems"]) == (0, True, [])
    assert told["topology"]["lans"]["home"]["nat"]["kind"] == "symmetric"
    path = write("hosts: {x: {wires: 5}}")
    done = causeway("lab", str(path), "--check", "-o", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "ok": False,
        "problems": [
            {
                "file": str(path),
                "line": 1,
                "key": "hosts.x.wires",
                "found": "unknown key",
                "expected": "",
                "nearest": "wire",
            }
        ],
        "topology": None,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "w", "true"], "no host 'w': expected one of x, y, z, home, internet"),
        (["--", "hom", "true"], "no host 'hom': did you mean home?"),
        (["--", "x"], "no command for x: such as x ip route"),
        (["-o", "json", "--", "x", "true"], "-o json describes the network, and a command has its own output: leave"),
        (["--folder", "."], "--folder: {cwd} is not empty: name a new one"),
        (["--folder", "f" * 100], "--folder: {cwd}/" + "f" * 100),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], said: str, small: str, tmp_path: Path) -> None:
    if rootless.available() is not None and "--folder" in arguments:
        pytest.skip("is only looked at where labs work")
    done = causeway("lab", small, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"causeway: {said.format(cwd=tmp_path)}")


@pytest.mark.parametrize(("name", "what"), [("absent.yaml", "does not exist"), (".", "is a directory")])
def test_a_file_must_be_there(name: str, what: str, tmp_path: Path) -> None:
    done = causeway("lab", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"causeway: {name} {what}; expected a YAML file, see causeway lab --help\n",
    )


def test_where_it_cannot_work_the_reason_is_one_line(small: str, tmp_path: Path) -> None:
    done = causeway("lab", small, PATH=str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(
        r"causeway: no simulated networks on this machine: not installed: unshare \(package util-linux\).*\n",
        done.stderr,
    )


def test_the_example_in_the_help_has_no_mistakes(tmp_path: Path) -> None:
    shown = causeway("lab", "--help").stdout
    example = shown[shown.index("relays:") : shown.index("Then, for example")]
    path = tmp_path / "example.yaml"
    path.write_text(textwrap.dedent("    " + example))
    done = causeway("lab", str(path), "--check")
    assert done.stderr == ""
    assert "hosts: 4, LANs: 3, nodes: 3" in done.stdout


def test_the_example_in_the_readme_has_no_mistakes(write: WriteFile) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "lans:" in block]
    assert "hosts: 5, LANs: 3, nodes: 4" in causeway("lab", str(write(example)), "--check").stdout


# -- one command


@pytest.mark.lab
def test_a_command_runs_on_its_host_and_its_code_is_passed_on(simulation: None, small: str) -> None:
    script = "ip -4 -br addr show eth0; getent hosts x y; cat; exit 7"
    done = subprocess.run(
        [*COMMAND, small, "--", "z", "sh", "-c", script], input="to cat", capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (7, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[2] == "192.168.1.2/24"
    assert [line.split() for line in lines[1:]] == [["203.0.113.1", "x"], ["203.0.113.2", "y"], ["to", "cat"]]
    assert not any(it.exists() for it in THINGS_IN_MEMORY)


@pytest.mark.lab
@pytest.mark.parametrize(("script", "code"), [("kill -TERM $$", 128 + 15), ("exit 0", 0)])
def test_a_command_that_a_signal_ends(simulation: None, small: str, script: str, code: int) -> None:
    assert causeway("lab", small, "--", "x", "sh", "-c", script).returncode == code


@pytest.mark.lab
def test_a_command_on_a_router_and_one_that_does_not_exist(simulation: None, small: str) -> None:
    done = causeway("lab", small, "--", "home", "nft", "list", "table", "ip", "nat")
    assert "fully-random" in done.stdout
    done = causeway("lab", small, "--", "x", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


# -- orders from a pipe


def orders(file: str, *lines: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Gives the prompt these lines and then the end of input."""
    return subprocess.run(
        [*COMMAND, file, *options],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.lab
def test_orders_change_the_network(simulation: None, small: str) -> None:
    done = orders(
        small,
        "ping x y",
        "ping y z",
        "wire x out down",
        "ping x y",
        "wire x up delay=30ms in loss=0%",
        "ping x y",
        "run z sh -c 'echo $((6*7))'  # a remark",
        "nat home flush",
        "nat home",
        "",
    )
    said = done.stdout[done.stdout.index("network") :].splitlines()
    assert re.fullmatch(r"network  x → y \(203.0.113.2\): \d+\.\d ms", said[0])
    assert said[1] == "network  y → z (192.168.1.2): no answer"
    assert said[2] == "x: out: down; in: 1 ms"
    assert said[3] == "network  x → y (203.0.113.2): no answer"
    assert said[4] == "x: out: down; in: 30 ms"  # `in` was said, so nothing else changes
    assert said[5] == "network  x → y (203.0.113.2): no answer"
    assert said[6:8] == ["42", "home: the router has forgotten every flow and mapping"]
    assert said[8] == "home: symmetric, 0 flows"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.lab
def test_mistakes_in_orders_say_what_to_do(simulation: None, small: str) -> None:
    done = orders(
        small,
        "statos",
        "ping x",
        "ping x q",
        "wire x loss=200% dela=1ms",
        "wire x quickly",
        "shell x",
        "kill x",
        "nat home reboot",
        "run x 'open",
        "run x false",
    )
    assert done.stderr.splitlines() == [
        "no order 'statos': did you mean status?",
        "expected: ping A B",
        "no host 'q': expected x, y, z",
        "loss: found '200%'; expected a share from 0% to 100%, such as 2%; dela: unknown key; did you mean delay?",
        "found 'quickly'; expected KEY=VALUE, down, up, or out or in for one direction alone",
        "a shell needs a terminal: use run x COMMAND…",
        "no host with a node 'x': expected none",
        "found 'reboot'; expected: nat home [flush]",
        "No closing quotation: run x 'open",
    ]
    assert done.returncode == 1  # of the last, as in a shell


@pytest.mark.lab
def test_the_description_as_json(simulation: None, small: str, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    done = orders(small, "run x true", options=("-o", "json", "--folder", str(folder)))
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert list(told) == ["name", "cluster", "folder", "hosts", "lans", "services", "relays"]
    assert [host["address"] for host in told["hosts"]] == ["203.0.113.1", "203.0.113.2", "192.168.1.2"]
    assert told["hosts"][2]["seen_as"] == told["lans"][0]["wan_address"] == "203.0.113.3"
    assert (told["lans"][0]["kind"], told["folder"]) == ("symmetric", str(folder))
    assert told["hosts"][0]["wire"]["out"]["delay"] == 0.001


@pytest.mark.lab
def test_nodes_are_started_killed_and_started_again(simulation: None, write: WriteFile, tmp_path: Path) -> None:
    path = write("""
        relays: [r]
        config: {modules: {edgeTunnel: {sessionHoldSeconds: 7}}}
        hosts: {r: {node: {services: [discovery, relay, tunnel]}, wire: 1ms}}
        lans:
          one: {nat: symmetric, hosts: {a: {node: {services: [discovery, tunnel]}}}}
    """)
    folder = tmp_path / "f"
    done = orders(
        str(path),
        "ping a r",
        "kill r relay",
        "status",
        "start r",
        "status",
        "start r relay",
        "log r relay",
        "run a causeway ping r -c 1 -o json",
        options=("--folder", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    assert "5 services ready in" in done.stderr
    assert re.search(r"^mesh     a → r: \d+\.\d ms, direct$", done.stdout, re.M)
    assert "r: killed relay" in done.stdout
    rows = [line.split("  ") for line in done.stdout.splitlines() if line.startswith("r  ")]
    assert [[part.strip() for part in row if part][1] for row in rows[1:]] == [
        "discovery, relay down, tunnel",
        "discovery, relay, tunnel",
    ]
    assert "r: relay ready" in done.stdout
    assert "r: they run already" in done.stdout
    assert json.loads(done.stdout[done.stdout.rindex("\n{") :])["received"] == 1
    assert "sessionHoldSeconds: 7" in (folder / "a" / "causeway.yaml").read_text()
    assert (folder / "r" / "relay.log").stat().st_size > 0
    assert not list(folder.rglob("*.sock")), "the services have ended in order"


@pytest.mark.lab
def test_a_node_that_does_not_start_ends_the_lab_with_its_log(simulation: None, write: WriteFile) -> None:
    path = write("hosts: {a: {node: {services: [tunnel], config: {modules: {edgeTunnel: {psk: {path: gone}}}}}}}")
    done = causeway("lab", str(path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "causeway: a: tunnel ended with 2; its log ends:"
    assert "there is no PSK" in done.stderr


# -- every way to end


INODE = "stat -Lc %i /proc/self/ns/net"


@pytest.mark.lab
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGKILL, -9),
    ],
)
def test_a_signal_ends_everything(simulation: None, small: str, number: int, code: int) -> None:
    """One in the foreground and one that has made itself a session of its own: neither is left."""
    script = f"{INODE}; setsid sleep 1000 & exec sh -c 'echo started; sleep 1000'"
    with Process([*COMMAND, small, "--", "z", "sh", "-c", script]) as running:
        inode = int(running.wait_for(r"^(\d+)$")[1])
        running.wait_for("started")
        assert not gone_now(inode)
        running.signal(number)
        assert running.end() == code  # `end` also waits for the last holder of the output
        assert gone({inode})
    assert not any(it.exists() for it in THINGS_IN_MEMORY)


def gone_now(inode: int) -> bool:
    """Whether no process that we see is in this network namespace."""
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if process.stat().st_ino == inode:
                return False
        except OSError:
            continue
    return True


@pytest.mark.lab
@pytest.mark.parametrize("last", ["quit", "exit", ""])
def test_quitting_and_the_end_of_input_end_everything(simulation: None, small: str, last: str) -> None:
    done = orders(
        small, f"run z sh -c '{INODE}; setsid sleep 1000 >/dev/null 2>&1 &'", *([last] if last else []), "run x false"
    )
    inode = int(done.stdout.splitlines()[-1])
    assert gone({inode})
    assert done.returncode == (0 if last else 1)  # what comes behind it is not done any more


@pytest.mark.lab
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_everything(simulation: None, write: WriteFile, number: int) -> None:
    path = write("hosts: {a: {node: true}}")
    with Process([*COMMAND, str(path)]) as running:
        child = first_child(running.pid)
        running.signal(number)
        assert running.end() == 128 + number
        assert not alive(child)


def first_child(pid: int) -> int:
    """Waits until a process has started the wrapper, whose `unshare` this returns."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # it was another one, which has ended meanwhile
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                if words[0] == "unshare" and "--inside" in words:
                    return int(child)
        time.sleep(0.01)
    raise AssertionError("it did not start the wrapper")


# -- at a terminal


class Terminal:
    """Somebody at a terminal in whose foreground `causeway lab` runs."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [*COMMAND, *arguments])
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Waits for it; what came up to its end is taken away and returned."""
        deadline = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self._seen)) is None:
            ready = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = b""
            if ready:
                try:
                    data = os.read(self._fd, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    data = b""
            if not data:
                raise AssertionError(f"{pattern!r} did not come, but: {self._seen}")
            self._seen += data.decode(errors="replace")
        before, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return before

    def end(self, key: str = "") -> int:
        """Exit code, once it has ended. key: pressed now and then, as people do when nothing happens.

        (Python loses a Ctrl-C that comes between its prompt and its wait for keys.)
        """
        deadline = time.monotonic() + PATIENCE
        pressed = -math.inf
        while time.monotonic() < deadline:
            if key and time.monotonic() > pressed + 5:
                pressed = time.monotonic()
                self.type(key)
            if select.select([self._fd], [], [], 0.05)[0]:
                try:
                    os.read(self._fd, 65536)
                except OSError:
                    pass
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(simulation: None, small: str) -> Iterator[Terminal]:
    made = Terminal(small)
    yield made
    made.close()


@pytest.mark.lab
def test_at_a_terminal_there_is_a_prompt_with_completion_and_jobs(terminal: Terminal) -> None:
    assert "192.168.1.2" in terminal.wait_for("lab> ")
    terminal.type("pi\t")
    terminal.wait_for("ping ")
    terminal.type("x y\n")
    terminal.wait_for(r"network  x → y \(203.0.113.2\): [\d.]+ ms\s+lab> ")
    # Ctrl-C and Ctrl-Z while a command runs are not for the lab.
    # (A shell that is just starting `sleep` would lose them, hence Python.)
    terminal.type(f'run y {sys.executable} -c \'import time; print("be" + "gun"); time.sleep(1000)\'\n')
    terminal.wait_for("begun")
    terminal.type("\x1a")
    terminal.type("\x03")
    terminal.wait_for(r"KeyboardInterrupt\s+lab> ")
    terminal.type("run y sh -c 'read word; echo \"<$word>\"'\n")
    terminal.type("hello\n")
    terminal.wait_for("<hello>\\s+lab> ")
    # A shell has job control, and gives the terminal back.
    terminal.type("shell z\n")
    terminal.wait_for(r"\[z\] ")
    terminal.type("sleep 1000 & jobs; ip -4 -br addr show eth0\n")
    assert "Running" in terminal.wait_for(r"192\.168\.1\.2/24")
    terminal.type(f'{sys.executable} -c \'import time; print("go" + "ing"); time.sleep(999)\'\n')
    terminal.wait_for("going")
    terminal.type("\x1a")
    terminal.wait_for(r"Stopped")
    terminal.type("disown -a; exit\n")
    terminal.wait_for("lab> ")
    # Also when it is killed while a job of its own has the terminal.
    terminal.type("shell z\n")
    terminal.wait_for(r"\[z\] ")
    terminal.type("sh -c 'kill -KILL $PPID'\n")
    terminal.wait_for("lab> ")
    terminal.type("help\n")
    terminal.wait_for(r"quit .*\s+lab> ")
    terminal.type("quit\n")
    assert terminal.end() == 0


@pytest.mark.lab
@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 0)])
def test_ctrl_c_and_ctrl_d_at_the_prompt_end_it(terminal: Terminal, key: str, code: int) -> None:
    terminal.wait_for("lab> ")
    terminal.type(f"run z {INODE}\n")
    inode = int(re.findall(r"\d+", terminal.wait_for(r"\n\d+\r\n"))[-1])
    terminal.wait_for("lab> ")
    assert terminal.end(key) == code
    assert gone({inode})
