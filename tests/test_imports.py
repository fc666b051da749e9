"""The import rules of ARCHITECTURE.md, by walking the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = ("discovery", "tunnel", "relay", "proxy")
# Pure parts that every core may use; it is a core itself.
SHARED_CORE = "services.runtime.core"
OURS = ("services", "causeway", "lab", "bench", "protos", "tests")

# Modules of the standard library that do IO, read a clock, or run things: not for a core.
NAMES = """asyncio socket time select selectors ssl threading subprocess multiprocessing concurrent signal secrets fcntl
resource mmap socketserver http urllib ftplib smtplib tempfile shutil glob sqlite3 logging sched queue"""
IMPURE = frozenset(NAMES.split())
# What a core may take from modules that hold both kinds.
PURE_PARTS = {"os": frozenset({"path", "fsencode", "fsdecode", "PathLike"}), "urllib": frozenset({"parse"})}
# Calls that read a clock, the operating system's entropy or a file.
IMPURE_CALLS = frozenset({"open", "print", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"})


def sources() -> list[Path]:
    return sorted(path for folder in ("services", "causeway", "lab", "bench") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that is imported; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*above, *([base] if base else [])])
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(module: str, text: str, *, package: bool = False) -> list[str]:
    tree = ast.parse(text)
    found = list(imports(tree, module, package=package))
    parts = module.split(".")
    problems: list[str] = []
    if parts[0] == "services" and len(parts) > 1:
        allowed = (f"services.{parts[1]}", "services.runtime", "protos")
        for line, name in found:
            if within(name, *OURS) and not within(name, *allowed):
                problems.append(f"{module}:{line} imports {name}, which is another service's or not a service's at all")
    if parts[0] == "services" and parts[1:2] != ["runtime"] and parts[-1] not in ("servicer", "peers", "wire"):
        problems += [
            f"{module}:{line} imports {name}, for servicer.py, peers.py and wire.py only"
            for line, name in found
            if within(name, "protos")
        ]
    if parts[0] == "services" and "core" in parts:
        problems += impurities(module, tree, found, ".".join(parts[: parts.index("core") + 1]))
    if parts[0] == "causeway":
        for line, name in found:
            service = name.split(".")[1:3]
            if within(name, *(f"services.{s}" for s in SERVICES)) and service[1:] not in (["__main__"], ["config"]):
                problems.append(f"{module}:{line} imports {name}, but only __main__ and config of a service are for it")
    return problems


def impurities(module: str, tree: ast.Module, found: list[tuple[int, str]], core: str) -> Iterator[str]:
    for line, name in found:
        top, _, rest = name.partition(".")
        if top in OURS:
            if not within(name, core, SHARED_CORE):
                yield f"{module}:{line} imports {name}, but a core imports only itself and {SHARED_CORE}"
        elif top not in sys.stdlib_module_names:
            yield f"{module}:{line} imports {name}, which is not of the standard library"
        elif top in PURE_PARTS:
            if rest.partition(".")[0] not in PURE_PARTS[top]:
                yield f"{module}:{line} imports {name}, of which a core may use {sorted(PURE_PARTS[top])} only"
        elif top in IMPURE:
            yield f"{module}:{line} imports {name}, which does IO or reads a clock"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last_two = ".".join(called.split(".")[-2:])
        if last_two in IMPURE_CALLS:
            yield f"{module}:{node.lineno} calls {called}(), which does IO or reads a clock"
        if called.startswith("random.") and called != "random.Random":
            yield f"{module}:{node.lineno} calls {called}(); randomness is an argument of type random.Random"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_import_rules(path: Path) -> None:
    assert violations(module_name(path), path.read_text(), package=path.name == "__init__.py") == []


def test_every_service_has_been_walked() -> None:
    walked = {module_name(path) for path in sources()}
    assert {f"services.{name}" for name in (*SERVICES, "runtime")} <= walked


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("services.relay.relay", "import services.tunnel.core"),
        ("services.relay.relay", "from services import tunnel"),
        ("services.relay.relay", "from ..tunnel import core"),
        ("services.relay.relay", "import causeway"),
        ("services.relay.relay", "from lab import wires"),
        ("services.runtime.serve", "from services.proxy import config"),
        ("services.relay.relay", "from protos import relay_pb2"),
        ("services.relay.core.table", "import asyncio"),
        ("services.relay.core.table", "from time import monotonic"),
        ("services.relay.core.table", "import os"),
        ("services.relay.core.table", "import grpc"),
        ("services.relay.core.table", "from services.runtime import address"),
        ("services.relay.core.table", "from ..errors import RelayError"),
        ("services.runtime.core.bucket", "from services.runtime import address"),
        ("services.relay.core.table", "import random\nx = random.random()"),
        ("services.relay.core.table", "import datetime\nx = datetime.datetime.now()"),
        ("services.relay.core.table", "def f():\n    return open('x')"),
        ("causeway.status", "from services.tunnel import driver"),
    ],
)
def test_the_walk_finds(module: str, text: str) -> None:
    assert violations(module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("services.relay.relay", "from services.relay.core import table\nfrom services.runtime import serve"),
        ("services.relay.servicer", "from protos import relay_pb2"),
        ("services.relay.core.table", "from .pairing import Pair\nfrom services.relay.core import limits"),
        ("services.relay.core.table", "from services.runtime.core import bucket"),
        ("services.runtime.core.table", "from .bucket import TokenBucket"),
        ("services.relay.core.table", "import random\ndef f(r: random.Random): return r.random()"),
        ("services.relay.core.table", "from os import fsencode\nfrom urllib.parse import quote"),
        ("causeway.up", "from services.relay import __main__\nfrom services.runtime import config"),
    ],
)
def test_the_walk_allows(module: str, text: str) -> None:
    assert violations(module, text) == []
