"""From measured values to medians, to the targets, to tables and JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

Values = dict[str, float]


@dataclass
class Column:
    """One rig's results: a list of values for every quantity, one a round."""

    title: str
    not_run: str = ""  # why it was not measured at all
    values: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, values: Values) -> None:
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)

    def median(self, key: str) -> float | None:
        return statistics.median(self.values[key]) if self.values.get(key) else None


@dataclass
class Report:
    """Everything that was measured; `columns` by the rig's name."""

    host: dict[str, str]
    sizes: dict[str, int]
    columns: dict[str, Column] = field(default_factory=dict)
    idle: Values = field(default_factory=dict)
    stalls: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    busy: str = ""  # what else the machine was doing; empty: next to nothing

    def median(self, rig: str, key: str) -> float | None:
        return self.columns[rig].median(key) if rig in self.columns else None

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        for name, column in self.columns.items():
            plain["columns"][name]["medians"] = {key: column.median(key) for key in column.values}
        plain["targets"] = [
            {
                "name": target.name,
                "value": target.value(self),
                "bound": target.bound,
                "at_least": target.at_least,
                "unit": target.unit,
                "met": target.met(self),
            }
            for target in TARGETS
        ]
        return plain


@dataclass(frozen=True)
class Target:
    """A promise: one quantity (or the ratio of two medians of the same run) and its bound.

    Keys are "rig/quantity", "idle/quantity" or "stall/event/quantity".
    """

    name: str
    of: str
    bound: float
    over: str = ""
    at_least: bool = False
    unit: str = ""

    def value(self, report: Report) -> float | None:
        top = _find(report, self.of)
        if not self.over:
            return top
        base = _find(report, self.over)
        return top / base if top is not None and base else None

    def met(self, report: Report) -> bool | None:
        """None: not measured."""
        value = self.value(report)
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


def _find(report: Report, key: str) -> float | None:
    first, _, rest = key.partition("/")
    if first == "idle":
        return report.idle.get(rest)
    if first == "stall":
        event, _, quantity = rest.partition("/")
        return report.stalls.get(event, {}).get(quantity)
    return report.median(first, rest)


def _ratio(name: str, of: str, over: str, bound: float, *, at_least: bool = True) -> Target:
    return Target(name, of, bound, over=over, at_least=at_least, unit="×")


HAPROXY_CPU = 0.76
"""CPU s/GB of one haproxy hop where the targets in CPU s/GB were set: the prototype's relay took 0.38, "half of haproxy's"."""


def _cpu_ratio(name: str, of: str, seconds: float) -> Target:
    """The target in CPU s/GB for a machine of another speed."""
    return _ratio(name, of, "haproxy/bulk_cpu_middle", seconds / HAPROXY_CPU, at_least=False)


KIB = 1024.0
TARGETS = (
    _ratio("bulk A→B / one haproxy hop", "causeway/bulk_gb_per_s", "haproxy/bulk_gb_per_s", 0.8),
    _ratio("bulk A→R→B / one haproxy hop", "causeway-relayed/bulk_gb_per_s", "haproxy/bulk_gb_per_s", 0.7),
    Target("CPU s/GB at A, A→B", "causeway/bulk_cpu_near", 0.8),
    Target("CPU s/GB at B, A→B", "causeway/bulk_cpu_far", 0.8),
    Target("CPU s/GB at A, A→R→B", "causeway-relayed/bulk_cpu_near", 0.8),
    Target("CPU s/GB at B, A→R→B", "causeway-relayed/bulk_cpu_far", 0.8),
    Target("CPU s/GB in the relay", "causeway-relayed/bulk_cpu_middle", 0.45),
    _cpu_ratio("CPU at A / haproxy's CPU, A→B", "causeway/bulk_cpu_near", 0.8),
    _cpu_ratio("CPU at B / haproxy's CPU, A→B", "causeway/bulk_cpu_far", 0.8),
    _cpu_ratio("CPU at A / haproxy's CPU, A→R→B", "causeway-relayed/bulk_cpu_near", 0.8),
    _cpu_ratio("CPU at B / haproxy's CPU, A→R→B", "causeway-relayed/bulk_cpu_far", 0.8),
    _cpu_ratio("CPU in the relay / haproxy's CPU", "causeway-relayed/bulk_cpu_middle", 0.45),
    _ratio("64 B round trips/s, 32 conns / haproxy", "causeway/rr_per_s", "haproxy/rr_per_s", 0.55),
    _ratio("short connections/s / haproxy", "causeway/connections_per_s", "haproxy/connections_per_s", 0.4),
    _ratio("p50 of one round trip / direct", "causeway/p50_us", "direct/p50_us", 1.6, at_least=False),
    Target("idle stream, memory at A", "causeway/idle_stream_bytes_near", 10 * KIB, unit="KiB"),
    Target("idle stream, memory at B", "causeway/idle_stream_bytes_far", 10 * KIB, unit="KiB"),
    Target("idle node, four services, PSS", "idle/pss_mib", 150, unit="MiB"),
    Target("idle node, share of a core", "idle/cpu_percent", 0.5, unit="%"),
    Target("idle node, time to ready", "idle/ready_s", 1.5, unit="s"),
    Target("stall, relay killed, p99", "stall/kill/p99_ms", 100, unit="ms"),
    Target("stall, relay frozen, p99", "stall/freeze/p99_ms", 1000, unit="ms"),
)

