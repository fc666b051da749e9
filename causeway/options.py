"""Options that several commands have, each with one name, one default and one line of help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from causeway import place

_CONFIG_HELP = (
    f"Configuration file. Default: ${place.ENVIRONMENT}, ./causeway.yaml, /etc/causeway/causeway.yaml, "
    "/etc/edgemesh/config/edgemesh-agent.yaml; if there is none, built-in values."
)


def config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config FILE` (argument `config: Path | None`)."""
    return click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help=_CONFIG_HELP)(command)


def run_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config FILE` and `--run-dir DIR` for commands that talk to a running node: `place.run_directory` takes both."""
    option = click.option(
        "--run-dir",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Directory of the node's sockets, instead of --config.",
    )
    return config(option(command))


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-o text|json` (argument `output: str`)."""
    form = click.Choice(["text", "json"])
    option = click.option("-o", "--output", type=form, default="text", show_default=True, help="Form of the output.")
    return option(command)


def timeout(flag: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the time for a path to come up, in seconds (argument `timeout: float`). The flag is that of the command's
    namesake: `-W` as in ping(8), `-w` as in nc(1)."""
    return click.option(
        flag,
        "timeout",
        metavar="SECONDS",
        type=click.FloatRange(0.1, 600),
        default=15.0,
        show_default=True,
        help="Time for a path to come up.",
    )
