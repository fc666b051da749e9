"""Commands that end with who started them."""

import shutil
from functools import cache


@cache
def tether() -> tuple[str, ...]:
    """Prefix that has the kernel kill a command when the thread that started it ends (util-linux)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