# Rows of the first table: quantity, title, factor, digits.
ROWS = (
    ("bulk_gb_per_s", "bulk, one stream, GB/s", 1, 2),
    ("bulk_cpu_near", "  CPU s/GB, near end", 1, 2),
    ("bulk_cpu_middle", "  CPU s/GB, middle", 1, 2),
    ("bulk_cpu_far", "  CPU s/GB, far end", 1, 2),
    ("rr_per_s", "64 B round trips/s, 32 conns", 1, 0),
    ("connections_per_s", "short connections/s", 1, 0),
    ("p50_us", "one round trip, p50 µs", 1, 0),
    ("p99_us", "one round trip, p99 µs", 1, 0),
    ("idle_streams", "idle streams held", 1, 0),
    ("idle_stream_bytes_near", "  KiB each, near end", 1 / KIB, 1),
    ("idle_stream_bytes_middle", "  KiB each, middle", 1 / KIB, 1),
    ("idle_stream_bytes_far", "  KiB each, far end", 1 / KIB, 1),
    ("idle_stream_descriptors_near", "  descriptors each, near end", 1, 2),
    ("idle_stream_descriptors_middle", "  descriptors each, middle", 1, 2),
    ("idle_stream_descriptors_far", "  descriptors each, far end", 1, 2),
)


def show(report: Report, console: Console) -> None:
    """The tables, and what could not be measured."""
    if report.busy:
        console.print(f"[bold yellow]This machine was busy: {report.busy}; do not trust these numbers.[/]")
    measured = [column for column in report.columns.values() if not column.not_run]
    traffic = Table(title=f"Medians of {report.sizes['rounds']} interleaved rounds", title_justify="left")
    traffic.add_column("")
    for column in measured:
        traffic.add_column(column.title, justify="right")
    for key, title, factor, digits in ROWS:
        medians = [column.median(key) for column in measured]
        if any(median is not None for median in medians):
            traffic.add_row(title, *(_number(median, factor, digits) for median in medians))
    if traffic.row_count:
        console.print(traffic)
    _show_rest(report, console)
    targets = Table(title="Targets, ratios within this run", title_justify="left")
    for title, justify in (("", "left"), ("measured", "right"), ("target", "right"), ("", "left")):
        targets.add_column(title, justify=justify)  # type: ignore[arg-type]
    for target in TARGETS:
        met = target.met(report)
        verdict = {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: "[dim]not measured[/]"}[met]
        sign = "≥" if target.at_least else "≤"
        targets.add_row(
            target.name, _amount(target.value(report), target), f"{sign} {_amount(target.bound, target)}", verdict
        )
    console.print(targets)
    for column in report.columns.values():
        if column.not_run:
            console.print(f"{column.title}: not run: {column.not_run}", highlight=False)
        for error in dict.fromkeys(column.errors):
            console.print(f"[red]{column.title}: failed: [/]{error}", highlight=False)
    for error in report.errors:
        console.print(f"[red]failed: [/]{error}", highlight=False)


def _show_rest(report: Report, console: Console) -> None:
    if report.idle:
        idle = report.idle
        console.print(
            f"Idle node: {idle['pss_mib']:.0f} MiB PSS in four services ("
            + ", ".join(f"{key.removeprefix('pss_mib_')} {idle[key]:.0f}" for key in idle if key.startswith("pss_mib_"))
            + f"), {idle['with_supervisor_mib']:.0f} with the supervisor; {idle['private_mib']:.0f} MiB private; "
            f"{idle['cpu_percent']:.2f} % of a core; ready in {idle['ready_s']:.2f} s",
            highlight=False,
        )
    for event, stall in report.stalls.items():
        console.print(
            f"Relay in use, {event}: stall median {stall['median_ms']:.0f} ms, p99 {stall['p99_ms']:.0f} ms "
            f"of {stall['events']:.0f} events, 0 messages lost",
            highlight=False,
        )


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{value * factor:,.{digits}f}"


def _amount(value: float | None, target: Target) -> str:
    if value is None:
        return "–"
    if target.unit == "KiB":
        return f"{value / KIB:.1f} KiB"
    digits = 0 if abs(target.bound) >= 100 else 2
    return f"{value:.{digits}f} {target.unit}".rstrip()
