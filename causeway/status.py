"""`causeway status`."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import click

from causeway import options, place
from causeway.errors import CommandError


@click.command()
@options.output
@click.option(
    "-w",
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 3600),
    help="Show it again every so often, until Ctrl-C.",
)
@options.run_dir
def status(output: str, watch: float | None, config: Path | None, run_dir: Path | None) -> None:
    """What this machine's node is and does: roles with reasons, peers with their paths, listeners, warnings.

    Asks the four services; one that does not run is shown as down. With all four down it is an error.

    \b
    Examples:
      causeway status
      causeway status --watch 1
      causeway status -o json | jq '.peers[] | {name, path, relay, rtt_ms}'

    \b
    Keys of -o json (all always present; keys are only ever added; times in s, or ms where the name says so):
      node, cluster, zone, run_dir
      services.{discovery,tunnel,relay,proxy}   {up, error}
      roles.relay      {active, reason, draining, listen_port, load_permille, conditions[], reservations[],
                       circuits[], bytes_total, circuits_total, refused_total}
      roles.tunnel     {listen_port, compiled: the data path is, as by `make native`}
      self             {revision, addresses[], tunnel_port, relay_port, discovery_port, reservations[],
                       claim} or null
      peers[]          {name, sources[], verified, record_age: s or null, addresses[], is_relay, relay_rank, reservations[],
                       claim: {proven[], bytes_per_second, uptime: s} or null,
                       path: direct|punched|relayed|"", relay, rtt_ms, why, session {..} or null, links[]}
      relays[]         {relay, address, state, rtt_ms, observed, expires_in}
      listeners[]      {address, network, service, endpoints, preferred, error, intercepted}
      known_services, sources {name: state}
      migrations {reason: n}
      dht              {server, servers, estimated, records, record_bytes, relays, holders[], refreshed: s ago or null}
      streams {open, total}, connections {accepted_total, dialled_total, refused {reason: n}}
      warnings[]       {service, message}
    """
    directory = place.run_directory(config, run_dir)
    from causeway import snapshot

    if watch is None:
        found = asyncio.run(snapshot.take(directory))
        if output == "json":
            click.echo(json.dumps(found, indent=2))
        if not any(service["up"] for service in found["services"].values()):
            raise CommandError(_all_down(directory))
        if output == "text":
            _show(found)
        return
    while True:
        found = asyncio.run(snapshot.take(directory))
        if output == "json":
            click.echo(json.dumps(found))  # one line each, for whoever reads them as they come
        else:
            click.clear()
            _show(found)
        time.sleep(watch)


def _show(found: dict[str, object]) -> None:
    from causeway import terminal, view

    terminal.console().print(view.render(found))


def _all_down(run_dir: Path) -> str:
    what = "no sockets in" if run_dir.is_dir() else "there is no directory"
    return f"no service is running ({what} {run_dir}): start the node with causeway up, or name it with --config or --run-dir"
