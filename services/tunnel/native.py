"""The data path as C extensions, which mypyc makes of the very same sources (`make native`).

Interpreted and compiled do the same, by the same lines; compiled, a tunnel carries a tenth more bulk and up to a fifth more
round trips, and answers a single one in two thirds of the time (measured side by side). Where nobody compiled them, or where a source has changed
since, the sources are interpreted. `CAUSEWAY_NATIVE=0` wants that, too.
"""

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from sysconfig import get_config_var
from types import ModuleType

FOLDER = Path(__file__).parent / "_native"
MANIFEST = "manifest.json"
"""In FOLDER, written last: the key of the sources, and the files by module."""
GROUP = "causeway_native"
LIBRARY = f"{GROUP}__mypyc"
"""The module that holds all code; the others are doors into it."""

_CORE = (
    "absence budget carrier control datagrams dispatch epoch events frames gaps handover inbox link outbox packets paths"
    " session signals stream"
)
_SHELL = "attach engine flowio keys ledger linkio listening offers opener pairing streamio streams wire"
MODULES = (
    *(f"services.tunnel.core.{name}" for name in _CORE.split()),
    *(f"services.tunnel.{name}" for name in _SHELL.split()),
)
"""What is run through for each record, datagram or stream. Compiled together: they call each other directly."""


def source(module: str) -> Path:
    """The file of a module of this package."""
    return Path(__file__).parent.joinpath(*module.split(".")[2:]).with_suffix(".py")


def key() -> str:
    """Changes with every source and with the kind of interpreter that can load what is made of them. OSError."""
    digest = hashlib.sha256(str(get_config_var("EXT_SUFFIX")).encode())
    for module in MODULES:
        digest.update(hashlib.sha256(source(module).read_bytes()).digest())
    return digest.hexdigest()


def built(folder: Path = FOLDER) -> dict[str, str]:
    """The files by module; empty unless they were made of the sources as they are."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return dict(manifest["files"]) if manifest["key"] == key() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def use(folder: Path = FOLDER) -> bool:
    """From now on compiled modules are imported. False where there are none that can be loaded here, where they are not wanted,
    and when it is too late: all have to be of one kind."""
    if os.environ.get("CAUSEWAY_NATIVE") == "0" or any(module in sys.modules for module in MODULES):
        return False
    files = built(folder)
    if not files:
        return False
    finder = _Finder({module: folder / file for module, file in files.items()})
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(LIBRARY)
    except ImportError:  # of another C library
        sys.meta_path.remove(finder)
        return False
    return True


def used() -> bool:
    """Whether this process runs them."""
    return LIBRARY in sys.modules


class _Finder(MetaPathFinder):
    """Finds modules in the files that it was given."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)
