"""Classification of NATs, without any."""

import pytest

from services.tunnel.core.natkind import (
    Attempt,
    Filtering,
    Kind,
    Mapping,
    Sighting,
    is_carrier,
    is_inside,
    judge,
    judge_filtering,
    judge_mapping,
    outermost,
    parse,
    show,
    verdict,
)

HOME = ("192.168.1.2", 40000)
OUT = ("203.0.113.9", 40000)
R1, R2 = "203.0.113.1", "203.0.113.2"


def seen(relay: str, ip: str, observed: tuple[str, int], local: tuple[str, int] = HOME) -> Sighting:
    return Sighting(relay, ip, local, observed)


@pytest.mark.parametrize(
    ("sightings", "mapping", "words"),
    [
        ([], Mapping.UNKNOWN, "no relay"),
        ([seen("r1", R1, OUT)], Mapping.UNKNOWN, "second relay"),
        ([seen("r1", R1, OUT), seen("r2", R2, OUT)], Mapping.ENDPOINT_INDEPENDENT, "r1 and r2 see the same"),
        # Two names at one address are one place to a NAT that looks at addresses only.
        ([seen("r1", R1, OUT), seen("r2", R1, OUT)], Mapping.UNKNOWN, "another address"),
        ([seen("r1", R1, OUT), seen("r2", R2, (OUT[0], 1025))], Mapping.ENDPOINT_DEPENDENT, "203.0.113.9:1025"),
        ([seen("r1", R1, OUT), seen("r2", R2, ("203.0.113.8", 40000))], Mapping.ENDPOINT_DEPENDENT, "203.0.113.8"),
        ([seen("r1", R1, OUT, local=OUT)], Mapping.NONE, "own address"),
        ([seen("r1", R1, OUT, local=OUT), seen("r2", R2, OUT, local=OUT)], Mapping.NONE, "r1 and r2"),
        # The relay beside us sees no NAT, and that says nothing of the way out.
        ([seen("lan", "192.168.1.3", HOME)], Mapping.UNKNOWN, "own network"),
        ([seen("lan", "192.168.1.3", HOME), seen("r1", R1, OUT), seen("r2", R2, OUT)], Mapping.ENDPOINT_INDEPENDENT, "r1"),
        # Nor does one in the carrier's network say what the carrier's NAT does.
        ([seen("c", "100.64.1.3", ("100.64.1.2", 5)), seen("r1", R1, OUT), seen("r2", R2, OUT)], Mapping.ENDPOINT_INDEPENDENT, "r1"),
    ],
)  # fmt: skip
def test_mapping(sightings: list[Sighting], mapping: Mapping, words: str) -> None:
    found, why = judge_mapping(sightings)
    assert found is mapping
    assert words in why


def tried(relay: str, arrived: bool | None, *, stranger: bool, detail: str = "no answer") -> Attempt:
    return Attempt(relay, stranger, arrived, detail)


@pytest.mark.parametrize(
    ("attempts", "filtering", "words"),
    [
        ([], Filtering.UNKNOWN, "no relay"),
        ([tried("r1", True, stranger=False), tried("r2", True, stranger=True)], Filtering.ENDPOINT_INDEPENDENT, "r2"),
        ([tried("r1", True, stranger=False), tried("r2", False, stranger=True)], Filtering.ADDRESS_DEPENDENT, "r2 did not"),
        ([tried("r1", False, stranger=False), tried("r2", False, stranger=True)], Filtering.ADDRESS_AND_PORT_DEPENDENT, "r1"),
        # One of several strangers is enough: the others may have a firewall of their own in front.
        ([tried("r2", False, stranger=True), tried("r3", True, stranger=True)], Filtering.ENDPOINT_INDEPENDENT, "r3"),
        # With one relay: that it does not get in tells all, that it does tells only half.
        ([tried("r1", False, stranger=False)], Filtering.ADDRESS_AND_PORT_DEPENDENT, "r1"),
        ([tried("r1", True, stranger=False)], Filtering.UNKNOWN, "second relay"),
        ([tried("r1", True, stranger=False), tried("r2", None, stranger=True)], Filtering.UNKNOWN, "second relay"),
        ([tried("r1", None, stranger=False, detail="asked too often")], Filtering.UNKNOWN, "r1: asked too often"),
    ],
)  # fmt: skip
def test_filtering(attempts: list[Attempt], filtering: Filtering, words: str) -> None:
    found, why = judge_filtering(attempts)
    assert found is filtering
    assert words in why


@pytest.mark.parametrize(
    ("mapping", "filtering", "kind"),
    [
        (Mapping.NONE, Filtering.ENDPOINT_INDEPENDENT, Kind.PUBLIC),
        (Mapping.NONE, Filtering.ADDRESS_DEPENDENT, Kind.FIREWALL),
        (Mapping.NONE, Filtering.ADDRESS_AND_PORT_DEPENDENT, Kind.FIREWALL),
        (Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT, Kind.FULL_CONE),
        (Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT, Kind.RESTRICTED),
        (Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, Kind.PORT_RESTRICTED),
        (Mapping.ENDPOINT_DEPENDENT, Filtering.UNKNOWN, Kind.SYMMETRIC),
        (Mapping.ENDPOINT_INDEPENDENT, Filtering.UNKNOWN, Kind.UNKNOWN),
        (Mapping.UNKNOWN, Filtering.ENDPOINT_INDEPENDENT, Kind.UNKNOWN),
    ],
)
def test_kinds(mapping: Mapping, filtering: Filtering, kind: Kind) -> None:
    assert judge(mapping, filtering) is kind


def test_every_combination_has_a_verdict_of_one_line() -> None:
    for mapping in Mapping:
        for filtering in Filtering:
            kind = judge(mapping, filtering)
            for answered in range(3):
                text = verdict(kind, mapping, filtering, relays=answered, known=2)
                assert text and "\n" not in text
                assert (kind is Kind.UNKNOWN and mapping is Mapping.UNKNOWN) <= text.startswith("unknown")


def test_offline_and_without_relays_are_told_apart() -> None:
    nothing = (Kind.UNKNOWN, Mapping.UNKNOWN, Filtering.UNKNOWN)
    assert "no relay is known" in verdict(*nothing, relays=0, known=0)
    assert "none of 3 relays answered" in verdict(*nothing, relays=0, known=3)
    assert "two relays" in verdict(*nothing, relays=1, known=3)


def test_the_outermost_relays_tell_of_the_way_out() -> None:
    lan, carrier, far = seen("lan", "192.168.1.3", HOME), seen("c", "1", ("100.64.1.2", 5)), seen("r1", R1, OUT)
    assert outermost([lan, carrier, far]) == [far]
    assert outermost([lan, carrier]) == [carrier]
    assert outermost([lan]) == [lan]


def test_addresses() -> None:
    inside = ("10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1", "fe80::1%eth0", "fd00::1")
    assert all(map(is_inside, inside))
    assert not any(map(is_inside, ("203.0.113.1", "198.51.100.1", "100.128.0.1", "2001:db8::1", "172.32.0.1")))
    assert is_carrier("100.127.255.255") and not is_carrier("100.128.0.0") and not is_carrier("::1")
    for endpoint in (("203.0.113.1", 1), ("2001:db8::1", 20006)):
        assert parse(show(endpoint)) == endpoint
    for text in ("", "nonsense", "host:1", "1.2.3.4:x", "1.2.3.4"):
        with pytest.raises(ValueError):
            parse(text)
