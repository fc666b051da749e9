"""`causeway netcheck` without a network: what is shown, and the keys of its JSON."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from causeway import netview
from causeway.netcheck import as_data, netcheck
from protos import tunnel_pb2 as pb


def reply() -> pb.NetCheckResponse:
    found = pb.NetCheckResponse(
        node_name="edge-a",
        verdict="behind a port-restricted NAT (easy): two such nodes can punch",
        kind=pb.NAT_KIND_PORT_RESTRICTED,
        mapping=pb.NAT_MAPPING_ENDPOINT_INDEPENDENT,
        mapping_why="r1 and r2 see the same address 203.0.113.9:40000",
        filtering=pb.NAT_FILTERING_ADDRESS_AND_PORT_DEPENDENT,
        port_preserved=pb.FINDING_YES,
        hairpin=pb.FINDING_NO,
        notes=["not all could be found out within 10 s"],
    )
    found.addresses.add(
        address="203.0.113.9:20006", source="observed", reachable=pb.FINDING_NO, why="r1 did not get in"
    )
    found.addresses.add(address="[2001:db8::9]:20006", source="interface", why="[red]no markup[/]")
    found.addresses.add(address="[fe80::1]:20006", source="interface")
    found.port_mapping.CopyFrom(pb.PortMapping(protocol="PCP", gateway="192.168.1.1", external="203.0.113.9:20006"))
    found.relays.add(relay="r1", address="203.0.113.1:20007", reserved=True).rtt.FromMicroseconds(40_123)
    found.relays.add(relay="r2", address="[2001:db8::2]:20007", error="no answer within 3 s")
    return found


def test_the_data() -> None:
    found = json.loads(json.dumps(as_data(reply())))
    assert (found["nat"]["kind"], found["nat"]["port_preserved"], found["nat"]["hairpin"]) == (
        "port-restricted",
        True,
        False,
    )
    assert found["nat"]["filtering"] == "address-and-port-dependent"
    assert [address["reachable"] for address in found["addresses"]] == [False, None, None]
    assert found["ipv6"] == {"addresses": ["2001:db8::9"], "relays_tried": 1, "relays_reached": 0}
    assert [relay["rtt_ms"] for relay in found["relays"]] == [40.123, None]


def test_the_keys_do_not_depend_on_what_was_found() -> None:
    empty, full = as_data(pb.NetCheckResponse()), as_data(reply())
    assert empty.keys() == full.keys()
    assert empty["nat"].keys() == full["nat"].keys() and empty["ipv6"].keys() == full["ipv6"].keys()
    assert empty["nat"]["kind"] == "" and empty["nat"]["hairpin"] is None


def test_the_help_names_every_key() -> None:
    text = netcheck.get_help(netcheck.make_context("netcheck", [], resilient_parsing=True))
    found = as_data(reply())
    keys = {*found, *found["nat"], *found["ipv6"], *found["addresses"][0], *found["relays"][0], *found["port_mapping"]}
    assert {key for key in keys if key not in text} == set()


def shown(found: dict[str, Any], width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(netview.render(found))
    return " ".join(console.export_text().split())


@pytest.mark.parametrize("width", [80, 200])
def test_a_person_sees_verdict_addresses_and_relays(width: int) -> None:
    text = shown(as_data(reply()), width)
    for word in (
        "behind a port-restricted NAT (easy)",
        "203.0.113.9:20006",
        "40.1 ms",
        "2001:db8::9",
        "! not all could",
    ):
        assert word in text, word
    if width == 200:
        assert "[red]no markup[/]" in text
        assert "no answer within 3 s" in text
        assert "203.0.113.9:20006 by PCP of 192.168.1.1" in text


def test_without_ipv6_here_it_is_no_news_that_relays_do_not_answer_over_it() -> None:
    found = as_data(reply())
    found["ipv6"]["addresses"] = []
    assert "2001:db8::2" not in shown(found)
    assert "no global address" in shown(found)


def test_an_empty_report_can_be_shown() -> None:
    assert "mapping unknown" in shown(as_data(pb.NetCheckResponse()))


def test_a_node_that_is_not_up_is_one_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "causeway", "netcheck", "--run-dir", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("causeway: tunnel is not running (no socket at") and done.stderr.count("\n") == 1
