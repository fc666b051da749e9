"""Cells, verdict, JSON, table and picture, from runs that were made up."""

import dataclasses
import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from lab.matrix import picture
from lab.matrix.conditions import NETS
from lab.matrix.events import EVENTS
from lab.matrix.flow import REQUEST, TCP, UDP, Finding
from lab.matrix.markdown import markdown
from lab.matrix.results import COLUMNS, Matrix, Run
from lab.matrix.table import show


def finding(protocol: str, load: str, stall: float | None = 0.1, **fields: object) -> Finding:
    whole = Finding(protocol, load, stall, 0.0, 0.04, 1000, 0, 0, 0, 0, "")
    return dataclasses.replace(whole, **fields)  # type: ignore[arg-type]


def matrix(runs: int = 3, seed: int = 0) -> Matrix:
    dice = random.Random(seed)
    made = Matrix(titles={it.name: it.title for it in EVENTS}, nets={it.name: it.title for it in NETS})
    for event in EVENTS:
        for net in NETS:
            for number in range(1, runs + 1):
                found = [
                    finding(*column, stall=round(10 ** dice.uniform(-3, 1), 4), lost=10 if column[0] == UDP else 0)
                    for column in COLUMNS
                ]
                made.runs.append(Run(event.name, net.name, number, 1e9, 0.1, "a: r1 active", "a: r2 active", found))
    return made


def harmed(**fields: object) -> Matrix:
    made = matrix(1)
    run = made.runs[3]
    broken = [dataclasses.replace(it, **fields) if it.protocol == TCP else it for it in run.findings]  # type: ignore[arg-type]
    made.runs[3] = dataclasses.replace(run, findings=broken)
    return made


def test_a_cell_is_what_its_runs_came_to() -> None:
    made = matrix(0)
    for stall in (0.3, 0.1, 0.2, None):
        made.runs.append(Run("drain", "clean", 1, 0.0, 0.0, "", "", [finding(UDP, REQUEST, stall, lost=100)]))
    (cell,) = made.cells().values()
    assert (cell.median, cell.p99, cell.longest, cell.runs, cell.never) == (0.2, 0.3, 0.3, 4, 1)
    assert cell.lost_share == pytest.approx(0.1)
    assert cell.as_dict()["median_ms"] == 200.0


@pytest.mark.parametrize(
    "fields", [{"lost": 64}, {"repeated": 64}, {"swapped": 64}, {"foreign": 1}, {"broken": "ConnectionResetError"}]
)
def test_any_harm_to_tcp_is_not_ok(fields: dict[str, object]) -> None:
    made = harmed(**fields)
    assert not made.ok
    assert made.verdict().startswith("HARM")


def test_lost_datagrams_are_ok_and_failures_are_not() -> None:
    made = matrix()
    assert made.ok
    assert made.verdict().startswith("nothing lost")
    made.failures.append("drain, clean, run 1: the relay does not start")
    assert not made.ok
    assert not Matrix().ok


def limited(stall: float, usual: float | None, **limits: float) -> Matrix:
    """One cell of an event, and what is usual in the same place and in another."""
    made = Matrix(titles={"drain": "drain"}, limits=limits, nets={"clean": "40 ms"})
    found = [("drain", "clean", stall), ("nothing", "lossy", 5.0)]
    if usual is not None:
        found.append(("nothing", "clean", usual))
    made.runs = [Run(event, net, 1, 0.0, 0.0, "", "", [finding(TCP, REQUEST, it)]) for event, net, it in found]
    return made


def test_a_stall_beyond_its_limit_is_not_ok() -> None:
    assert limited(0.2, None).ok, "without a limit"
    assert limited(0.1, None, drain=0.1).ok
    assert not limited(0.2, None, drain=0.1).ok
    made = limited(0.2, 0.05, drain=0.1)
    assert made.whole and not made.ok
    assert [(it.event, it.net) for it in made.missed()] == [("drain", "clean")]
    assert "0 of 1 cells within their limit" in made.verdict()
    assert "beyond 150" in shown(made) and "limit" in shown(made)


