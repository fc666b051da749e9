"""What a client of the table is, and what it is given."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lab.child import Child
from lab.place import Place
from lab.tether import tether

USER = "lab"
"""Name of the user as which servers run."""
USER_ID = 1000  # any but 0, which PostgreSQL refuses
SYSTEM_PATH = "/usr/sbin:/sbin"  # Debian keeps nginx and sshd out of a user's PATH
OUTPUT_TAIL = 600  # characters of what a failed command printed

# Namespaces of a user have one id only, and it is 0 in ours. A namespace below has the same id by another number; the
# name for it comes from a passwd file that only this process tree sees.
AS_USER = (
    "unshare", "--mount", "sh", "-c",
    'mount --bind "$0" /etc/passwd && exec unshare --user --map-user=' f'{USER_ID} --map-group={USER_ID} -- "$@"',
)  # fmt: skip


class ClientError(Exception):
    """A client did not get what it should have; the message says what it got."""


@dataclass(frozen=True, slots=True)
class Row:
    """One result: what was tried and what came out."""

    check: str
    figure: str = ""
    """What is worth knowing of a success, with its unit."""
    error: str = ""
    """Why it failed; empty for a success."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the service that the case needs. The server listens on the same one."""

    number: int
    protocol: str = "TCP"


class Machine:
    """A place with a folder, on which servers and clients run. Leave it with `stop`."""

    def __init__(self, place: Place, folder: Path, run_dir: Path) -> None:
        """run_dir: of the node at this place."""
        self.place = place
        self.folder = folder
        self.run_dir = run_dir
        self._children: list[Child] = []
        self._commands = 0
        folder.mkdir(parents=True)
        (folder / "passwd").write_text(
            f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{USER_ID}:{USER_ID}::{folder}:/bin/sh\n"
        )

    @property
    def address(self) -> str:
        """Where servers listen."""
        return self.place.address

    def as_user(self, argv: Sequence[str]) -> list[str]:
        """The command line of a command without any rights, as an ordinary user."""
        # A change of the user makes the kernel forget whom the process shall not outlive.
        return [*AS_USER, str(self.folder / "passwd"), *tether(), *argv]

    def start(self, name: str, argv: Sequence[str]) -> Child:
        """A server, as an ordinary user; it prints to NAME.log."""
        child = Child(
            self.as_user([tool(argv[0]), *argv[1:]]), output=self.folder / f"{name}.log", namespace=self.place.namespace
        )
        self._children.append(child)
        return child

    async def call(self, *argv: str, timeout: float = 120.0, user: bool = False, code: int | None = 0) -> str:
        """What a command printed, standard error included. ClientError when it ends with another code than `code` (None: any), or
        not within `timeout` seconds."""
        self._commands += 1
        output = self.folder / f"command-{self._commands}.out"
        command = [tool(argv[0]), *argv[1:]]
        child = Child(self.as_user(command) if user else command, output=output, namespace=self.place.namespace)
        self._children.append(child)
        shown = " ".join([Path(command[0]).name, *argv[1:]])
        try:
            ended = await child.wait(timeout)
        except TimeoutError:
            raise ClientError(f"no end within {timeout:.0f} s: {shown}: {read(output)[-OUTPUT_TAIL:]}") from None
        finally:
            child.signal(signal.SIGKILL)
            self._children.remove(child)
        text = read(output)
        output.unlink()
        if code is not None and ended != code:
            raise ClientError(f"exit code {ended} instead of {code}: {shown}: {text[-OUTPUT_TAIL:].strip()}")
        return text

    async def rows(self, module: str, *arguments: str, timeout: float = 120.0) -> AsyncIterator[Row]:
        """Rows that a client program of our own printed, see lab/clients/program.py."""
        for line in (await self.call(sys.executable, "-m", module, *arguments, timeout=timeout)).splitlines():
            yield Row(**json.loads(line))

    async def stop(self) -> None:
        """Ends what still runs."""
        for child in self._children:
            child.signal(signal.SIGTERM)
        for child in self._children:
            await child.stop(timeout=3)
        self._children.clear()


@dataclass(frozen=True, slots=True)
class Use:
    """What a case runs with."""

    client: Machine
    server: Machine
    address: str
    """Of the service, at the client's."""
    brief: bool
    """A representative part only: less content, shorter loads."""
    report: Callable[[Row], None]

    async def attempt(self, check: str, work: Callable[[], Awaitable[str]]) -> bool:
        """Does one thing, reports the figure that it returns, or its failure. Whether it succeeded."""
        try:
            row = Row(check, await work())
        except (ClientError, OSError, ValueError, LookupError) as error:
            row = Row(check, error=" ".join(str(error).split()) or type(error).__name__)
        self.report(row)
        return not row.error


class Case:
    """One kind of client with its server."""

    name: ClassVar[str]
    tools: ClassVar[tuple[str, ...]] = ()
    """Commands that must be there."""
    ports: ClassVar[tuple[Port, ...]]

    async def serve(self, machine: Machine) -> None:
        """Starts the server; returns when it may be asked."""
        raise NotImplementedError

    async def run(self, use: Use) -> None:
        """Reports a row for each thing that was tried. What it raises is a failure of the whole case."""
        raise NotImplementedError

    def missing(self) -> list[str]:
        """Commands that are not there."""
        return [it for it in self.tools if not Path(tool(it)).is_absolute()]


def tool(name: str) -> str:
    """Path of a command; its bare name when there is none."""
    folders = [os.environ.get("PATH", "/usr/bin:/bin"), SYSTEM_PATH]
    # Debian keeps PostgreSQL's server in a folder of its version; the last of several.
    folders += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return shutil.which(name, path=":".join(folders)) or name


def read(path: Path) -> str:
    """A file that may not be there."""
    return path.read_text(errors="replace") if path.exists() else ""


def expect(condition: object, what: str) -> None:
    """Raises ClientError with `what` unless the condition holds."""
    if not condition:
        raise ClientError(what)
