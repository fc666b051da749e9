"""Configuration: what is accepted, and what is said of what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.runtime import config, section
from services.runtime.config import ConfigError, RelayNode
from services.runtime.problems import Problem

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("NODE_NAME", "from-env")
    # A path as short as users have; pytest's would be too long for Unix sockets.
    monkeypatch.setattr(section, "SUN_PATH_MAX", 1000)

    def make(text: str) -> Path:
        path = tmp_path / "causeway.yaml"
        path.write_text(text)
        return path

    return make


def problems(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems), "one line for each problem"
    assert all(line.startswith(str(path)) for line in lines)
    return caught.value.problems


def only(path: Path) -> Problem:
    found = problems(path)
    assert len(found) == 1, found
    return found[0]


def test_empty_file_is_the_defaults(write: Write, tmp_path: Path) -> None:
    loaded = config.load(write("# nothing\n"))
    assert loaded.node_name == "from-env"
    assert loaded.cluster == "default"
    assert loaded.state_dir == tmp_path / "state"
    assert loaded.run_dir == tmp_path / "run"
    modules = loaded.modules
    assert (modules.edge_tunnel.listen_port, modules.edge_relay.listen_port) == (20006, 20007)
    assert modules.edge_discovery.listen_port == 20008
    assert modules.edge_tunnel.psk.path == tmp_path / "psk"
    assert modules.edge_tunnel.session_hold_seconds == 60
    assert modules.edge_relay.mode == "auto"
    assert modules.edge_proxy.socks5_proxy.listen_port == 10800
    assert loaded.warnings == ()
    assert loaded.source == tmp_path / "causeway.yaml"


def test_no_file_is_the_defaults(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = config.load(None)
    assert loaded.source is None
    assert loaded.state_dir == tmp_path / "state"
    assert loaded.modules.edge_tunnel.psk.path == tmp_path / "psk"


def test_node_name_falls_back_to_the_host_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME")
    monkeypatch.setattr("socket.gethostname", lambda: "Host-7")
    assert config.load(write("")).node_name == "host-7"
    monkeypatch.setattr("socket.gethostname", lambda: "host_7")
    problem = only(write(""))
    assert problem.key == "nodeName"
    assert "host name" in problem.expected
    monkeypatch.setenv("NODE_NAME", "also_bad")
    assert "$NODE_NAME" in only(write("")).expected


def test_the_zone_comes_from_the_file_or_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_ZONE", raising=False)
    assert config.load(write("")).zone == ""
    monkeypatch.setenv("NODE_ZONE", "eu-1")
    assert config.load(write("")).zone == "eu-1"
    assert config.load(write("zone: eu-2")).zone == "eu-2"
    assert only(write(f"zone: {'x' * 64}")).key == "zone"


def test_every_key_of_ours(write: Write, tmp_path: Path) -> None:
    loaded = config.load(
        write(
            """
            nodeName: Edge-A
            cluster: blue
            stateDir: /var/lib/causeway
            runDir: sub/run
            listenAddress: 127.7.7.7
            metrics: {listenAddress: 127.0.0.1, basePort: 9100}
            modules:
              edgeDiscovery:
                listenPort: 1
                mdns: {enable: false}
                dht: {enable: false}
                bootstrap: [10.0.0.1, "[::1]:5", relay.example.org:9]
                servicesFile: services.yaml
              edgeTunnel:
                listenPort: 0
                advertiseAddress: [1.2.3.4, "5.6.7.8:99"]
                psk: {enable: false, path: /etc/psk, certificateLifetimeSeconds: 60}
                ca: {enable: true, caFile: a, certFile: b, keyFile: c, crlFile: d}
                relayNodes:
                - {nodeName: R1, advertiseAddress: [1.1.1.1]}
                - {nodeName: r2}
                portMapping: {enable: false}
                sessionHoldSeconds: 30
                maxSessions: 2
                maxStreams: 3
                resendBufferMiB: 4
                nodeBufferMiB: 5
              edgeRelay:
                mode: on
                listenPort: 2
                limits:
                  maxReservations: 1
                  maxCircuits: 2
                  maxCircuitsPerPeer: 3
                  maxBytesPerSecondPerPeer: 4
                  idleTimeoutSeconds: 5
                  maxHalfOpen: 6
                  reservationTtlSeconds: 7
              edgeProxy:
                enable: false
                socks5Proxy:
                  enable: true
                  listenAddress: 127.0.0.2
                  listenPort: 1080
                  users: [{name: alice, password: secret}]
                  passwordFile: users
                allowedTargets: ["10.0.0.0/8:22", {target: "db:5432", nodes: [Edge-A, "site1-*"]}]
            """
        )
    )
    assert not loaded.modules.edge_tunnel.port_mapping.enable
    assert loaded.node_name == "edge-a"
    assert loaded.state_dir == Path("/var/lib/causeway")
    assert loaded.run_dir == tmp_path / "sub/run"
    discovery, tunnel = loaded.modules.edge_discovery, loaded.modules.edge_tunnel
    assert discovery.bootstrap == ["10.0.0.1:20008", "[::1]:5", "relay.example.org:9"]
    assert discovery.services_file == tmp_path / "services.yaml"
    assert tunnel.relay_nodes[0] == RelayNode(node_name="r1", advertise_address=["1.1.1.1"])
    assert tunnel.ca.crl_file == tmp_path / "d"
    assert (tunnel.resend_buffer_mib, tunnel.node_buffer_mib) == (4, 5)
    assert loaded.modules.edge_relay.mode == "on"
    assert loaded.modules.edge_relay.limits.max_half_open == 6
    socks = loaded.modules.edge_proxy.socks5_proxy
    assert (socks.listen_address, socks.listen_port, socks.users[0].name) == ("127.0.0.2", 1080, "alice")
    assert socks.password_file == tmp_path / "users"
    assert [(entry.target, entry.nodes) for entry in loaded.modules.edge_proxy.allowed_targets] == [
        ("10.0.0.0/8:22", ["*"]),
        ("db:5432", ["edge-a", "site1-*"]),
    ]


def test_paths_are_relative_to_the_file_also_when_it_is_a_link(write: Write, tmp_path: Path) -> None:
    # A ConfigMap volume: config.yaml -> ..data/config.yaml -> ..2026/config.yaml
    write("stateDir: ./state\n").rename(tmp_path / "real.yaml")
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "c.yaml").symlink_to("../real.yaml")
    assert config.load(folder / "c.yaml").state_dir == folder / "state"


# What EdgeMesh's chart and the configuration reference write, in their own shape.
EDGEMESH = """
apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1
kind: EdgeMeshAgent
kubeAPIConfig:
  burst: 200
  contentType: application/vnd.kubernetes.protobuf
  kubeConfig: ""
  master: ""
  qps: 100
  deleteKubeConfig: false
  metaServer:
    server: http://127.0.0.1:10550
    security:
      requireAuthorization: false
      insecureSkipTLSVerify: false
      tlsCaFile: /etc/edgemesh/metaserver/rootCA.crt
