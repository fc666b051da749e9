"""The command line of `causeway lab`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causeway import options
from causeway.errors import USAGE, CommandError

if TYPE_CHECKING:
    from lab.topology import Topology


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--check", is_flag=True, help="Look for mistakes in FILE, tell all of them, and start nothing.")
@options.output
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep the nodes' files and logs in this new or empty folder. Default: in memory, gone at the end.",
)
@click.option("--inside", is_flag=True, hidden=True)
@click.option("--terminal", is_flag=True, hidden=True)
def lab(
    file: Path,
    command: tuple[str, ...],
    check: bool,
    output: str,
    folder: Path | None,
    inside: bool,
    terminal: bool,
) -> int:
    """Rehearse a network: start the hosts, NATs and nodes that FILE describes, on this machine, without root.

    \b
    causeway lab FILE                   starts it, shows it, and asks what to do (help, quit)
    causeway lab FILE -- HOST COMMAND…  runs one command on one host; its exit code is the result
    causeway lab FILE --check           only looks for mistakes
    causeway lab FILE -o json           the description as JSON; commands are read from standard input

    \b
    Example of a FILE: two homes that cannot reach each other, and a relay between them.
      relays: [r]                       # named in relayNodes of every node
      hosts:                            # with public addresses
        r: {node: true, wire: 5ms}      # one way; 10 ms there and back
      lans:
        left:                           # kinds: full-cone, restricted, port-restricted
          nat: masquerade               #   (= masquerade), symmetric, firewall
          hosts: {a: {node: true}}
        right:
          nat: {kind: symmetric, reset: true}     # hairpin: true, reset: true, lifetime: 60s
          behind: carrier                         # two NATs in a row
          wire: {delay: 5ms, jitter: 1ms, loss: 1%, rate: 100mbit}
          hosts:
            b: {node: {config: {modules: {edgeRelay: {mode: on}}}},
                programs: ["python3 -m http.server 8080"]}
            printer:                              # a host without a node
        carrier: {carrier: true}                  # 100.64.0.0/10
      services:
        web: {listen: "127.88.0.1:8000", backends: ["b:8080"]}

    \b
    Then, for example:
      lab> ping a b                     the way there, with and without the mesh
      lab> run a curl -s http://127.88.0.1:8000/
      lab> shell b                      a shell; `causeway status` in it means b's node
      lab> wire right delay=40ms loss=2%
      lab> kill r relay
      lab> nat left flush               the router forgets everything

    \b
    Keys of -o json: name, cluster, folder, relays[],
      hosts[]     {name, address, address6, lan, routers[{name, kind}], seen_as, wire {out, in}, programs[],
                   node {services[], relay, config_file} or null}
      lans[]      {name, kind, hairpin, reset, lifetime, network, network6, gateway, wan_address, wan_address6, behind, wire}
      services[]  {name, listen, backends[], protocol}
    of --check -o json: ok, problems[{file, line, key, found, expected, nearest}], topology (null with problems).
    Everything ends with the command, however it ends. Exit codes: 0 fine, 1 failed, 2 wrong usage or FILE;
    of HOST COMMAND its own, and without one that of the last thing asked for, if nobody sits at a terminal.
    """
    if output == "json" and command:
        raise CommandError("-o json describes the network, and a command has its own output: leave one out", code=USAGE)
    topology = _load(file, json_wanted=check and output == "json")
    if check:
        return _tell(file, topology, output)
    _know_host(topology, command)
    if inside:
        from causeway.lab import session

        return session.run(topology, folder, list(command), describe=output, terminal=terminal)
    from causeway.lab import wrapper
    from lab import rootless

    why = rootless.available()
    if why is not None:
        raise CommandError(f"no simulated networks on this machine: {why}")
    options = ["-o", output, *(["--folder", str(_empty(folder, topology))] if folder is not None else [])]
    return wrapper.run([*options, "--", str(file), *command])


def _load(file: Path, *, json_wanted: bool) -> Topology:
    from lab import topology
    from services.runtime.config import ConfigError

    if not file.is_file():
        what = "is a directory" if file.is_dir() else "does not exist"
        raise CommandError(f"{file} {what}; expected a YAML file, see causeway lab --help", code=USAGE)
    try:
        return topology.load(file)
    except ConfigError as error:
        if not json_wanted:
            raise CommandError(*map(str, error.problems), code=USAGE) from None
        found = [vars(it) for it in error.problems]
        click.echo(json.dumps({"ok": False, "problems": found, "topology": None}, indent=2, ensure_ascii=False))
        raise SystemExit(USAGE) from None


def _tell(file: Path, topology: Topology, output: str) -> int:
    if output == "json":
        told: dict[str, Any] = {"ok": True, "problems": [], "topology": topology.model_dump(mode="json", by_alias=True)}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        hosts, lans, nodes = len(topology.machines), len(topology.lans), len(topology.nodes)
        click.echo(f"{file}: no mistakes; hosts: {hosts}, LANs: {lans}, nodes: {nodes}")
    return 0


def _know_host(topology: Topology, command: tuple[str, ...]) -> None:
    """Before anything is started: is the first word of the command a place, and is there a second?"""
    if not command:
        return
    from services.runtime.problems import nearest

    places = [*topology.machines, *topology.lans, "internet"]
    if command[0] not in places:
        near = nearest(command[0], places)
        hint = f"did you mean {near}?" if near else f"expected one of {', '.join(places)}"
        raise CommandError(f"no host {command[0]!r}: {hint}", code=USAGE)
    if len(command) == 1:
        raise CommandError(f"no command for {command[0]}: such as {command[0]} ip route", code=USAGE)


def _empty(folder: Path, topology: Topology) -> Path:
    """The folder, made; it must hold nothing yet and have a path that is short enough for sockets."""
    from services.runtime.section import LONGEST_SOCKET, SUN_PATH_MAX

    path = folder.absolute()
    longest = path / max(topology.nodes, key=len, default="") / "run" / LONGEST_SOCKET
    if len(str(longest).encode()) > SUN_PATH_MAX:
        over = len(str(longest).encode()) - SUN_PATH_MAX
        raise CommandError(
            f"--folder: {path} is {over} bytes too long for the sockets in it: choose a shorter one", code=USAGE
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        used = any(path.iterdir())
    except OSError as error:
        raise CommandError(f"--folder: {path}: {error.strerror}", code=USAGE) from None
    if used:
        raise CommandError(f"--folder: {path} is not empty: name a new one", code=USAGE)
    return path
