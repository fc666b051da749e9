"""`python -m services.proxy --config FILE`: the proxy service in the foreground."""

import argparse
import sys
from pathlib import Path

from services.proxy import driver
from services.runtime import config, process


def main() -> int:
    """Runs until SIGTERM or SIGINT; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.proxy", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML file; without it the embedded defaults apply")
    try:
        loaded = config.load(parser.parse_args().config)
    except config.ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 (there is no logger before there is a configuration)
        return 2
    return process.run("proxy", loaded, driver.main)


if __name__ == "__main__":
    sys.exit(main())