commonConfig:
  bridgeDeviceName: edgemesh0
  bridgeDeviceIP: 169.254.96.16
modules:
  edgeDNS:
    enable: true
    listenPort: 53
    cacheDNS: {enable: true, autoDetect: true, upstreamServers: [10.96.0.10], cacheTTL: 30}
  edgeProxy:
    enable: true
    socks5Proxy: {enable: true, listenPort: 10800, nodeName: x, namespace: kubeedge}
    loadBalancer:
      consistentHash: {partitionCount: 100, replicationFactor: 10, load: 1.25}
    serviceFilterMode: FilterIfLabelExists
  edgeTunnel:
    enable: true
    listenPort: 20006
    transport: tcp
    rendezvous: EDGEMESH_PLAYGOUND
    maxCandidates: 5
    heartbeatPeriod: 120
    finderPeriod: 60
    enableIpfsLog: false
    psk: {enable: true, path: /etc/edgemesh/psk}
    tunnelLimitConfig: {enable: true, tunnelBaseStreamIn: 10240}
    relayNodes:
    - nodeName: R1
      advertiseAddress:
      - 1.1.1.1
    - nodeName: k8s-master
      advertiseAddress: [2.2.2.2, 3.3.3.3]
"""


def test_edgemesh_file_is_accepted_as_it_is(write: Write) -> None:
    loaded = config.load(write(EDGEMESH))
    tunnel = loaded.modules.edge_tunnel
    assert [node.node_name for node in tunnel.relay_nodes] == ["r1", "k8s-master"]
    assert tunnel.psk.path == Path("/etc/edgemesh/psk")
    assert loaded.modules.edge_proxy.socks5_proxy.enable
    told = "\n".join(loaded.warnings)
    own = loaded.modules.edge_dns
    assert (own.enable, own.listen_port, own.cache_dns.enable, own.cache_dns.cache_ttl) == (True, 53, True, 30)
    assert own.cache_dns.upstream_servers == ["10.96.0.10:53"]
    assert "edgeDNS" not in told and "serviceFilterMode" not in told
    for key in ("kubeAPIConfig", "commonConfig", "modules.edgeTunnel.rendezvous"):
        assert told.count(f"{key} has no effect") == 1
    assert "apiVersion" not in told
    assert "kubeAPIConfig.burst" not in told, "once for the whole subtree"
    assert ":4: kubeAPIConfig" in told


def test_the_filter_mode_by_its_value_and_by_its_constants_name(write: Write) -> None:
    for text in ("FilterIfLabelDoesNotExists", "FilterIfLabelDoesNotExistsMode"):
        loaded = config.load(write(f"modules: {{edgeProxy: {{serviceFilterMode: {text}}}}}"))
        assert loaded.modules.edge_proxy.service_filter_mode == "FilterIfLabelDoesNotExists"
    (problem,) = problems(write("modules: {edgeProxy: {serviceFilterMode: FilterIfLabelExist}}"))
    assert problem.key == "modules.edgeProxy.serviceFilterMode"


def test_the_dns_section(write: Write) -> None:
    text = "modules: {edgeDNS: {listenAddress: 169.254.96.16, cacheDNS: {upstreamServers: [9.9.9.9, '[fd00::1]:54']}}}"
    own = config.load(write(text)).modules.edge_dns
    assert own.cache_dns.upstream_servers == ["9.9.9.9:53", "[fd00::1]:54"]
    assert (own.enable, own.cluster_domain) == (False, "cluster.local")
    bad = "modules: {edgeDNS: {listenPort: 0, clusterDomain: 'A B', cacheDNS: {upstreamServers: [dns.test]}}}"
    assert {problem.key for problem in problems(write(bad))} == {
        "modules.edgeDNS.listenPort",
        "modules.edgeDNS.clusterDomain",
        "modules.edgeDNS.cacheDNS.upstreamServers[0]",
    }


def test_edgemesh_gateway_file_is_accepted_as_it_is(write: Write) -> None:
    loaded = config.load(
        write(
            """\
            modules:
              edgeGateway:
                enable: true
                nic: "lo,eth0"
                includeIP: "192.0.2.1, 10.0.0.0/8"
                excludeIP: "*"
                loadBalancer:
                  caller: GatewayCaller
                  defaultLBStrategy: Random
                  supportLBStrategies: [RoundRobin]
                  consistentHash: {partitionCount: 100, replicationFactor: 10, load: 1.25}
            """
        )
    )
    gateway = loaded.modules.edge_gateway
    assert (gateway.enable, gateway.nic, gateway.include_ip, gateway.exclude_ip) == (
        True,
        "lo,eth0",
        "192.0.2.1, 10.0.0.0/8",
        "*",
    )
    assert gateway.load_balancer is not None and gateway.load_balancer.default_lb_strategy == "Random"
    told = "\n".join(loaded.warnings)
    assert "caller has no effect" in told and "supportLBStrategies has no effect" in told
    assert "edgeGateway has no effect" not in told and "includeIP" not in told
    with pytest.raises(ConfigError, match="includeIP"):
        config.load(write("modules: {edgeGateway: {includeIP: eth0}}"))


def test_keys_with_nothing_below_are_as_if_absent(write: Write) -> None:
    loaded = config.load(write("modules:\n  edgeTunnel:\n    enable: true\n    relayNodes:\n    # - nodeName: r1\n"))
    assert loaded.modules.edge_tunnel.relay_nodes == []


def test_all_problems_at_once(write: Write) -> None:
    path = write(
        """\
