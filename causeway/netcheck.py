"""`causeway netcheck`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causeway import ask, options, place
from causeway.errors import CommandError

if TYPE_CHECKING:
    from protos.tunnel_pb2 import NetCheckResponse

_DEADLINE = 20.0  # seconds; the tunnel ends its check after 12 at the latest


@click.command()
@options.output
@options.run_dir
def netcheck(output: str, config: Path | None, run_dir: Path | None) -> None:
    """Find out what NAT this machine's node is behind, which of its addresses others reach, and how far its relays are.

    The node's relays are asked what they see and whether they get in, which takes a few seconds, 12 at most. Two relays
    with different addresses are needed to tell all. Nothing but the node's own addresses is probed.

    \b
    Examples:
      causeway netcheck
      causeway netcheck -o json | jq -r .nat.kind

    \b
    Keys of -o json (all always present; keys are only ever added; null: not known):
      node, verdict    one sentence, as shown
      nat              {kind: public|firewall|full-cone|restricted|port-restricted|symmetric|"",
                       mapping: none|endpoint-independent|endpoint-dependent|"", mapping_why,
                       filtering: endpoint-independent|address-dependent|address-and-port-dependent|"",
                       filtering_why, port_preserved, hairpin, hairpin_why}
      addresses[]      {address, source: advertised|interface|observed|mapped, reachable, why}
      ipv6             {addresses[] (global ones), relays_tried, relays_reached}
      port_mapping     {protocol: PCP|NAT-PMP|UPnP|"", gateway, external ("" when nothing is mapped), why}
      relays[]         {relay, address, rtt_ms, observed, reserved, error}, the nearest first
      notes[]          what could not be found out, and why
      took             seconds
    Exit codes: 0 a report was made, whatever it says; 1 the node did not answer.
    """
    result = as_data(asyncio.run(_ask(place.run_directory(config, run_dir), quiet=output == "json")))
    if output == "json":
        click.echo(json.dumps(result, indent=2))
    else:
        _show(result)


async def _ask(run_dir: Path, *, quiet: bool) -> NetCheckResponse:
    import grpc
    from rich.console import Console

    from protos import tunnel_pb2

    patience = Console(stderr=True, quiet=quiet)
    async with ask.tunnel(run_dir) as tunnel:
        try:
            with patience.status("asking the relays what they see …"):
                return await tunnel.NetCheck(tunnel_pb2.NetCheckRequest(), timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise CommandError("the running tunnel is older than this command: restart the node") from None
            late = f"the tunnel did not answer within {_DEADLINE:g} s"
            raise CommandError(ask.why(error, run_dir, late)) from None


def as_data(reply: NetCheckResponse) -> dict[str, Any]:
    """The report as plain data, see the command's help."""
    from causeway import wording
    from protos import tunnel_pb2 as pb

    def known(finding: pb.Finding.ValueType) -> bool | None:
        return {pb.FINDING_YES: True, pb.FINDING_NO: False}.get(finding)

    relays = [
        {
            "relay": relay.relay,
            "address": relay.address,
            "rtt_ms": wording.milliseconds(relay.rtt) if relay.HasField("rtt") else None,
            "observed": relay.observed,
            "reserved": relay.reserved,
            "error": relay.error,
        }
        for relay in reply.relays
    ]
    six = [relay for relay in reply.relays if relay.address.startswith("[")]
    return {
        "node": reply.node_name,
        "verdict": reply.verdict,
        "nat": {
            "kind": wording.word(pb.NatKind.Name, reply.kind, "NAT_KIND_"),
            "mapping": wording.word(pb.NatMapping.Name, reply.mapping, "NAT_MAPPING_"),
            "mapping_why": reply.mapping_why,
            "filtering": wording.word(pb.NatFiltering.Name, reply.filtering, "NAT_FILTERING_"),
            "filtering_why": reply.filtering_why,
            "port_preserved": known(reply.port_preserved),
            "hairpin": known(reply.hairpin),
            "hairpin_why": reply.hairpin_why,
        },
        "addresses": [
            {
                "address": address.address,
                "source": address.source,
                "reachable": known(address.reachable),
                "why": address.why,
            }
            for address in reply.addresses
        ],
        "ipv6": {
            "addresses": sorted({ip for address in reply.addresses if (ip := _global_ipv6(address.address))}),
            "relays_tried": len(six),
            "relays_reached": sum(relay.HasField("rtt") for relay in six),
        },
        "port_mapping": {
            "protocol": reply.port_mapping.protocol,
            "gateway": reply.port_mapping.gateway,
            "external": reply.port_mapping.external,
            "why": reply.port_mapping.why,
        },
        "relays": relays,
        "notes": list(reply.notes),
        "took": wording.seconds(reply.took),
    }


def _global_ipv6(address: str) -> str:
    """The IP of "[ip]:port" where that is a global IPv6 address, else ""."""
    ip = address.rpartition(":")[0]
    # Global unicast is 2000::/3 (RFC 4291 and IANA's registry).
    return ip[1:-1] if ip.startswith(("[2", "[3")) else ""


def _show(found: dict[str, Any]) -> None:
    from causeway import netview, terminal

    terminal.console().print(netview.render(found))
