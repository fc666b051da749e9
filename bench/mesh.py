"""Causeway itself: nodes started with `causeway up` on loopback addresses, A→B direct and A→R→B relayed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bench.gauge import family
from bench.process import Child, Failed, run
from bench.rig import PORTS, Address, Rig, Roles
from lab.manifest import service

SETTLE = 120.0  # seconds until the paths are those to be measured; a killed relay waits for its supervisor


class Node:
    """One `causeway up`: its files, and its processes by service."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], *, psk: str, services: list[Any]) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.folder = folder
        self.run_dir = folder / "run"
        self.config_file = folder / "causeway.yaml"
        (folder / "psk").write_text(psk + "\n")
        (folder / "psk").chmod(0o600)
        (folder / "services.yaml").write_text(yaml.safe_dump_all(services))
        self.config_file.write_text(yaml.safe_dump({"nodeName": name, "stateDir": "state", "runDir": "run", **config}))
        self.child: Child | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "causeway", "up", "--config", str(self.config_file)]

    def pids(self) -> dict[str, int]:
        """Process ids by service; "up" is the supervisor. It names its children `cw-SERVICE`."""
        assert self.child
        found = {"up": self.child.pid}
        for pid in family([self.child.pid]):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith("cw-"):
                found[name.removeprefix("cw-")] = pid
        return found

    def status(self) -> dict[str, Any]:
        """What `causeway status -o json` says."""
        text = run([sys.executable, "-m", "causeway", "status", "-o", "json", "--run-dir", str(self.run_dir)])
        status: dict[str, Any] = json.loads(text)
        return status

    def peer(self, name: str) -> dict[str, Any]:
        """The entry of one peer in the status; empty when it is not known."""
        return next((peer for peer in self.status()["peers"] if peer["name"] == name), {})


class Causeway(Rig):
    """client → proxy A, tunnel A ═ TCP, sealed ═ tunnel B → server"""

    name: ClassVar[str] = "causeway"
    title: ClassVar[str] = "causeway A→B"
    listens: ClassVar[bool] = True
    path: ClassVar[str] = "direct"

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        cluster_ips = {"a": f"{self.block}.101", "b": f"{self.block}.102"}
        relays = [
            {"nodeName": name, "advertiseAddress": [address]}
            for name, address in (("r1", f"{self.block}.3"), ("r2", f"{self.block}.4"))
        ]
        psk, cluster = secrets.token_hex(32), f"bench-{secrets.token_hex(4)}"
        self.nodes = {}
        for last, name in enumerate(("a", "b", "r1", "r2"), start=1):
            is_relay = name.startswith("r")
            tunnel: dict[str, Any] = {"relayNodes": relays}
            if not is_relay and not self.listens:
                tunnel["listenPort"] = 0
            config = {
                "cluster": cluster,
                "listenAddress": f"{self.block}.{last}",
                "modules": {
                    # mDNS would cross over to other meshes on this host.
                    "edgeDiscovery": {"servicesFile": "services.yaml", "mdns": {"enable": False}},
                    "edgeTunnel": tunnel,
                    "edgeRelay": {"mode": "auto" if is_relay else "off"},
                },
            }
            # Two nodes on one machine cannot both listen on one clusterIP.
            documents = [
                document
                for entry, (host, port) in servers.items()
                if not is_relay
                for document in service(
                    entry,
                    cluster_ip=cluster_ips[name],
                    port=PORTS[entry],
                    node="b",
                    address=host,
                    target_port=port,
                )
            ]
            self.nodes[name] = Node(self.folder / name, name, config, psk=psk, services=documents)
        for node in reversed(self.nodes.values()):
            node.child = self.spawn(node.command(), log=f"{node.name}/up")
        return {entry: (cluster_ips["a"], PORTS[entry]) for entry in servers}

    def settle(self) -> None:
        """Waits until A and B reach each other on the path that is to be measured, with what it needs at hand."""
        deadline = time.monotonic() + SETTLE
        ends = (("a", "b"), ("b", "a"))
        while unsettled := [
            f"{near}: {_describe(peer)}" for near, far in ends if not self._settled(peer := self.nodes[near].peer(far))
        ]:
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: no {self.path} path as it should be within {SETTLE:.0f} s: {unsettled[0]}")
            self.measure("ping", "echo", 2, timeout=SETTLE)
            time.sleep(0.5)

    def _settled(self, peer: dict[str, Any]) -> bool:
        # A hole may have been punched before the first dial came through: the same bytes on the same way.
        return bool(peer) and peer["path"].replace("punched", "direct") == self.path

    def roles(self) -> Roles:
        near, far = self.nodes["a"].pids(), self.nodes["b"].pids()
        return Roles(
            near=[near["tunnel"], near["proxy"]],
            middle=[node.pids()["relay"] for name, node in self.nodes.items() if name.startswith("r")],
            far=[far["tunnel"], far["proxy"]],
        )


class CausewayRelayed(Causeway):
    """As above, A → R → B: the tunnels of A and B do not listen"""

    name: ClassVar[str] = "causeway-relayed"
    title: ClassVar[str] = "causeway A→R→B"
    listens: ClassVar[bool] = False
    path: ClassVar[str] = "relayed"

    def _settled(self, peer: dict[str, Any]) -> bool:
        # A standby over the same relay is none when the relay dies: there must be a link over each of the two.
        relays = {link["relay"] for link in peer.get("links", []) if link["state"] in ("active", "standby")}
        return super()._settled(peer) and relays == {"r1", "r2"}

    def relay_in_use(self) -> Node:
        """The relay of A's active link; for a moment after a switch there may be none."""
        deadline = time.monotonic() + SETTLE
        while not (relay := self.nodes["a"].peer("b").get("relay")):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: A has no active link to B after {SETTLE:.0f} s")
            time.sleep(0.1)
        return self.nodes[relay]

    def kill_relay(self, number: signal.Signals) -> None:
        """Sends a signal to the relay service that carries A ↔ B now."""
        os.kill(self.relay_in_use().pids()["relay"], number)


def _describe(peer: dict[str, Any]) -> str:
    links = [f"{link['kind']} {link['relay']} {link['state']}".replace("  ", " ") for link in peer.get("links", [])]
    return ", ".join(links) or "no link"
