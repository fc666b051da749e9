"""`python -m tests.e2e.scenes`: the scenes of self-organisation, judged by the figures that the requirements promise.

Each runs in simulated networks with real processes; the whole takes about five minutes of a machine that should do
nothing else meanwhile. Prints each figure with its target, met or missed, writes out/scenes.json; the exit code is 1 if
one is missed, or was not measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import host, rootless
from tests.e2e.figures import FILE

END = 60.0  # seconds for everything to end after a signal
LONGEST = 600.0  # seconds that one scene may take


@dataclass(frozen=True)
class Figure:
    """`most`: what the requirements allow, of several values the greatest counts."""

    name: str
    what: str
    most: float
    unit: str = "s"


@dataclass(frozen=True)
class Scene:
    """A command, after `python -m`, and the figures that it notes."""

    name: str
    command: tuple[str, ...]
    figures: tuple[Figure, ...]


def _test(where: str) -> tuple[str, ...]:
    return "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/e2e/{where}"


SCENES = (
    Scene(
        "nearest",
        _test("test_nearest_relay.py"),
        (Figure("nearest", "Shanghai and Beijing: each pair at its nearest relay, after the start", 60.0),),
    ),
    Scene(
        "crowd",
        ("tests.e2e.crowd",),
        (
            Figure("crowd stall", "12 nodes, 3 relays: longest stall of a stream when the fullest is killed", 1.0),
            Figure("crowd share", "… share of the sessions at the fullest of the others", 60.0, "%"),
            Figure("crowd herd", "… sessions that move within a second when it returns", 12.0, ""),
            Figure("crowd drain", "… longest stall of a stream when the fullest drains", 1.0),
        ),
    ),
    Scene(
        "earned",
        _test(
            "test_earned_relay.py::test_a_public_node_that_nobody_named_becomes_the_relay_of_two_behind_nats_and_again_after_a_wall"
        ),
        (
            Figure(
                "earned", "no relay configured: two nodes behind NATs talk through a public one, after the start", 30.0
            ),
        ),
    ),
    Scene(
        "rumour",
        _test("test_rumour.py"),
        (Figure("rumour", "a relay named to two nodes is used by the others", 15.0),),
    ),
    Scene(
        "island",
        _test("test_island.py"),
        (
            Figure("island start", "a LAN that was never online: two nodes find each other, after the start", 2.0),
            Figure("island back", "its uplink returns: records agree", 15.0),
        ),
    ),
)


def main() -> int:
    options = parse()
    if (code := rootless.enter("tests.e2e.scenes", patience=END)) is not None:
        return code
    wanted = [scene for scene in SCENES if not options.scenes or scene.name in options.scenes]
    lines: list[dict[str, object]] = []
    ended = True
    if busy := host.foreign_load():
        print(f"this machine is busy, so what is missed says little: {busy}", flush=True)
    for scene in wanted:
        began = time.monotonic()
        values, code = run(scene, brief=options.brief)
        ended = ended and code == 0
        print(
            f"{scene.name}: {time.monotonic() - began:.0f} s{'' if code == 0 else f', FAILED with exit code {code}'}",
            flush=True,
        )
        for figure in scene.figures:
            worst = max(values[figure.name], default=None)
            met = worst is not None and worst <= figure.most
            lines.append(asdict(figure) | {"values": values[figure.name], "met": met})
            seen = "not measured" if worst is None else f"{worst:.2f} {figure.unit}".rstrip()
            print(
                f"  {'met   ' if met else 'MISSED'}  {figure.what}: {seen} (at most {figure.most:g} {figure.unit})",
                flush=True,
            )
    ok = ended and all(line["met"] for line in lines)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"host": host.describe(), "busy": busy, "ok": ok, "figures": lines}
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"all of it: {options.json}")
    return 0 if ok else 1


def run(scene: Scene, *, brief: bool) -> tuple[dict[str, list[float]], int]:
    """The values by figure, and the exit code."""
    values: dict[str, list[float]] = defaultdict(list)
    with tempfile.NamedTemporaryFile("r", prefix="figures") as file:
        environment = os.environ | {FILE: file.name, "NATLAB_REQUIRED": "1"}
        output = subprocess.DEVNULL if brief else None
        command = [sys.executable, "-m", *scene.command]
        try:
            code = subprocess.run(command, env=environment, stdout=output, timeout=LONGEST, check=False).returncode
        except subprocess.TimeoutExpired:
            code = 124
        for line in file.read().splitlines():
            found = json.loads(line)
            values[found["name"]].append(found["value"])
    return values, code


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.scenes", description=(__doc__ or "").partition("\n\n")[2]
    )
    names = [scene.name for scene in SCENES]
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"only these of {', '.join(names)}")
    parser.add_argument("--brief", action="store_true", help="the figures only, not what the scenes print")
    parser.add_argument("--json", type=Path, default=Path("out/scenes.json"), help="where to write all of it")
    options = parser.parse_args()
    if unknown := set(options.scenes) - set(names):
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
