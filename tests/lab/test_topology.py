"""Topologies: what a file may say, what is told about mistakes, and that what is built is what was said."""

import asyncio
import json
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import quantity
from lab.echo import checksum, echo
from lab.nat import Kind, Nat
from lab.node import NodeError
from lab.stage import Stage
from lab.topology import Topology, load, reshaped
from lab.wire import Shape
from services.runtime.config import ConfigError
from tests.lab.sockets import PATIENCE, listener, seen_from, tcp, udp, until

EXAMPLES = sorted(Path("lab/examples").glob("*.yaml"))

Read = Callable[[str], Topology]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def work(text: str) -> Topology:
        path = tmp_path / "net.yaml"
        path.write_text(textwrap.dedent(text))
        return load(path)

    return work


def problems(read: Read, text: str) -> list[str]:
    """What is told about a file, without its path."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [str(it).partition("net.yaml:")[2].strip() for it in caught.value.problems]


# -- quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [("40ms", 0.04), ("0.5s", 0.5), ("250us", 0.00025), ("250 µs", 0.00025), (".5 s", 0.5), ("0", 0.0), (0, 0.0)],
)
def test_times(text: object, value: float) -> None:
    assert quantity.seconds(text) == value


@pytest.mark.parametrize("text", ["40", 40, 0.5, "ms", "", "-1ms", "1e3ms", "40 mS x", None, True, [], "4 0ms", "1m"])
def test_what_is_no_time(text: object) -> None:
    with pytest.raises(ValueError, match="a time with its unit"):
        quantity.seconds(text)


def test_other_quantities() -> None:
    assert [quantity.bits_per_second(it) for it in ("100mbit", "1.5Gbit", "64kbit", "0")] == [100e6, 1.5e9, 64e3, 0]
    assert [quantity.size(it) for it in ("512kB", "1MiB", "1500B")] == [512_000, 1 << 20, 1500]
    assert [quantity.share(it) for it in ("2%", "0%", "100%", "0.1 %")] == [0.02, 0, 1, 0.001]
    for text in ("101%", "0.02", "2"):
        with pytest.raises(ValueError, match="such as 2%"):
            quantity.share(text)
    with pytest.raises(ValueError, match="such as 100mbit"):
        quantity.bits_per_second("100mbps")  # of which nobody knows whether bits or bytes


def test_quantities_for_people() -> None:
    assert [quantity.in_time(it) for it in (0, 0.04, 1.5, 0.00025)] == ["0 ms", "40 ms", "1.5 s", "250 µs"]
    assert [quantity.in_rate(it) for it in (100e6, 1.5e9, 64e3)] == ["100 Mbit/s", "1.5 Gbit/s", "64 kbit/s"]
    assert quantity.in_share(0.001) == "0.1 %"


# -- what a file may say


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_no_mistakes(path: Path) -> None:
    assert load(path).nodes


def test_there_are_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["carrier.yaml", "homes.yaml"]


def test_short_and_long_forms_mean_the_same(read: Read) -> None:
    short = read("""
        hosts: {r: {wire: 5ms, node: true}, plain: }
        lans:
          one: {nat: symmetric, hosts: [a, b]}
          two:
    """)
    long = read("""
        name: net
        hosts:
          r: {wire: {delay: 5ms, out: {}, in: {}}, node: {services: [discovery, relay, tunnel, proxy]}, programs: []}
          plain: {node: false}
        lans:
          one: {nat: {kind: symmetric, hairpin: false}, hosts: {a: {}, b: {programs: []}}}
          two: {nat: {kind: masquerade}, behind: "", hosts: {}}
    """)
    assert short.model_dump(exclude={"lans"}) == long.model_dump(exclude={"lans"})
    assert short.machines == long.machines
    assert [lan.nat.nat for lan in short.lans.values()] == [lan.nat.nat for lan in long.lans.values()]
    assert (short.name, short.cluster) == ("net", "lab")


def test_every_kind_has_a_name(read: Read) -> None:
    names = ["full-cone", "restricted", "port-restricted", "masquerade", "symmetric", "firewall"]
    topology = read(f"lans: {{{', '.join(f'l{i}: {{nat: {name}, hosts: [h{i}]}}' for i, name in enumerate(names))}}}")
    kinds = [lan.nat.nat.kind for lan in topology.lans.values()]
    assert kinds == [
        Kind.FULL_CONE,
        Kind.RESTRICTED,
        Kind.PORT_RESTRICTED,
        Kind.PORT_RESTRICTED,
        Kind.SYMMETRIC,
        Kind.FIREWALL,
    ]
    full = read("lans: {l: {nat: {kind: restricted, hairpin: true, reset: true}, hosts: [h]}}").lans["l"].nat.nat
    assert full == Nat(Kind.RESTRICTED, hairpin=True, answers_rst=True)


def test_directions_of_a_wire(read: Read) -> None:
    wire = (
        read("hosts: {h: {wire: {delay: 5ms, loss: 1%, out: {rate: 10mbit, loss: 0%}, in: {jitter: 1ms}}}}")
        .hosts["h"]
        .wire
    )
    assert wire.shapes == (Shape(delay=0.005, rate=10e6), Shape(delay=0.005, loss=0.01, jitter=0.001))


def test_configurations_lie_over_each_other(read: Read) -> None:
    topology = read("""
        config: {modules: {edgeRelay: {mode: on, listenPort: 1}, edgeTunnel: {sessionHoldSeconds: 5}}}
        hosts:
          a: {node: {config: {modules: {edgeRelay: {mode: off}}}}}
          b: {node: true}
    """)
    assert topology.config_of("a")["modules"] == {
        "edgeRelay": {"mode": False, "listenPort": 1},
        "edgeTunnel": {"sessionHoldSeconds": 5},
    }
    assert topology.config_of("b")["modules"]["edgeRelay"] == {"mode": True, "listenPort": 1}


def test_a_shape_is_changed_in_the_words_of_the_file() -> None:
    shape = reshaped(Shape(delay=0.01, dark=True), {"loss": "2%", "rate": "1mbit"})
    assert shape == Shape(delay=0.01, dark=True, loss=0.02, rate=1e6)
    with pytest.raises(ValueError, match=r"delay: found '4'; expected a time.*; los: unknown key; did you mean loss\?"):
        reshaped(shape, {"delay": "4", "los": "2%"})


# -- mistakes


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(read: Read) -> None:
    told = problems(
        read,
        """\
        clustr: x
        relays: [r1, r3]
        config:
          modules: {edgeRelay: {mode: sometimes}}
        hosts:
          r1: {node: true, wire: 5}
          r2: {node: {config: {modules: {edgeTunel: {}}}}}
        lans:
          home: {nat: symetric, behind: carier, hosts: [r1]}
          carrier: {hairpin: true}
        services:
          web: {listen: 127.0.9.1, backends: ["r1:80", "carrier:80"]}
        """,
    )
    assert told == [
        "1: clustr: unknown key; did you mean cluster?",
        "2: relays[1]: no host 'r3'; expected a host with a node",
        "4: config.modules.edgeRelay.mode: found 'sometimes'; expected one of 'auto', 'on' or 'off'",
        "6: hosts.r1.wire.delay: found 5; expected a time with its unit, such as 40ms or 0.5s",
        "7: hosts.r2.node.config.modules.edgeTunel: unknown key; did you mean edgeTunnel?",
        "9: lans.home.hosts.r1: the name 'r1', which is also at hosts.r1; expected each name once",
        "9: lans.home.behind: found 'carier'; expected the name of a LAN; did you mean carrier?",
        "9: lans.home.nat.kind: found 'symetric'; expected one of 'full-cone', 'restricted', 'port-restricted', "
        "'masquerade', 'symmetric' or 'firewall'; did you mean symmetric?",
        "10: lans.carrier.hairpin: unknown key; did you mean nat.hairpin?",
        "12: services.web.backends[1]: no host 'carrier'; expected a host with a node",
        "12: services.web.listen: found '127.0.9.1'; expected an IP address and port, such as 127.88.0.1:8000",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x", "hosts: found no host; expected at least one, under hosts or lans.NAME.hosts"),
        ("hosts: {Big: }", "hosts.Big: the name 'Big'; expected lower-case letters"),
        ("hosts: {internet: }", "hosts.internet: the name 'internet'; expected another one"),
        ("hosts: 5", "hosts: found 5; expected a mapping of keys"),
        ("hosts: {a: 5}", "hosts.a: found 5; expected a mapping of keys"),
        ("hosts: [a, a]", "hosts: found a list of 2; expected a mapping of keys"),
        ("hosts: {a: {wire: {delay: 61s}}}", "hosts.a.wire.delay: found '61s'; expected at most 60 s"),
        ("hosts: {a: {wire: {out: {delai: 1ms}}}}", "hosts.a.wire.out.delai: unknown key; did you mean delay?"),
        ("hosts: {a: {node: {services: [relais]}}}", "hosts.a.node.services[0]: found 'relais'"),
        ("hosts: {a: {node: {config: {nodeName: b}}}}", "hosts.a.node.config.nodeName: found in a lab; expected it to"),
        ("hosts: [a]\nrelays: [a]", "relays[0]: the host 'a', on which no node runs; expected node: true at 'a'"),
        ("hosts: [a]\ncluster: A_b", "cluster: found 'A_b'; expected lower-case letters"),
        ("hosts: [a]\nservices: {web: {listen: '127.0.0.1:1', backends: []}}", "services.web.backends: "),
        ("hosts: [a]\nservices: {Web: {listen: '127.0.0.1:1', backends: [a]}}", "services.Web: the name 'Web'"),
        ("hosts: [a]\nlans: {x: {behind: y}, y: {behind: x}}", "lans.x.behind: found a circle: x → y → x; expected a"),
        ("hosts: [a]\nlans: {x: {behind: x}}", "lans.x.behind: found a circle: x → x; expected a LAN"),
        (
            "hosts: [a]\nlans: {x: {behind: y, ipv6: true}, y: {}}",
            "lans.x.ipv6: IPv6 behind 'y', which has none; expected lans.y.ipv6 to be true",
        ),
        (
            "hosts: [a]\nlans: {x: {nat: {kind: symmetric, hairpin: true}}}",
            "lans.x.nat: found a mapping; expected a full-cone, restricted or port-restricted one for hairpin, not",
        ),
        (
            f"lans: {{x: {{nat: firewall, hosts: [{', '.join(f'h{i}' for i in range(14))}]}}}}",
            "lans.x: found a mapping; expected at most 13 hosts behind one firewall router",
        ),
        (f"hosts: [{', '.join(f'h{i}' for i in range(101))}]", "hosts: found 101 hosts in all; expected at most 100"),
    ],
)
def test_mistakes(read: Read, text: str, told: str) -> None:
    found = problems(read, text)
    assert any(line.lstrip("0123456789: ").startswith(told) for line in found), found


def test_a_mistake_that_all_nodes_share_is_told_once(read: Read) -> None:
    told = problems(
        read, "config: {clustr: x}\nhosts: {a: {node: {config: {metrics: {basePort: 1}}}}, b: {node: true}}"
    )
    assert told == ["1: config.clustr: unknown key; did you mean cluster?"]


def test_a_circle_is_told_to_those_in_it(read: Read) -> None:
    told = problems(read, "hosts: [a]\nlans: {x: {behind: y}, y: {behind: z}, z: {behind: y}}")
    assert [line.partition(" ")[0] for line in told] == ["2:", "2:"]
    assert all("circle" in line for line in told)


# -- what is built


def test_checksum_is_that_of_the_rfc() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2  # the example in RFC 1071, section 3
    assert checksum(b"\x01") == 0xFFFF - 0x0100


@pytest.fixture
def build(simulation: None, read: Read, short_path: Path) -> Iterator[Callable[[str], Stage]]:
    stages: list[Stage] = []

    def work(text: str) -> Stage:
        stages.append(Stage(read(text), short_path / str(len(stages))))
        return stages[-1]

    yield work
    for stage in stages:
        asyncio.run(stage.stop())


@pytest.mark.lab
def test_a_stage_is_what_the_file_says(build: Callable[[str], Stage]) -> None:
    stage = build("""
        ipv6: true
        hosts: {s1: , s2: {ipv6: false}}
        lans:
          inner: {behind: outer, nat: full-cone, hosts: [deep]}
          outer: {nat: {kind: symmetric, reset: true}, carrier: true, hosts: [near]}
          open: {nat: firewall, hosts: [public]}
    """)
    told = stage.describe()
    json.dumps(told)  # plain data
    hosts = {host["name"]: host for host in told["hosts"]}
    assert hosts["deep"]["routers"] == [{"name": "inner", "kind": "full-cone"}, {"name": "outer", "kind": "symmetric"}]
    assert hosts["public"]["seen_as"] == hosts["public"]["address"]
    assert (hosts["s2"]["address6"], hosts["s1"]["wire"]["out"]["delay"]) == ("", 0)
    with udp(stage.hosts["s1"]) as s1, udp(stage.hosts["s2"]) as s2:
        for name, ports in (("deep", 2), ("near", 2), ("public", 1)):
            with udp(stage.hosts[name], 40000) as inside:
                sources = {seen_from(inside, it) for it in (s1, s2)}
            assert {address for address, _ in sources} == {hosts[name]["seen_as"]}
            assert len(sources) == ports  # of the outer, symmetric one
    with tcp(stage.hosts["s1"]) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((hosts["deep"]["seen_as"], 40000))
    assert echo(stage.hosts["deep"].namespace, stage.hosts["s1"].address6) is not None


@pytest.mark.lab
def test_wires_are_as_described_and_can_be_changed(build: Callable[[str], Stage]) -> None:
    stage = build("""
        hosts: {a: {wire: {delay: 30ms, in: {delay: 10ms}}}, b: }
        lans: {home: {wire: 20ms, hosts: {c: {wire: 5ms}}}}
    """)
    a, b, c = (stage.hosts[name] for name in "abc")
    assert set(stage.wires) == {"a", "b", "c", "home"}
    assert (there := echo(a.namespace, b.address)) is not None
    assert there >= 0.04
    assert (there := echo(c.namespace, a.address)) is not None
    assert there >= 0.09
    wire = stage.wires["a"]
    assert (wire.forward.delay, wire.backward.delay) == (0.03, 0.01)
    wire.cut()
    assert echo(b.namespace, a.address, timeout=0.3) is None
    wire.mend()
    assert echo(b.namespace, a.address) is not None


@pytest.mark.lab
def test_an_echo_says_when_there_is_no_way(build: Callable[[str], Stage]) -> None:
    stage = build("hosts: {a: {ipv6: true}, b: {ipv6: true}, c: }\nlans: {home: {hosts: [h]}}")
    a, b, c, h = (stage.hosts[name] for name in "abch")
    assert echo(a.namespace, a.address) is not None
    assert echo(a.namespace, b.address6) is not None
    assert echo(c.namespace, b.address6, timeout=0.3) is None
    assert echo(a.namespace, h.address, timeout=0.3) is None


@pytest.mark.lab
async def test_programs_run_on_their_hosts(read: Read, simulation: None, short_path: Path) -> None:
    server = 'python3 -c \'import socket as s; k = s.create_server(("", 80)); k.accept()[0].sendall(b"hello")\''
    stage = Stage(read(f"hosts:\n  a:\n    programs:\n    - |-\n      {server}\n  b:\n"), short_path)
    try:
        await stage.start(lambda _, __: None)
        deadline = time.monotonic() + PATIENCE
        while True:
            with tcp(stage.hosts["b"]) as sock:
                try:
                    sock.connect((stage.hosts["a"].address, 80))
                except ConnectionRefusedError:  # it has not begun to listen
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                    continue
                assert sock.recv(100) == b"hello"
                break
        (program,) = stage.programs["a"]
        assert await program.wait(PATIENCE) == 0
    finally:
        await stage.stop()


@pytest.mark.lab
async def test_a_node_that_cannot_start_is_told_with_its_log(read: Read, simulation: None, short_path: Path) -> None:
    text = "hosts: {a: {node: {services: [relay], config: {modules: {edgeTunnel: {psk: {path: absent}}}}}}}"
    stage = Stage(read(text), short_path)
    try:
        with pytest.raises(NodeError, match=r"a: relay ended with 2; its log ends:\n.*absent"):
            await stage.start(lambda _, __: None)
    finally:
        await stage.stop()


@pytest.mark.lab
def test_what_one_host_listens_on_another_does_not(build: Callable[[str], Stage]) -> None:
    stage = build("hosts: [a, b]\nlans: {home: {hosts: [c, d]}}")
    with listener(stage.hosts["c"], 80) as server, tcp(stage.hosts["d"]) as client:
        client.connect(server.getsockname())
        server.accept()[0].close()
    with tcp(stage.hosts["b"]) as client, pytest.raises(ConnectionRefusedError):
        client.connect((stage.hosts["a"].address, 80))
    with udp(stage.hosts["a"]) as a, udp(stage.hosts["c"]) as c:
        outside = seen_from(c, a)
        a.sendto(b"back", outside)
        assert until(c, b"back") == [b"back"]
    assert stage.namespace("internet") is stage.network.internet
    assert stage.namespace("home") is stage.lans["home"].router
    assert socket.inet_aton(stage.lans["home"].wan_address)