nodeName: edge_a
cluster: Blue
relayNodes: []
kubeAPIConfig: {brust: 3}
modules:
  edgeTunnel:
    listenPort: 70000
    relayNods: []
    relayNodes:
    - advertiseAddress: [1.1.1.1]
    - {nodeName: r2, advertiseAddress: ["1.1.1.1:x"]}
  edgeRelay:
    mode: onn
    limits: {maxCircuits: lots}
  edgeProxy: {enable: maybe}
"""
    )
    found = {problem.key: problem for problem in problems(path)}
    assert set(found) == {
        "nodeName",
        "cluster",
        "relayNodes",
        "kubeAPIConfig.brust",
        "modules.edgeTunnel.listenPort",
        "modules.edgeTunnel.relayNods",
        "modules.edgeTunnel.relayNodes[0].nodeName",
        "modules.edgeTunnel.relayNodes[1].advertiseAddress[0]",
        "modules.edgeRelay.mode",
        "modules.edgeRelay.limits.maxCircuits",
        "modules.edgeProxy.enable",
    }
    assert found["relayNodes"].nearest == "modules.edgeTunnel.relayNodes"
    assert found["kubeAPIConfig.brust"].nearest == "burst"
    assert found["modules.edgeTunnel.relayNods"].nearest == "relayNodes"
    assert found["modules.edgeRelay.mode"].nearest == "on"
    assert found["modules.edgeRelay.limits.maxCircuits"].found == "found 'lots'"
    assert found["modules.edgeRelay.limits.maxCircuits"].expected == "a whole number"
    assert found["modules.edgeTunnel.relayNodes[0].nodeName"].found == "missing"
    lines = [problem.line for problem in problems(path)]
    assert lines == [1, 2, 3, 4, 7, 8, 10, 11, 13, 14, 15]


def test_an_unknown_key_without_a_near_one_lists_the_valid(write: Write) -> None:
    assert "enable, path" in only(write("modules: {edgeTunnel: {psk: {colour: red}}}")).expected


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: b: c\n", 1, "not YAML"),
        ("nodeName: a\n\tcluster: b\n", 2, "not YAML"),
        ("nodeName: [a\n", 2, "not YAML"),
        ("- a\n", 1, "found a list"),
        ("just text\n", 1, "found a str"),
        ("nodeName: a\nnodeName: b\n", 2, "given twice"),
        ("a: 1\n---\nb: 1\n", 2, "not YAML"),
    ],
)
def test_bad_yaml_is_one_problem_with_its_line(write: Write, text: str, line: int, said: str) -> None:
    problem = only(write(text))
    assert (problem.line, said in problem.found) == (line, True), problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: !!bool foo", "'foo' is no bool"),
        ("x: !!int ''", "'' is no int"),
        ("x: !!float ''", "'' is no float"),
        ("x: !!timestamp soon", "'soon' is no timestamp"),
        ("x: 2001-99-99", "'2001-99-99' is no timestamp"),
        ("x: " + "[" * 30_000, "nested more than 200 deep"),
        ("x:" + " {a:" * 30_000, "nested more than 200 deep"),
    ],
)
def test_yaml_that_its_library_chokes_on_is_one_problem(write: Write, text: str, said: str) -> None:
    problem = only(write(f"nodeName: a\n{text}\n"))
    assert (problem.line, said in problem.found) == (2, True), problem


@pytest.mark.parametrize(
    "section",
    [
        'edgeDiscovery: {bootstrap: ["a:x", "a:", "1:2:3", "[a]:1", "-a"]}',
        'edgeTunnel: {advertiseAddress: ["a:x"], relayNodes: [{nodeName: r, advertiseAddress: ["[::1"]}]}',
        "edgeDNS: {cacheDNS: {upstreamServers: [a:x, dns.test]}}",
        "edgeProxy: {subNet: foo}",
        "edgeProxy: {subNet: '10.0.0.0/8,0.0.0.0/0'}",
        "edgeGateway: {includeIP: foo, excludeIP: 10.0.0.0/33}",
    ],
)
def test_found_and_expected_are_said_once(write: Write, section: str) -> None:
    for problem in problems(write(f"modules: {{{section}}}\n")):
        assert str(problem).count("; expected ") == 1 and "expected expected" not in str(problem), str(problem)
        assert "does not appear" not in problem.expected


@pytest.mark.parametrize(
    "text", ["x: !!python/object/apply:os.system [id]\n", "a: &a [*a]\n", "x: 2026-13-45\n", "? [1]\n: 2\n"]
)
def test_strange_yaml_is_refused_in_one_line(write: Write, text: str) -> None:
    assert only(write(text))


def test_aliases_are_refused(write: Write) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    assert "alias" in problems(write(bomb))[0].found


def test_file_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    assert "no such file" in only(tmp_path / "missing.yaml").found
    assert "cannot be read" in only(tmp_path).found
    (tmp_path / "causeway.yaml").write_bytes(b"nodeName: a\ncluster: \xff\n")
    problem = only(tmp_path / "causeway.yaml")
    assert (problem.line, problem.found) == (2, "not UTF-8 text")
    (tmp_path / "causeway.yaml").write_bytes(b"#" * (2 << 20))
    assert "larger" in only(tmp_path / "causeway.yaml").found


def test_run_dir_too_long_for_sockets(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "SUN_PATH_MAX", 107)
    problem = only(write(f"runDir: /{'r' * 92}\n"))
    assert problem.key == "runDir"
    assert "92" in problem.expected
    assert config.load(write(f"runDir: /{'r' * 91}\n")).run_dir


def test_nodes_always_authenticate(write: Write) -> None:
    problem = only(write("modules: {edgeTunnel: {psk: {enable: false}}}"))
    assert problem.key == "modules.edgeTunnel"
    assert "ca.enable" in problem.expected


def test_a_relay_named_twice(write: Write) -> None:
    problem = only(write("modules: {edgeTunnel: {relayNodes: [{nodeName: r1}, {nodeName: R1}]}}"))
    assert "r1 is named twice" in problem.expected


@pytest.mark.parametrize(
    ("word", "mode"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on"), ("true", "on")]
)
def test_relay_mode_survives_yaml(write: Write, word: str, mode: str) -> None:
    assert config.load(write(f"modules: {{edgeRelay: {{mode: {word}}}}}")).modules.edge_relay.mode == mode


def test_edgemesh_psk_is_found_where_it_is_mounted(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = tmp_path / "mounted-psk"
    monkeypatch.setattr(config, "EDGEMESH_PSK", mounted)
    assert config.load(write("")).modules.edge_tunnel.psk.path == tmp_path / "psk"
    mounted.write_text("x")
    assert config.load(write("")).modules.edge_tunnel.psk.path == mounted
    assert config.load(write("modules: {edgeTunnel: {psk: {path: p}}}")).modules.edge_tunnel.psk.path == tmp_path / "p"
    (tmp_path / "psk").write_text("x")
    assert config.load(write("")).modules.edge_tunnel.psk.path == tmp_path / "psk"


@pytest.mark.parametrize(
    ("entry", "key", "found", "expected"),
    [
        ('"10.0.0.0/33:22"', "", "'10.0.0.0/33:22'", "cidr:port or host:port"),
        ("22", "", "22", "a mapping of target and nodes"),
        ("{nodes: [a]}", ".target", "missing", "a value"),
        ('{target: "x", nodes: [a]}', ".target", "'x'", "cidr:port"),
        ('{target: "10.0.0.1:22", nodes: edge-a}', ".nodes", "'edge-a'", "a list"),
        ('{target: "10.0.0.1:22", nodes: []}', ".nodes", "a list of 0", "at least one node"),
        ('{target: "10.0.0.1:22", nodes: [a, "site?"]}', ".nodes[1]", "'site?'", "a node's name"),
        ('{target: "10.0.0.1:22", node: [a]}', ".node", "unknown key", ""),
    ],
)
def test_what_is_wrong_with_allowed_targets(write: Write, entry: str, key: str, found: str, expected: str) -> None:
    problem = only(write(f"modules:\n  edgeProxy:\n    allowedTargets:\n    - x:1\n    - {entry}\n"))
    assert problem.key == f"modules.edgeProxy.allowedTargets[1]{key}"
    assert found in problem.found and expected in problem.expected
    assert problem.line == 5
    if key == ".node":
        assert problem.nearest == "nodes"


def test_equal_files_give_equal_configurations(write: Write) -> None:
    assert config.load(write("nodeName: a\n")) == config.load(write("nodeName: a\n"))
    assert config.load(write("nodeName: a\n")) != config.load(write("nodeName: b\n"))


def test_upstream_servers_that_nobody_asks_are_said(write: Write) -> None:
    text = "modules:\n  edgeDNS:\n    enable: true\n    cacheDNS:\n      upstreamServers: [9.9.9.9]\n      enable: {}\n"
    (told,) = config.load(write(text.format("false"))).warnings
    assert ":5: modules.edgeDNS.cacheDNS.upstreamServers has no effect without cacheDNS.enable: true" in told
    assert not config.load(write(text.format("true"))).warnings
