import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 7),
        ("10.0.0.1:20006", "10.0.0.1", 20006),
        ("relay.example.org:1", "relay.example.org", 1),
        ("relay.example.org.", "relay.example.org.", 7),
        ("2001:db8::1", "2001:db8::1", 7),
        ("[2001:db8::1]", "2001:db8::1", 7),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        (" k8s_master ", "k8s_master", 7),
    ],
)
def test_split(text: str, host: str, port: int) -> None:
    assert address.split(text, 7) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a:",
        "a:0",
        "a:65536",
        "a:x",
        "a:٣",
        "[::1",
        "[::1]x",
        "[a]:1",
        "1:2:3",
        "a b",
        "-a",
        "300.1.1.1",
        "1.2.3",
        "a" * 254,
    ],
)
def test_split_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an? |^\["):
        address.split(text)


@given(st.sampled_from(["10.0.0.1", "::1", "fe80::1", "a.b"]), st.integers(1, 65535))
def test_join_is_the_inverse(host: str, port: int) -> None:
    assert address.split(address.join(host, port)) == (host, port)


@given(st.text(max_size=40))
def test_split_answers_or_refuses(text: str) -> None:
    try:
        host, port = address.split(text)
    except ValueError:
        return
    assert host
    assert 0 <= port < 65536


@pytest.mark.parametrize("name", ["a", "edge-a", "a.b.c", "0", "a" * 253])
def test_node_names(name: str) -> None:
    assert address.is_node_name(name)


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a/b", "../a", "a" * 254, "ä", "a\n"])
def test_what_is_no_node_name(name: str) -> None:
    assert not address.is_node_name(name)


@pytest.mark.parametrize("text", ["10.0.0.0/8:22", "10.0.0.1:*", "[fd00::/8]:80-90", "db.local:5432", "[::1]:1"])
def test_target_patterns(text: str) -> None:
    assert address.is_target_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/8", "10.0.0.0/40:1", "a:0", "a:9-8", "a:1-", "::1:80", ":80", "*:80", "a:b"]
)
def test_what_is_no_target_pattern(text: str) -> None:
    assert not address.is_target_pattern(text)
