"""`python deploy/native.py`: compiles what services/tunnel/native.py lists, unless that is done, in about a minute.

Needs mypy, a C compiler and the headers of Python; without them it says so in one line and is content, since the sources can
be interpreted. (`--here`: the same, whatever there is, and with all that the tools say.)
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from services.tunnel import native

ROOT = Path(__file__).parents[1]
HOW = "apt-get install gcc python3-dev, then make native"


def missing() -> str:
    """What there is not, in one line; empty when all is there."""
    compiler = shlex.split(str(sysconfig.get_config_var("CC") or "cc"))[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python"
    return ""


def build(folder: Path = native.FOLDER) -> None:
    """Into that folder, whatever was there."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    key = native.key()
    os.chdir(ROOT)  # where mypy has its configuration
    with tempfile.TemporaryDirectory() as made:
        paths = [str(native.source(module).relative_to(ROOT)) for module in native.MODULES]
        extensions = mypycify(paths, group_name=native.GROUP, opt_level="2", debug_level="0", target_dir=f"{made}/c")
        command = Distribution({"name": native.GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = f"{made}/lib", f"{made}/temp"
        command.ensure_finalized()
        command.run()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        files = {module: module + suffix for module in (native.LIBRARY, *native.MODULES)}
        for module, file in files.items():
            shutil.copy(f"{Path(made, 'lib', *module.split('.'))}{suffix}", folder / file)
    manifest = folder / f"{native.MANIFEST}.new"
    manifest.write_text(json.dumps({"key": key, "files": files}, indent=1) + "\n")
    manifest.rename(folder / native.MANIFEST)


def main() -> int:
    """Entry point."""
    if native.built():
        return 0
    why = missing()
    if not why:
        print("compiling the data path, about a minute", flush=True)
        done = subprocess.run([sys.executable, __file__, "--here"], capture_output=True, text=True)
        if done.returncode == 0:
            return 0
        why = (done.stdout + done.stderr).strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    print(f"the data path is interpreted: {why} ({HOW})")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        build()
    else:
        sys.exit(main())
