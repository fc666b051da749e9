"""Calls of the program `nft`."""

import os
import shutil
import subprocess
from collections import Counter

from services.proxy.core.ruleset import TABLE

TIMEOUT = 20.0  # s; milliseconds on a machine that is not overloaded
_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"  # ordinary users often lack the last two
_NO_TABLE = "No such file or directory"  # ENOENT, of a listing

Listing = Counter[str]


class NftError(Exception):
    """One line on what is missing, not permitted or wrong."""


def load(script: str) -> None:
    """One transaction: all of it, or NftError and nothing of it."""
    _run(["-f", "-"], script)


def listing() -> Listing | None:
    """What our table holds, for comparison only; None without one."""
    try:
        text = _run(["--stateless", "list", "table", *TABLE.split()])
    except NftError as error:
        if _NO_TABLE in str(error):
            return None
        raise
    # Elements are listed in whatever order the kernel keeps them.
    return Counter(text.replace(",", " ").split())


def _run(arguments: list[str], script: str = "") -> str:
    program = shutil.which("nft", path=_PATH)
    if program is None:
        raise NftError("the program nft is missing (Debian's package nftables)")
    try:
        done = subprocess.run(
            [program, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftError(f"nft cannot be run: {error}") from None
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in done.stderr.splitlines() if "rror" in line or "not permitted" in line]
    text = lines[0] if lines else f"nft ended with {done.returncode}"
    if "not permitted" in done.stderr:
        text = "it is not permitted: the proxy needs CAP_NET_ADMIN"
    raise NftError(text)
