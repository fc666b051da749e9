"""Services from a file of manifests, read again whenever it changes.

The file is looked at every two seconds (one `stat`, which follows symlinks, so editors that replace files and
ConfigMap volumes that swap a link are both seen). inotify would need the folder, its links and their targets to
be watched, by a thread of its own and 1 MiB of library.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from services.runtime import files

from ..core import gateways
from ..core.gateways import GatewayObject
from ..core.manifests import Parsed, parse
from ..directory import Directory

# Seconds between two looks.
PERIOD = 2.0
# Bytes of manifests that are read.
MAX_BYTES = 16 << 20

# The C parser is ten times as fast, where PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ServiceFile:
    """Keeps the services as the file says. A file with errors changes nothing, and the errors stand in status."""

    def __init__(self, directory: Directory, path: Path) -> None:
        self._directory = directory
        self._path = path
        self._stamp: object = ()

    async def run(self) -> None:
        """Follows the file for ever."""
        while True:
            await asyncio.sleep(PERIOD)
            if self._changed():
                # A file of a megabyte takes a second.
                self._apply(*await asyncio.to_thread(_load, self._path))

    def look(self) -> None:
        """Read the file now if it changed."""
        if self._changed():
            self._apply(*_load(self._path))

    def _changed(self) -> bool:
        stamp = files.stamp(self._path)
        changed = stamp != self._stamp
        self._stamp = stamp
        return changed

    def _apply(self, parsed: Parsed, objects: dict[str, GatewayObject]) -> None:
        if parsed.errors:
            self._refuse(parsed.errors)
            return
        board = self._directory.board
        changed = self._directory.services.replace(parsed.services)
        self._directory.gateways.replace(objects)
        board.clear("services")
        more = f", {len(objects)} objects of gateways" if objects else ""
        board.say("servicesFile", f"{len(parsed.services)} services{more}")
        self._directory.log.info(
            "services read", extra={"file": str(self._path), "count": len(parsed.services), "changed": changed}
        )
        if parsed.warnings:
            board.warn("services", f"{self._path}: {'; '.join(parsed.warnings[:5])}")
            for warning in parsed.warnings:
                self._directory.log.warning(warning, extra={"file": str(self._path)})

    def _refuse(self, errors: list[str]) -> None:
        kept = (
            f"; the {len(self._directory.services)} services read before stay" if len(self._directory.services) else ""
        )
        text = f"error: {'; '.join(errors[:5])}{f'; and {len(errors) - 5} more' if len(errors) > 5 else ''}{kept}"
        self._directory.board.say("servicesFile", text)
        self._directory.board.warn("services", f"{self._path}: {text}")
        for error in errors[:20]:
            self._directory.log.error("services not read", extra={"file": str(self._path), "error": error})


def _load(path: Path) -> tuple[Parsed, dict[str, GatewayObject]]:
    try:
        documents = _read(path)
        parsed = parse(documents)
        objects, warnings = gateways.parse(documents)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        return Parsed(errors=[_one_line(error)]), {}
    parsed.warnings += warnings
    return parsed, objects


def _read(path: Path) -> list[object]:
    """All documents of a YAML or JSON file (JSON is YAML)."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB, expected less")
    return list(yaml.load_all(data, Loader=_Loader))  # a safe loader


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{(error.strerror or str(error)).lower()}; check servicesFile"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"
    return " ".join(str(error).split())
