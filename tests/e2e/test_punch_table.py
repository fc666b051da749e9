"""How the punch table judges. What it judges is measured by `make punch`, and a part of it by test_punching.py."""

import json

from protos import tunnel_pb2 as pb
from tests.e2e.homes import Pair, Try
from tests.e2e.punch import Row, report


def row(*seconds: float | None, hopeless: bool = False) -> Row:
    """seconds: until each try was direct; None: it stayed on the relay. Three round trips and 0.5 s are 0.62 s."""
    kinds = {True: pb.PATH_KIND_RELAYED, False: pb.PATH_KIND_PUNCHED}
    return Row("one + other", Pair("x", "y", 0.040, hopeless), [Try(kinds[it is None], it or 0.0) for it in seconds])


def test_one_of_twenty_may_fail() -> None:
    assert not row(*[0.2] * 19, None).fault
    assert "95%" in row(*[0.2] * 18, None, None).fault
    assert row().fault


def test_the_median_is_judged_too() -> None:
    assert not row(*[0.2] * 11, *[5.0] * 9).fault
    assert "0.62 s" in row(*[0.2] * 9, *[0.63] * 11).fault


def test_who_cannot_be_punched_must_not_be() -> None:
    assert not row(None, None, hopeless=True).fault
    assert row(None, 0.2, hopeless=True).fault


def test_the_report_holds_every_try() -> None:
    fine = report([row(0.3, 0.1), row(None, hopeless=True)], {"cores": "2"})
    assert json.loads(json.dumps(fine)) == fine
    assert fine["ok"]
    assert [(it["direct"], it["median_ms"], it["limit_ms"]) for it in fine["pairs"]] == [
        (2, 200.0, 620.0),
        (0, None, None),
    ]
    assert fine["pairs"][0]["seconds"] == [0.1, 0.3]
    assert not report([row(None)], {})["ok"]
    assert not report([], {})["ok"]
