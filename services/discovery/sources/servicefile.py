"""Services from a file of manifests, read again whenever it changes.

The file is looked at every two seconds (one `stat`, which follows symlinks, so editors that replace files and
ConfigMap volumes that swap a link are both seen). inotify would need the folder, its links and their targets to
be watched, by a thread of its own and 1 MiB of library.

An object that is wrong is left out, and never keeps out the others; a service of which an earlier state is known stays as
it was. A file of which nothing can be used is refused as a whole.

What it held when it was last read is kept in the state folder, so that a node which restarts while
the file is gone, unreadable or wrong has its services all the same.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml

from services.runtime import files
from services.runtime.core.age import spell
from services.runtime.core.envelope import BadSnapshot
from services.runtime.loader import Loader

from ..core import gateways
from ..core.gateways import GatewayObject
from ..core.lastgood import MAX_AGE, LastGood
from ..core.manifests import Parsed, parse
from ..directory import Directory
from .lastgood import Copy

# Seconds between two looks.
PERIOD = 2.0
# Bytes of manifests that are read.
MAX_BYTES = 16 << 20


class ServiceFile:
    """Keeps the services as the file says. A file of no use changes nothing, and the errors stand in status; at the
    start, what the file held when it was last read stands in for it."""

    def __init__(self, directory: Directory, path: Path) -> None:
        self._directory = directory
        self._path = path
        self._stamp: object = ()
        self._copy = Copy(directory.settings.state_dir)
        # Content of the file while it is of use.
        self._good: bytes | None = None
        self._complaint = ""
        # Objects of the file that are left out.
        self._unused = 0
        # While services of a former run stand in for those of the file.
        self._standin: LastGood | None = None

    async def run(self) -> None:
        """Follows the file for ever."""
        while True:
            await asyncio.sleep(PERIOD)
            if self._changed():
                # A file of a megabyte takes a second.
                self._apply(*await asyncio.to_thread(_load, self._path))
            elif self._standin is not None:
                self._tell()  # it has grown older

    async def keep(self) -> None:
        """Keeps the file's content for the next start, for ever. A task of its own: a flush may take seconds."""
        while True:
            await self._keep()
            await asyncio.sleep(PERIOD)

    def look(self) -> None:
        """Read the file now if it changed."""
        if self._changed():
            self._apply(*_load(self._path))

    def _changed(self) -> bool:
        stamp = files.stamp(self._path)
        changed = stamp != self._stamp
        self._stamp = stamp
        return changed

    def _apply(self, parsed: Parsed, objects: dict[str, GatewayObject], data: bytes) -> None:
        if _useless(parsed, objects):
            self._refuse(parsed.errors)
            return
        board, store = self._directory.board, self._directory.services
        stay = {key: known for key in parsed.spoilt if (known := store.get(key)) is not None}
        changed = store.replace(stay | parsed.services)
        self._directory.gateways.replace(objects)
        self._good, self._complaint, self._standin, self._unused = data, "", None, len(parsed.errors)
        board.clear("services")
        self._tell()
        self._directory.log.info(
            "services read", extra={"file": str(self._path), "count": len(store), "changed": changed}
        )
        for error in parsed.errors[:20]:
            self._directory.log.error("an object is not used", extra={"file": str(self._path), "error": error})
        for warning in parsed.warnings:
            self._directory.log.warning(warning, extra={"file": str(self._path)})
        complaints = [*(f"not used: {error}" for error in parsed.errors), *parsed.warnings]
        if complaints:
            board.warn("services", f"{self._path}: {_some(complaints)}")

    def _refuse(self, errors: list[str]) -> None:
        first = self._good is None and not self._complaint
        self._good = None
        self._complaint = _some(errors)
        for error in errors[:20]:
            self._directory.log.error("services not read", extra={"file": str(self._path), "error": error})
        if first:
            self._complaint += self._stand_in()
        self._directory.board.warn("services", f"{self._path}: {self._tell()}")

    def _tell(self) -> str:
        """The line in status. Its beginning is that of the warning, too, which has no age: it is raised once."""
        count = len(self._directory.services)
        objects = len(self._directory.gateways)
        text = f"{count} services{f', {objects} objects of gateways' if objects else ''}"
        if self._unused:
            text += f"; {self._unused} objects are wrong and not used, see the warnings"
        if self._complaint:
            text = f"error: {self._complaint}"
            if self._standin is None and count:
                text += f"; the {count} services read before stay"
        shown = text
        if self._standin is not None:
            text += f"; the {count} services that it had when it was last read are used"
            shown = f"{text}, {spell(self._standin.age(self._directory.wall()))} old"
        self._directory.board.say("servicesFile", shown)
        return text

    def _stand_in(self) -> str:
        """Use what a former run has left, if it is not too old; what is to be said if that is of no use."""
        try:
            kept = self._copy.load()
            if kept is None:
                return ""
            age = kept.age(self._directory.wall())
            if age > MAX_AGE:
                return f"; what it held {spell(age)} ago is too old to be used"
            parsed, objects = _parse(kept.data)
            if _useless(parsed, objects):
                raise BadSnapshot(parsed.errors[0])
        except (OSError, BadSnapshot, *_UNREADABLE) as error:
            return f"; its copy in {self._copy.path} is not used: {_one_line(error)}"
        self._directory.services.replace(parsed.services)
        self._directory.gateways.replace(objects)
        self._standin = kept
        return ""

    async def _keep(self) -> None:
        now = self._directory.wall()
        if self._good is None or not self._copy.due(self._good, now):
            return
        board = self._directory.board
        try:
            await asyncio.to_thread(self._copy.save, self._good, now)
        except OSError as error:
            text = f"{self._copy.path} cannot be written: {error.strerror}; without it services need {self._path}"
            if board.warn("services copy", text):
                self._directory.log.warning(text)
            return
        board.clear("services copy")


def _useless(parsed: Parsed, objects: dict[str, GatewayObject]) -> bool:
    """All that there is in the file is wrong: it is another file, or half of one."""
    return bool(parsed.errors) and not parsed.services and not objects


def _some(lines: list[str]) -> str:
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")


# What parsing raises for bytes that are no manifests.
_UNREADABLE = (ValueError, yaml.YAMLError, RecursionError)


def _load(path: Path) -> tuple[Parsed, dict[str, GatewayObject], bytes]:
    try:
        data = _read(path)
        return *_parse(data), data
    except OSError as error:
        return Parsed(errors=[f"{_one_line(error)}; check servicesFile"]), {}, b""
    except _UNREADABLE as error:
        return Parsed(errors=[_one_line(error)]), {}, b""


def _parse(data: bytes) -> tuple[Parsed, dict[str, GatewayObject]]:
    documents = _documents(data)
    parsed = parse(documents)
    objects, warnings = gateways.parse(documents)
    parsed.warnings += warnings
    return parsed, objects


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB, expected less")
    return data


def _documents(data: bytes) -> list[object]:
    """All documents of a YAML or JSON file (JSON is YAML)."""
    return list(yaml.load_all(data, Loader=Loader))  # a safe loader


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"
    return " ".join(str(error).split())
