"""`causeway discovery|tunnel|relay|proxy`: one service in the foreground; the entry points of the containers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click

from causeway import options, place

NAMES = ("discovery", "tunnel", "relay", "proxy")

# Which services each one calls (ARCHITECTURE: "arrows: who calls whom"). They are stopped after it.
CALLS = {"discovery": (), "tunnel": ("discovery",), "relay": ("discovery",), "proxy": ("discovery", "tunnel")}


def run(name: str, config: Path | None) -> None:
    """Becomes `python -m services.NAME`; leaves by SystemExit, as a main module does."""
    sys.argv = [f"causeway {name}", *(["--config", str(config)] if config else [])]
    runpy.run_module(f"services.{name}", run_name="__main__", alter_sys=False)


def _command(name: str, owns: str) -> click.Command:
    @click.command(
        name,
        help=f"""Run the {name} service in the foreground: {owns}

    \b
    Stops cleanly on SIGTERM or Ctrl-C. The same as: python -m services.{name} --config FILE
    Look at it while it runs:
      grpcurl -plaintext -unix RUN_DIR/{name}.sock list
    """,
    )
    @options.config
    def command(config: Path | None) -> None:
        place.load(config)  # the service loads it again; here its problems get the command's form and exit code
        run(name, place.find(config))

    return command


discovery = _command("discovery", "who is out there, and which services they offer.")
tunnel = _command("tunnel", "sessions to other nodes, the choice of paths, and the streams inside.")
relay = _command("relay", "reservations and circuits for nodes that cannot reach each other.")
_proxy = _command("proxy", "the listeners that applications connect to, and the way to local backends.")


@click.command(
    "proxy",
    help=f"""{_proxy.help}
    \b
    After a proxy that intercepts cluster IPs was killed and will not come back (the same: nft delete table inet causeway):
      causeway proxy --cleanup
    """,
)
@options.config
@click.option("--cleanup", is_flag=True, help="Remove the nftables table that a killed proxy left behind, and end.")
@click.pass_context
def proxy(context: click.Context, config: Path | None, cleanup: bool) -> None:
    if not cleanup:
        context.invoke(_proxy, config=config)
        return
    from services.proxy.__main__ import cleanup as remove

    sys.exit(remove())
