"""`python -m services.proxy --config FILE`: the proxy service in the foreground."""

import sys

from services.proxy import driver
from services.runtime import process

if __name__ == "__main__":
    sys.exit(process.command("proxy", driver.main))
