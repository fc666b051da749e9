"""The data path, compiled: used where it can be, and the same as interpreted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.child import Child
from services.tunnel import native
from tests.patience import until
from tests.tunnel.conftest import Nodes

pytestmark = pytest.mark.slow  # starts interpreters

SAME = ("session", "schedules", "cuts", "handover", "paths", "tampering", "gaps", "windows", "absence", "former_path")
"""Of the tests beside this one those that have no doubles of compiled classes, which want the real ones."""
SEEN = """
import sys
from pathlib import Path
from lab.child import Child
from services.tunnel import native
{before}
used = native.use(Path(sys.argv[1]))
from services.tunnel import pairing
from services.tunnel.core import session
print(used, *(Path(module.__file__).suffix for module in (pairing, session)))
"""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Needs no compiler here: `make test` has asked for it before."""
    if not native.built():
        assert "CAUSEWAY_REQUIRE_NATIVE" not in os.environ, "the data path is not compiled: make native"
        pytest.skip("the data path is not compiled (make native)")


def seen(folder: Path = native.FOLDER, before: str = "", **environment: str) -> str:
    """What another interpreter loads."""
    command = [sys.executable, "-c", SEEN.format(before=before), str(folder)]
    environment = os.environ | {"CAUSEWAY_NATIVE": ""} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def changed(folder: Path, change: str) -> Path:
    """A copy of what was built, with something wrong."""
    shutil.copytree(native.FOLDER, folder)
    manifest = folder / native.MANIFEST
    content = json.loads(manifest.read_text())
    match change:
        case "sources":
            manifest.write_text(json.dumps(content | {"key": "of other sources"}))
        case "manifest":
            manifest.write_text("{}")
        case "library":
            (folder / content["files"][native.LIBRARY]).write_bytes(b"\x7fELF of another machine")
    return folder


def test_it_is_compiled_unless_somebody_does_not_want_that() -> None:
    assert seen() == "True .so .so"
    assert seen(CAUSEWAY_NATIVE="0") == "False .py .py"


@pytest.mark.parametrize("change", ["sources", "manifest", "library"])
def test_what_does_not_fit_is_left_alone(tmp_path: Path, change: str) -> None:
    assert seen(changed(tmp_path / "native", change)) == "False .py .py"


def test_it_is_all_of_one_kind() -> None:
    assert seen(before="import services.tunnel.core.link") == "False .py .py"


def test_another_source_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, source = native.key(), tmp_path / "link.py"
    real = native.source
    source.write_bytes(real("services.tunnel.core.link").read_bytes() + b"#")
    monkeypatch.setattr(native, "source", lambda module: source if module.endswith(".link") else real(module))
    assert native.key() != before


async def test_a_tunnel_runs_it(nodes: Nodes) -> None:
    c = nodes.make("c")
    command = [sys.executable, "-m", "services.tunnel", "--config", str(c.config_file)]
    apart = Child(command, output=c.log("tunnel"))
    try:
        for pid in (nodes.a.pid("tunnel"), apart.pid):
            maps = Path(f"/proc/{pid}/maps")
            await until(lambda maps=maps: native.LIBRARY in maps.read_text(), f"{pid} has loaded it")
        assert (await nodes.a.tunnel()).compiled, "as it says itself"
    finally:
        await apart.stop()


def test_it_does_the_same() -> None:
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in SAME]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tunnel.compiled", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
