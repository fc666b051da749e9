"""`causeway version`."""

from __future__ import annotations

import platform
from importlib import metadata

import click


@click.command()
def version() -> None:
    """The versions of causeway and of what it stands on; for bug reports.

    \b
    Example:
      causeway version
    """
    click.echo(f"causeway {metadata.version('causeway')}")
    for package in ("grpcio", "protobuf", "cryptography", "pyOpenSSL", "zeroconf"):
        click.echo(f"  {package} {metadata.version(package)}")
    click.echo(f"  Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}")