def test_what_is_usual_without_an_event_is_added_to_its_limit() -> None:
    made = limited(0.2, 0.1, drain=0.1)
    assert made.ok
    plain = json.loads(made.as_json())
    assert plain["limits_ms"] == {"drain": 100.0}
    assert {it["event"]: it["allowed_ms"] for it in plain["cells"]} == {"drain": 200.0, "nothing": None}
    assert "1 of 1 cells within their limit" in made.verdict()


def test_what_is_usual_is_that_of_the_path_to_which_the_event_leads() -> None:
    made = limited(0.2, 0.1, drain=0.1)
    made.usual = {"drain": "nothing-direct"}
    assert not made.ok, "nobody looked"
    made.runs.append(dataclasses.replace(made.runs[-1], event="nothing-direct"))
    assert made.ok and Matrix.from_json(made.as_json()).ok


def test_who_never_goes_on_has_missed_every_limit() -> None:
    made = limited(0.0, None, drain=0.1)
    made.runs.append(dataclasses.replace(made.runs[0], findings=[finding(TCP, REQUEST, None)]))
    assert made.missed()


def test_json_holds_every_stall_and_is_read_back() -> None:
    made = matrix()
    made.host = {"cores": "2"}
    made.limits = {it.name: it.limit for it in EVENTS if it.limit is not None}
    plain = json.loads(made.as_json())
    assert len(plain["cells"]) == len(EVENTS) * len(NETS) * len(COLUMNS)
    assert sum(len(it["findings"]) for it in plain["runs"]) == 3 * len(plain["cells"])
    again = Matrix.from_json(made.as_json())
    assert again == made
    with pytest.raises(ValueError, match="expected 1"):
        Matrix.from_json(json.dumps({**plain, "schema": 99}))


def test_parts_make_one_matrix() -> None:
    whole, one, other = matrix(), matrix(), matrix()
    one.runs, other.runs = one.runs[:10], other.runs[10:]
    other.host["busy"] = "others used 40% of its cores"
    one.add(other)
    assert one.cells() == whole.cells()
    assert one.host["busy"]


def shown(made: Matrix) -> str:
    console = Console(file=io.StringIO(), width=170)
    show(made, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_names_every_event_and_network() -> None:
    made = matrix()
    made.nets = {it.name: it.caption for it in NETS}
    text = shown(made)
    assert all(it.title in text for it in EVENTS)
    assert all(it.caption in text and "paced" in it.caption for it in NETS)
    assert "lost 1.0%" in text
    assert "nothing lost" in text
    assert text.count("– ") == len(EVENTS) * len(NETS), "only the limits are missing"


def test_the_table_marks_harm_and_what_is_missing() -> None:
    made = harmed(lost=64, broken="reset", stall=None)
    made.runs = made.runs[3:4]
    made.failures.append("[drain], clean: does not start")
    made.host["busy"] = "others used 40% of its cores"
    text = shown(made)
    assert "lost 64" in text
    assert "1 of 1 broke" in text
    assert "never went on" in text
    assert "[drain], clean: does not start" in text
    assert "was busy" in text


def test_the_table_for_the_readme() -> None:
    made = limited(0.2, 0.05, drain=0.1)
    made.titles["nothing"] = "nothing happens"
    lines = markdown(made).splitlines()
    assert lines[0] == "40 ms: stall in ms, median / 99th percentile"
    assert "| drain | 100 |  | **200 / 200** |  |  |  |  |" in lines
    assert "| nothing happens |  |  | 50 / 50 |  |  |  |  |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_is_drawn(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"matrix.{kind}"
    made = harmed(lost=64, broken="reset", stall=None)
    del made.runs[5:9]
    made.limits = {it.name: it.limit for it in EVENTS if it.limit is not None}
    picture.draw(made, path)
    head = path.read_bytes()
    assert head.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    if kind == "svg":
        text = path.read_text()
        shown = {it.event for it in made.runs}
        assert 3 < len(shown) < len(EVENTS)
        assert all((it.title in text) is (it.name in shown) for it in EVENTS)
        assert "LOST" in text
