"""`causeway ping`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causeway import ask, options, place
from causeway.errors import CommandError

if TYPE_CHECKING:
    from protos.tunnel_pb2 import PingPeerResponse

_DEADLINE_SLACK = 5.0  # seconds beyond the session's own timeout before the local call is given up


@click.command()
@click.argument("node")
@click.option(
    "-c",
    "count",
    metavar="N",
    type=click.IntRange(1, 100_000),
    default=4,
    show_default=True,
    help="Round trips to measure.",
)
@click.option(
    "-i",
    "interval",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    help="Pause between them.",
)
@options.timeout("-W")
@options.output
@options.run_dir
def ping(
    node: str, count: int, interval: float, timeout: float, output: str, config: Path | None, run_dir: Path | None
) -> None:
    """Measure round trips to NODE inside the mesh, and show the path they take.

    A session to the node is built if there is none; the first line may therefore take longer to appear, but
    never shows that time.

    \b
    Examples:
      causeway ping edge-b
      causeway ping edge-b -c 20 -i 0.2
      causeway ping edge-b -c 3 -o json

    \b
    Keys of -o json: node, sent, received, rtt_ms {min, avg, max, mdev} (null without an answer),
    rtts_ms [..], path {kind: direct|punched|relayed, relay, remote, why}, error ("" when all is well).
    Exit codes: 0 all answered, 1 not all.
    """
    result = asyncio.run(
        _ping(place.run_directory(config, run_dir), node, count, interval, timeout, quiet=output == "json")
    )
    if output == "json":
        click.echo(json.dumps(result, indent=2))
    else:
        _summarise(result)
    if result["received"] < result["sent"]:
        raise CommandError(result["error"]) if result["error"] and output == "text" else SystemExit(1)


async def _ping(
    run_dir: Path, node: str, count: int, interval: float, timeout: float, *, quiet: bool
) -> dict[str, Any]:
    import grpc
    from google.protobuf.duration_pb2 import Duration

    from protos import tunnel_pb2
    from services.runtime.dial import reason

    wait = Duration()
    wait.FromMilliseconds(int(timeout * 1000))
    result: dict[str, Any] = {
        "node": node,
        "sent": 0,
        "received": 0,
        "rtt_ms": None,
        "rtts_ms": [],
        "path": None,
        "error": "",
    }
    async with ask.tunnel(run_dir) as tunnel:
        if not quiet:
            click.echo(f"PING {node}")
        try:
            for number in range(1, count + 1):
                if number > 1:
                    await asyncio.sleep(interval)
                request = tunnel_pb2.PingPeerRequest(node_name=node, count=1, timeout=wait)
                try:
                    answer = await tunnel.PingPeer(request, timeout=timeout + _DEADLINE_SLACK)
                except grpc.aio.AioRpcError as error:
                    result["sent"] = number
                    result["error"] = ask.why(error, run_dir, late(node))
                    if reason(error) == "UNKNOWN_NODE":
                        break  # the next try would say the same
                    if not quiet:
                        click.echo(f"seq={number} {result['error']}")
                    continue
                result["sent"] = number
                _note(result, answer)
                if not quiet:
                    click.echo(f"from {node}: seq={number} time={result['rtts_ms'][-1]:.3f} ms {_way(result['path'])}")
        except asyncio.CancelledError:  # Ctrl-C: what was measured is still worth its summary
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
    if result["rtts_ms"]:
        rtts = result["rtts_ms"]
        result["rtt_ms"] = {
            "min": min(rtts),
            "avg": round(statistics.fmean(rtts), 3),
            "max": max(rtts),
            "mdev": round(statistics.pstdev(rtts), 3),
        }
    return result


def _note(result: dict[str, Any], answer: PingPeerResponse) -> None:
    from causeway import wording

    result["rtts_ms"].extend(wording.milliseconds(rtt) for rtt in answer.rtts)
    result["received"] += 1
    result["path"] = {
        "kind": wording.path_kind(answer.link.kind),
        "relay": answer.link.relay,
        "remote": answer.link.remote,
        "why": answer.link.why,
    }


def _way(path: dict[str, Any]) -> str:
    """ "direct 203.0.113.9:20006", "relayed via r1 (203.0.113.1:20007)"."""
    if path["relay"]:
        return f"{path['kind']} via {path['relay']} ({path['remote']})"
    return f"{path['kind']} {path['remote']}".rstrip()


def late(node: str) -> str:
    """The line for an answer that did not come in time."""
    return f"no answer from {node} in time"


def _summarise(result: dict[str, Any]) -> None:
    if not result["received"]:
        return
    rtt = result["rtt_ms"]
    lost = 100 * (result["sent"] - result["received"]) / result["sent"]
    click.echo(f"--- {result['node']}: {result['sent']} sent, {result['received']} received, {lost:.0f} % lost")
    click.echo(f"rtt min/avg/max/mdev = {rtt['min']:.3f}/{rtt['avg']:.3f}/{rtt['max']:.3f}/{rtt['mdev']:.3f} ms")
    sys.stdout.flush()
