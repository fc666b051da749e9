"""`causeway explain`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causeway import ask, options, place
from causeway.errors import CommandError
from causeway.ping import late

if TYPE_CHECKING:
    from protos.tunnel_pb2 import ExplainPeerResponse

_TIMEOUT = 15.0  # seconds; the tunnel may have to ask discovery, and that other nodes


@click.command()
@click.argument("node")
@options.output
@options.run_dir
def explain(node: str, output: str, config: Path | None, run_dir: Path | None) -> None:
    """Show every way to NODE: the one in use, and why each of the others is not.

    Builds nothing: `causeway ping NODE` makes a session where there is none.

    \b
    Examples:
      causeway explain edge-b
      causeway explain edge-b -o json | jq '.candidates[] | select(.state == "failed") | {where, why}'

    \b
    Keys of -o json: node, session: up|resuming|closing|"" (none),
    candidates[] {kind: direct|punched|relayed, where, relay, state: active|standby|suspect|closing (links),
                  failed|untried (no link), rtt_ms, behind_ms (longer than the active one), retry_in, why,
                  score (what its place in the order follows from, the weightiest first),
                  source: advertised|interface|observed|mapped|mdns|accepted|""},
    punching {starter, attempts, outcome, next_in} or null. Times in s, or ms where the name says so; null: not known.
    """
    found = asyncio.run(_ask(place.run_directory(config, run_dir), node))
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    from causeway import terminal

    console = terminal.console()
    console.print(_table(found))
    if found["punching"] is not None:
        console.print(_punching(node, found["punching"]), markup=False)


async def _ask(run_dir: Path, node: str) -> dict[str, Any]:
    import grpc

    from protos import tunnel_pb2

    async with ask.tunnel(run_dir) as tunnel:
        try:
            answer = await tunnel.ExplainPeer(tunnel_pb2.ExplainPeerRequest(node_name=node), timeout=_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise CommandError(ask.why(error, run_dir, late(node))) from error
    return _plain(node, answer)


def _plain(node: str, answer: ExplainPeerResponse) -> dict[str, Any]:
    from causeway import wording

    def given(message: Any, name: str, unit: Any) -> float | None:
        value: float | None = unit(getattr(message, name)) if message.HasField(name) else None
        return value

    punching = answer.punching
    return {
        "node": node,
        "session": answer.state,
        "candidates": [
            {
                "kind": wording.path_kind(candidate.kind),
                "where": candidate.where,
                "relay": candidate.relay,
                "state": candidate.state,
                "rtt_ms": given(candidate, "rtt", wording.milliseconds),
                "behind_ms": given(candidate, "behind", wording.milliseconds),
                "retry_in": given(candidate, "retry_in", wording.seconds),
                "why": candidate.why,
                "score": candidate.score,
                "source": candidate.source,
            }
            for candidate in answer.candidates
        ],
        "punching": {
            "starter": punching.starter,
            "attempts": punching.attempts,
            "outcome": punching.outcome,
            "next_in": given(punching, "next_in", wording.seconds),
        }
        if answer.HasField("punching")
        else None,
    }


_STYLES = {"active": "green", "standby": "cyan", "suspect": "yellow", "failed": "red"}


def _table(found: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    state = found["session"] or "no session; `causeway ping` makes one"
    table = Table(box=None, pad_edge=False, title=escape(f"{found['node']}: {state}"), title_justify="left")
    for name in ("path", "via", "known as", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("behind", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for it in found["candidates"]:
        style = _STYLES.get(it["state"], "dim")
        reason = it["why"] + (f" (again in {it['retry_in']:.0f} s)" if it["retry_in"] else "")
        table.add_row(
            it["score"] or it["kind"],
            escape(it["relay"] or it["where"]),
            it["source"],
            f"[{style}]{escape(it['state'])}[/]",
            "" if it["behind_ms"] is None else f"{it['behind_ms']:+.1f} ms",
            escape(reason),
        )
    return table


def _punching(node: str, punching: dict[str, Any]) -> str:
    count = punching["attempts"]
    text = f"hole punching: {punching['outcome']}, {count} attempt{'' if count == 1 else 's'}"
    if not punching["starter"]:
        return f"{text}; {node} starts them"
    if punching["next_in"] is not None:
        text += f", the next in {punching['next_in']:.0f} s" if punching["next_in"] else ", the next at once"
    return text
