"""What came of a simulation, as numbers and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lab.simulate.world import HOUR, World

# Nodes whose state is weighed.
WEIGHED = 500
WINDOW = 300.0  # seconds of one point of the curve
INK, BAR, ALARM = "#1f2933", "#3b7dd8", "#b00020"


@dataclass(frozen=True, slots=True)
class Targets:
    """What must hold (issue 4): shares, hops, messages a second, KiB."""

    success: float
    hops: float = 5
    messages: float = 2
    state: float = 64

    @classmethod
    def of(cls, malicious: float) -> Targets:
        """For a share of malicious nodes."""
        return cls(0.95 if malicious else 0.99)


class Report:
    """Of a world that has ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.targets = Targets.of(world.plan.malicious)
        found = [it for it in world.looked if it.success]
        stayed = [it for it in world.members if it.born <= world.begin]
        seconds = world.plan.hours * HOUR
        self.lookups = len(world.looked)
        self.success = len(found) / self.lookups if self.lookups else 0.0
        self.hops = sorted(it.hops for it in found)
        self.asked = sorted(it.asked for it in found)
        self.messages = sum(it.sent for it in (*world.members, *world.gone)) / world.plan.nodes / seconds
        self.rates = sorted(it.sent / seconds for it in stayed)
        self.state = sorted(
            it.state(world.now) / 1024 for it in world.members[:: max(1, len(world.members) // WEIGHED)]
        )
        self.tables = sorted(len(it.overlay.table) for it in world.members)
        alive = {it.node.id for it in world.members if it.relay}
        self.relays = [sum(it.overlay.relays.get(key, world.now) is not None for key in alive) for it in stayed]
        self.alive = len(alive)

    @property
    def ok(self) -> bool:
        """All targets are met."""
        targets = self.targets
        return (
            self.success >= targets.success
            and bool(self.hops)
            and median(self.hops) <= targets.hops
            and self.messages <= targets.messages
            and fmean(self.state) <= targets.state
        )

    def as_json(self) -> dict[str, Any]:
        """Depends on nothing but the plan."""
        return {
            "plan": asdict(self.world.plan),
            "targets": asdict(self.targets),
            "ok": self.ok,
            "lookups": {
                "count": self.lookups,
                "success": round(self.success, 5),
                "hops": _spread(self.hops),
                "asked": _spread(self.asked),
            },
            "messages": {
                "perNodeAndSecond": round(self.messages, 3),
                "perNodeAndHour": round(self.messages * HOUR, 1),
                "ofOneNodePerSecond": _spread(self.rates),
            },
            "stateKib": _spread(self.state),
            "table": _spread(self.tables),
            "relays": {"alive": self.alive, "known": _spread(sorted(self.relays))},
        }

    def text(self) -> str:
        """For a terminal."""
        plan, targets = self.world.plan, self.targets
        rows = (
            (f"lookups that succeed, of {self.lookups:,}", f"{self.success:.2%}", f"≥ {targets.success:.0%}"),
            ("hops, median", f"{median(self.hops or [0]):g}", f"≤ {targets.hops:g}"),
            ("messages per node and second", f"{self.messages:.3f}", f"≤ {targets.messages:g}"),
            ("… and hour", f"{self.messages * HOUR:,.0f}", ""),
            ("state per node in KiB, mean", f"{fmean(self.state or [0]):.1f}", f"≤ {targets.state:g}"),
            ("… p99", f"{_spread(self.state).get('p99', 0):.1f}", ""),
            ("… largest", f"{max(self.state, default=0):.1f}", ""),
        )
        head = f"{plan.nodes:,} nodes, {plan.churn:.0%} churn per hour, {plan.malicious:.0%} of the servers malicious"
        lines = [head, *(f"  {name:<38}{value:>10}   {target}".rstrip() for name, value, target in rows)]
        return "\n".join([*lines, "all targets met" if self.ok else "NOT all targets met"])

    def draw(self, path: Path) -> None:
        """Four panels; SVG or PNG, as the file is called."""
        import matplotlib

        matplotlib.use("Agg")
        matplotlib.rcParams |= {"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "causeway"}
        from matplotlib import pyplot

        plan, targets = self.world.plan, self.targets
        figure, ((hops, success), (rates, state)) = pyplot.subplots(2, 2, figsize=(10, 6), layout="constrained")
        hops.hist(self.hops, bins=[it - 0.5 for it in range(max(self.hops, default=0) + 2)], color=BAR, rwidth=0.9)
        _panel(hops, "Hops of a lookup", "hops", targets.hops)
        windows = [[it.success for it in self.world.looked if it.at // WINDOW == at] for at in range(self._windows())]
        points = [(at * WINDOW / 60, 100 * fmean(window)) for at, window in enumerate(windows) if window]
        success.plot([at for at, _ in points], [share for _, share in points], color=BAR, marker="o", markersize=3)
        success.axhline(100 * targets.success, color=ALARM, linestyle="--", linewidth=1)
        success.set_ylim(90, 100.5)
        _panel(success, "Lookups that succeed, %", "minutes", None)
        rates.hist(self.rates, bins=40, color=BAR)
        _panel(rates, "Messages a second, of each node", "messages a second", targets.messages)
        state.hist(self.state, bins=40, color=BAR)
        _panel(state, "State of each node", "KiB", targets.state)
        figure.suptitle(
            f"{plan.nodes:,} nodes, {plan.churn:.0%} churn per hour, {plan.malicious:.0%} of the servers malicious",
            color=INK,
            x=0.01,
            ha="left",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)

    def _windows(self) -> int:
        return int(self.world.plan.hours * HOUR // WINDOW)


def _panel(axis: Any, title: str, unit: str, limit: float | None) -> None:
    axis.set_title(title, fontsize=11, loc="left", color=INK)
    axis.set_xlabel(unit, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if limit is not None:
        axis.axvline(limit, color=ALARM, linestyle="--", linewidth=1)


def _spread(ordered: list[int] | list[float]) -> dict[str, float]:
    """Of values in order."""
    if not ordered:
        return {}
    last = len(ordered) - 1
    at = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {"mean": round(fmean(ordered), 3), **{name: round(ordered[round(it * last)], 3) for name, it in at.items()}}
