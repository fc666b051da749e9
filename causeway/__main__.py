"""`causeway`: one command for the node, its four services, and for looking at it.

Subcommands are imported when they are used, so that `causeway --help` is quick and `causeway relay` carries
nothing of `causeway status`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from dataclasses import dataclass

import click

from causeway.errors import RUNTIME, USAGE, CommandError, printable


@dataclass(frozen=True, slots=True)
class Entry:
    """A subcommand: where it is, and its line in `causeway --help`."""

    target: str  # "module:attribute"
    summary: str


COMMANDS = {
    "up": Entry("causeway.up:up", "Run a node: its four services under one supervisor."),
    "status": Entry("causeway.status:status", "What the node is and does: roles, peers, paths, listeners, warnings."),
    "ping": Entry("causeway.ping:ping", "Measure the round trip to a node, and show the path."),
    "explain": Entry("causeway.explain:explain", "Every way to a node: the one in use, and why the others are not."),
    "netcheck": Entry(
        "causeway.netcheck:netcheck", "What NAT the node is behind, and by which addresses it is reached."
    ),
    "nc": Entry("causeway.nc:nc", "Connect stdin and stdout to a target at a node (ssh -o ProxyCommand)."),
    "forward": Entry("causeway.forward:forward", "A local port that leads to a service, or to a target at a node."),
    "ca": Entry("causeway.ca:ca", "The cluster's secret, or its certificate authority."),
    "demo": Entry("causeway.demo:demo", "Two nodes, two relays, and relays killed under a download."),
    "lab": Entry("causeway.lab:lab", "Rehearse a network: hosts, NATs and nodes from a file, on this machine."),
    "discovery": Entry("causeway.service:discovery", "Run the discovery service in the foreground."),
    "tunnel": Entry("causeway.service:tunnel", "Run the tunnel service in the foreground."),
    "relay": Entry("causeway.service:relay", "Run the relay service in the foreground."),
    "proxy": Entry("causeway.service:proxy", "Run the proxy service in the foreground."),
    "version": Entry("causeway.version:version", "The versions of causeway and of what it stands on."),
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), entry.target
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table alone; click's own would import every subcommand for its summary."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see causeway --help"
            raise click.UsageError(f"no command '{args[0]}': {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="causeway", message="%(prog)s %(version)s")
@click.pass_context
def causeway(ctx: click.Context) -> None:
    """Services on machines that cannot reach each other talk as if they shared one network.

    \b
    Examples:
      causeway up --config causeway.yaml     run this machine's node
      causeway status                        who is reachable, and how
      causeway ping edge-b                   round trip and path to edge-b
      ssh -o ProxyCommand='causeway nc edge-b 127.0.0.1:22' edge-b
      causeway demo                          see relays die under a download

    Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Entry point of the command. Every failure is one line on standard error (one a problem for a configuration)."""
    try:
        code = causeway.main(prog_name="causeway", standalone_mode=False)
    except CommandError as error:
        for line in error.lines:
            _complain(line)
        code = error.code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_of = f" (see {context.command_path} --help)" if context is not None else ""
        _complain(error.format_message().rstrip(".") + help_of)
        code = USAGE
    except (click.Abort, KeyboardInterrupt):
        code = 130  # 128 + SIGINT, as shells count
    except BrokenPipeError:
        # The reader of our output went away (`causeway status | head`): nothing more to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = RUNTIME
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        code = RUNTIME
    sys.exit(code if isinstance(code, int) else 0)


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it; the exit code stays
        print(f"causeway: {printable(line)}", file=sys.stderr)


if __name__ == "__main__":
    main()
