"""What a node costs that does nothing, and how long it takes to be ready."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from bench.gauge import cpu_seconds, private_bytes, pss_bytes
from bench.mesh import Node
from bench.process import Child, Failed, python
from bench.rig import Loopback

SERVICES = ("discovery", "tunnel", "relay", "proxy")
SETTLE = 20  # seconds after ready: in the first 20 s announcements, imports and probes cost three times as much


def measure(folder: Path, loopback: Loopback, seconds: int) -> dict[str, float]:
    """One node with the defaults, mDNS included, and a relay that it holds a reservation on, both idle.

    ready_s: from the start of `causeway up` until all four services report SERVING. pss_mib and private_mib:
    the four services together; with_supervisor_mib: PSS of these and the supervisor. cpu_percent: of one
    core, the four services together, over `seconds`.
    """
    block = loopback.block()
    psk, cluster = secrets.token_hex(32), f"bench-{secrets.token_hex(4)}"
    relays = [{"nodeName": "r", "advertiseAddress": [f"{block}.2"]}]
    nodes = []
    for name, address in (("r", f"{block}.2"), ("a", f"{block}.1")):
        config = {"cluster": cluster, "listenAddress": address, "modules": {"edgeTunnel": {"relayNodes": relays}}}
        nodes.append(Node(folder / "idle" / name, name, config, psk=psk, services=[]))
    children: list[Child] = []
    try:
        for node in nodes:
            # The watcher is warm before the node starts: its own start is not the node's.
            watcher = Child(python("bench.ready", str(node.run_dir)), node.folder / "ready.log", talk=True)
            children.append(watcher)
            watcher.read_line(20)
            begin = time.monotonic()
            node.child = Child(node.command(), node.folder / "up.log")
            children.append(node.child)
            try:
                ready = json.loads(watcher.read_line(60))["at"] - begin
            except Failed as failure:
                raise Failed(f"{node.name} did not get ready: {failure}; {node.child.tail()}") from None
        time.sleep(SETTLE)
        pids = nodes[-1].pids()
        if missing := [name for name in SERVICES if name not in pids]:
            raise Failed(f"no process cw-{missing[0]} under causeway up")
        services = [pids[name] for name in SERVICES]
        before, begin = cpu_seconds(services), time.monotonic()
        time.sleep(seconds)
        busy, passed = cpu_seconds(services) - before, time.monotonic() - begin
        mib = 1 << 20
        return {
            "ready_s": ready,
            "pss_mib": pss_bytes(services) / mib,
            "private_mib": private_bytes(services) / mib,
            "with_supervisor_mib": pss_bytes([*services, pids["up"]]) / mib,
            "cpu_percent": 100 * busy / passed,
            **{f"pss_mib_{name}": pss_bytes([pids[name]]) / mib for name in SERVICES},
        }
    finally:
        for child in reversed(children):
            child.stop()
