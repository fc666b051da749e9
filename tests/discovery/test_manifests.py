"""Manifests as people write them, and as clusters print them."""

import json
from typing import Any

import pytest
import yaml

from services.discovery.core.manifests import AFFINITY_TIMEOUT, Parsed, parse
from services.discovery.core.service import Endpoint, EndpointPort, Protocol, ServicePort

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}, annotations: {note: "1"}}
spec:
  clusterIP: 127.1.0.1
  externalIPs: [203.0.113.5]
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP}
  sessionAffinity: ClientIP
  trafficDistribution: PreferClose
  internalTrafficPolicy: Cluster
  externalTrafficPolicy: Local
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {name: http, port: 8080}
- {name: dns, port: 5353, protocol: UDP}
endpoints:
- {addresses: [127.0.0.1], nodeName: edge-a, conditions: {ready: true}, hostname: web-0}
- {addresses: [10.0.0.2], nodeName: edge-b, conditions: {ready: false}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: ["FD00::1"], nodeName: edge-c}
"""


def load(text: str) -> Parsed:
    return parse(yaml.safe_load_all(text))


def changed(path: str, value: Any, document: int = 0, text: str = WEB) -> list[Any]:
    """The documents of `text` with one field set, or removed for None."""
    documents = list(yaml.safe_load_all(text))
    *above, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    target = documents[document]
    for part in above:
        target = target[part]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return documents


def test_a_service_with_several_slices() -> None:
    parsed = load(WEB)
    assert (parsed.errors, parsed.warnings) == ([], [])
    web = parsed.services["default/web"]
    assert web.cluster_ips == ("127.1.0.1",) and web.external_ips == ("203.0.113.5",)
    assert web.ports == (
        ServicePort("http", Protocol.TCP, 80, 30080, "kubernetes.io/h2c"),
        ServicePort("dns", Protocol.UDP, 53),
    )
    http, dns = EndpointPort("http", Protocol.TCP, 8080), EndpointPort("dns", Protocol.UDP, 5353)
    assert web.endpoints == (
        Endpoint(("127.0.0.1",), (http, dns), "edge-a", True, "web-0"),
        Endpoint(("10.0.0.2",), (http, dns), "edge-b", False),
        Endpoint(("fd00::1",), (http,), "edge-c"),
    )
    assert (web.labels, web.annotations) == ({"app": "web"}, {"note": "1"})
    assert (web.session_affinity, web.affinity_timeout) == ("ClientIP", AFFINITY_TIMEOUT)
    assert (web.traffic_distribution, web.internal_traffic_policy) == ("PreferClose", "Cluster")
    assert web.external_traffic_policy == "Local"


def test_json_and_lists_are_the_same_thing() -> None:
    documents = list(yaml.safe_load_all(WEB))
    as_list = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    assert load(as_list).services == load(WEB).services
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSliceList",
        "items": [{key: value for key, value in d.items() if key not in ("kind", "apiVersion")} for d in documents[1:]],
    }
    assert parse([slices, documents[0]]).services == load(WEB).services


def test_headless_has_no_address() -> None:
    for value in ({"clusterIP": "None"}, {"clusterIPs": ["None"]}):
        documents = changed("spec/clusterIP", None)
        documents[0]["spec"].update(value)
        parsed = parse(documents)
        assert parsed.errors == [] and parsed.services["default/web"].cluster_ips == ()


def test_headless_has_no_other_way_in_either() -> None:
    parsed = parse(changed("spec/clusterIP", "None"))
    web = parsed.services["default/web"]
    assert (web.external_ips, [port.node_port for port in web.ports]) == ((), [0, 0])
    assert parsed.warnings == [
        "document 1 (Service web): clusterIP is None, so its nodePorts and externalIPs are not used"
    ]


def test_a_node_port_or_an_external_ip_makes_the_cluster_ip_dispensable() -> None:
    parsed = parse(changed("spec/clusterIP", None))
    assert (parsed.errors, parsed.warnings) == ([], [])
    assert parsed.services["default/web"].cluster_ips == ()
    documents = changed("spec/type", "NodePort")
    assert "not every port has a nodePort" in parse(documents).warnings[0]  # dns has none
    del documents[0]["spec"]["ports"][1]
    assert not any("nodePort" in warning for warning in parse(documents).warnings)


def test_dual_stack_addresses_keep_their_order() -> None:
    documents = changed("spec/clusterIPs", ["127.1.0.1", "fd00::10"])
    assert parse(documents).services["default/web"].cluster_ips == ("127.1.0.1", "fd00::10")


def test_legacy_endpoints_count_only_without_slices() -> None:
    legacy = yaml.safe_load(
        """
        apiVersion: v1
        kind: Endpoints
        metadata: {name: web}
        subsets:
        - addresses: [{ip: 10.0.0.9, nodeName: edge-c, hostname: h}]
          notReadyAddresses: [{ip: 10.0.0.8}]
          ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
        """
    )
    documents = list(yaml.safe_load_all(WEB))
    ports = (EndpointPort("http", Protocol.TCP, 8080), EndpointPort("dns", Protocol.UDP, 53))
    assert parse([documents[0], legacy]).services["default/web"].endpoints == (
        Endpoint(("10.0.0.9",), ports, "edge-c", True, "h"),
        Endpoint(("10.0.0.8",), ports, "", False),
    )
    assert parse([*documents, legacy]).services == load(WEB).services


def test_one_backend_in_two_slices_is_one_endpoint() -> None:
    documents = list(yaml.safe_load_all(WEB))
    documents[2] = {
        **documents[1],
        "ports": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9}],
        "endpoints": [{"addresses": ["127.0.0.1"], "nodeName": "edge-a", "conditions": {"ready": False}}],
    }
    endpoints = parse(documents).services["default/web"].endpoints
    assert [e.addresses for e in endpoints] == [("127.0.0.1",), ("10.0.0.2",)]
    assert endpoints[0].ready and [p.name for p in endpoints[0].ports] == ["http", "dns", "metrics"]


def test_what_is_known_of_an_endpoint_that_goes_away() -> None:
    for conditions, ready, leaving in (
        ({}, True, False),
        ({"ready": True, "serving": True, "terminating": False}, True, False),
        ({"ready": False, "serving": True, "terminating": True}, False, True),
        ({"ready": False, "terminating": True}, False, False),
        ({"ready": False, "serving": True}, False, False),
    ):
        (_, one, _) = parse(changed("endpoints/1/conditions", conditions, 1)).services["default/web"].endpoints
        assert (one.ready, one.leaving) == (ready, leaving), conditions


def test_a_service_may_publish_addresses_that_are_not_ready() -> None:
    documents = changed("spec/publishNotReadyAddresses", True)
    assert [one.ready for one in parse(documents).services["default/web"].endpoints] == [True, True, True]


def test_an_endpoint_says_where_it_is_and_for_whom() -> None:
    documents = changed("endpoints/0/zone", "eu-1", 1)
    hints = {"forZones": [{"name": "eu-1"}, {"name": "eu-2"}], "forNodes": [{"name": "edge-a"}]}
    documents[1]["endpoints"][0]["hints"] = hints
    again = {"addresses": ["127.0.0.1"], "nodeName": "edge-a", "hints": {"forZones": [{"name": "eu-3"}]}}
    documents[1]["endpoints"].append(again)
    one = parse(documents).services["default/web"].endpoints[0]
    assert (one.zone, one.for_zones, one.for_nodes) == ("eu-1", ("eu-1", "eu-2", "eu-3"), ("edge-a",))


def test_zones_that_come_to_nothing_are_said_to() -> None:
    assert parse(changed("endpoints/0/zone", "eu-1", 1)).warnings == [
        "Service default/web: 1 of 2 ready endpoints have no zone; zones count only where all have one"
    ]
    documents = changed("endpoints/0/hints", {"forZones": [{"name": "eu-1"}]}, 1)
    assert "1 of 2 ready endpoints have no hints" in parse(documents).warnings[0]
    documents[2]["endpoints"][0]["hints"] = {"forNodes": [{"name": "edge-c"}]}
    assert parse(documents).warnings == []
    assert parse(changed("spec/trafficDistribution", "PreferZone")).warnings == [
        "Service default/web: trafficDistribution is 'PreferZone', expected PreferClose, PreferSameZone, PreferSameNode"
    ]
    documents = changed("spec/trafficDistribution", None)
    documents[1]["endpoints"][0]["zone"] = "eu-1"
    assert parse(documents).warnings == [], "who did not ask for them"


# Every field that a Service and an EndpointSlice have in Kubernetes 1.33 (API reference), as a cluster prints them.
WHOLE = """
apiVersion: v1
kind: Service
metadata:
  name: whole
  namespace: shop
  uid: 0c1b6f0e-5a51-4b0e-9a0e-3a1d4f1f9a11
  resourceVersion: "1234"
  generation: 1
  creationTimestamp: "2025-05-01T10:00:00Z"
  labels: {app: whole}
  annotations: {service.kubernetes.io/topology-mode: Auto}
  finalizers: [service.kubernetes.io/load-balancer-cleanup]
  managedFields: [{manager: kubectl, operation: Update, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}}]
spec:
  type: LoadBalancer
  selector: {app: whole}
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, "fd00::20"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  ports:
  - {name: http, protocol: TCP, appProtocol: kubernetes.io/ws, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, protocol: UDP, port: 53, targetPort: 5353, nodePort: 30053}
  externalIPs: [203.0.113.7]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  publishNotReadyAddresses: true
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  allocateLoadBalancerNodePorts: true
  loadBalancerClass: example.com/lb
  loadBalancerIP: 203.0.113.8
  loadBalancerSourceRanges: [198.51.100.0/24]
  trafficDistribution: PreferSameNode
status:
  loadBalancer: {ingress: [{ip: 203.0.113.8, ipMode: VIP, hostname: lb.example.com, ports: [{port: 80, protocol: TCP}]}]}
  conditions: [{type: Ready, status: "True", reason: x, message: x, lastTransitionTime: "2025-05-01T10:00:00Z"}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: whole-abc
  namespace: shop
  generateName: whole-
  labels:
    kubernetes.io/service-name: whole
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2025-05-01T10:00:00Z"}
  ownerReferences: [{apiVersion: v1, kind: Service, name: whole, uid: 0c1b6f0e, controller: true, blockOwnerDeletion: true}]
addressType: IPv4
ports:
- {name: http, protocol: TCP, port: 8080, appProtocol: kubernetes.io/ws}
- {name: dns, protocol: UDP, port: 5353}
endpoints:
- addresses: [10.1.0.1]
  conditions: {ready: true, serving: true, terminating: false}
  hostname: whole-0
  targetRef: {kind: Pod, namespace: shop, name: whole-0, uid: 0c1b6f0f, apiVersion: v1, resourceVersion: "1", fieldPath: ""}
  deprecatedTopology: {kubernetes.io/hostname: edge-a}
  nodeName: edge-a
  zone: eu-1
  hints: {forZones: [{name: eu-1}], forNodes: [{name: edge-a}]}
- addresses: [10.1.0.2]
  conditions: {ready: null, serving: null, terminating: null}
  nodeName: edge-b
  zone: eu-1
  hints: {forZones: [{name: eu-1}], forNodes: [{name: edge-b}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: whole-six, namespace: shop, labels: {kubernetes.io/service-name: whole}}
addressType: IPv6
ports: null
endpoints: null
"""


def test_all_that_kubernetes_has_is_accepted() -> None:
    parsed = load(WHOLE)
    assert (parsed.errors, parsed.warnings) == ([], [])
    whole = parsed.services["shop/whole"]
    assert whole.cluster_ips == ("10.96.0.20", "fd00::20")
    assert [(port.port, port.node_port) for port in whole.ports] == [(80, 30080), (53, 30053)]
    assert [(one.node_name, one.ready, one.leaving) for one in whole.endpoints] == [
        ("edge-a", True, False),
        ("edge-b", True, False),
    ]
    assert (whole.internal_traffic_policy, whole.external_traffic_policy) == ("Local", "Local")
    assert (whole.affinity_timeout, whole.external_ips) == (60.0, ("203.0.113.7",))


def test_an_endpoint_knows_its_pod() -> None:
    pod = {"kind": "Pod", "name": "web-abc", "namespace": "default"}
    for target, name in ((pod, "web-abc"), ({"kind": "Other", "name": "x"}, ""), (None, "")):
        documents = changed("endpoints/0/targetRef", target, 1) if target else list(yaml.safe_load_all(WEB))
        assert parse(documents).services["default/web"].endpoints[0].pod == name


def test_endpoints_without_a_node_are_said_once() -> None:
    other = WEB.replace("name: web", "name: other").replace("127.1.0.1", "127.1.0.2")
    (warning,) = load((WEB + "---" + other).replace(", nodeName: edge-a", "")).warnings
    assert warning.startswith(
        "Service default/web, default/other: some endpoints have no nodeName; each node dials them"
    )


def test_what_is_no_service_is_passed_over() -> None:
    parsed = load("---\n---\n" + WEB + "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n")
    assert parsed.errors == [] and list(parsed.services) == ["default/web"]


@pytest.mark.parametrize(
    ("path", "value", "document", "says"),
    [
        ("kind", "Servce", 0, "document 1 (Servce web): kind is 'Servce'; did you mean Service?"),
        ("kind", "EndpointSlices", 1, "did you mean EndpointSlice?"),
        ("apiVersion", "v2", 0, "document 1 (Service web): apiVersion is 'v2', expected v1"),
        ("metadata", None, 0, "document 1 (Service without a name): metadata is missing"),
        ("metadata/name", "Web_1", 0, "metadata.name is 'Web_1', expected lower-case"),
        ("metadata/name", 5, 0, "metadata.name is 5, expected text (put it in quotes)"),
        ("metadata/labels/app", True, 0, "metadata.labels.app is True, expected text"),
        ("spec", [], 0, "spec is [], expected an object"),
        ("spec/clusterIP", "127.0.0.300", 0, "spec.clusterIP: '127.0.0.300' does not appear to be"),
        ("spec/ports/0/port", 0, 0, "spec.ports[0].port is 0, expected a whole number from 1 to 65535"),
        ("spec/ports/0/port", "80", 0, "spec.ports[0].port is '80', expected a whole number"),
        ("spec/ports/0/port", True, 0, "spec.ports[0].port is True, expected a whole number"),
        ("spec/ports/1/port", None, 0, "spec.ports[1].port is missing"),
        ("spec/ports/1/name", None, 0, "spec.ports[1].name is missing; with several ports each needs a name"),
        ("spec/ports/1/name", "http", 0, "spec.ports[1].name 'http' is used twice"),
        ("spec/ports/0/protocol", "HTTP", 0, "spec.ports[0].protocol is 'HTTP', expected TCP or UDP"),
        ("spec/ports", {"port": 80}, 0, "spec.ports is {'port': 80}, expected a list"),
        ("spec/sessionAffinity", "Cookie", 0, "spec.sessionAffinity is 'Cookie', expected None or ClientIP"),
        ("spec/internalTrafficPolicy", "local", 0, "spec.internalTrafficPolicy is 'local', expected Cluster or Local"),
        ("spec/externalTrafficPolicy", "Node", 0, "spec.externalTrafficPolicy is 'Node', expected Cluster or Local"),
        (
            "metadata/labels",
            None,
            1,
            "document 2 (EndpointSlice web-1): metadata.labels has no kubernetes.io/service-name",
        ),
        ("addressType", None, 1, "addressType is missing"),
        ("endpoints/0/addresses", [], 1, "endpoints[0].addresses is missing"),
        ("endpoints/0/addresses/0", "host", 1, "endpoints[0].addresses: 'host' does not appear to be"),
        ("endpoints/1/conditions/ready", "no", 1, "endpoints[1].conditions.ready is 'no', expected true or false"),
        ("endpoints/0/nodeName", 7, 1, "endpoints[0].nodeName is 7, expected text"),
        ("ports/0/port", 70000, 1, "ports[0].port is 70000, expected a whole number"),
    ],
)
def test_an_error_names_the_document_the_field_and_what_was_expected(
    path: str, value: Any, document: int, says: str
) -> None:
    (error,) = parse(changed(path, value, document)).errors
    assert says in error
    assert error.startswith(f"document {document + 1} (") and "\n" not in error


def test_a_service_without_any_address_is_an_error() -> None:
    documents = changed("spec/clusterIP", None)
    del documents[0]["spec"]["externalIPs"], documents[0]["spec"]["ports"][0]["nodePort"]
    (error,) = parse(documents).errors
    assert "spec.clusterIP is missing; expected an IP address (standalone: one in 127.0.0.0/8)" in error


def test_all_errors_are_found_at_once() -> None:
    documents = changed("spec/clusterIP", "nowhere")
    documents[1]["addressType"] = None
    documents += [documents[0], "text", {"kind": "List", "items": 5}, {"kind": "List", "items": [7]}]
    errors = parse(documents).errors
    assert [error.split(" (")[0].split(":")[0] for error in errors] == [
        "document 1",
        "document 2",
        "document 4",
        "document 5",
        "document 6",
        "document 7, item 1",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("db.example.com", "db.example.com"),
        ("DB.example.com.", "db.example.com"),
        ("web.prod.svc.cluster.local", "web.prod.svc.cluster.local"),
        (None, "spec.externalName is missing"),
        ("", "spec.externalName is '', expected the name of a host"),
        ("a b", "expected the name of a host, such as db.example.com"),
        ("https://example.com/", "expected the name of a host"),
        ("a..b", "expected the name of a host"),
        ("-a.b", "expected the name of a host"),
        (f"{'a' * 64}.b", "expected the name of a host"),
        (".".join(["a" * 60] * 5), "expected the name of a host"),
    ],
)
def test_a_service_may_be_another_name_for_something_outside(name: str | None, expected: str) -> None:
    """All else that it says is of no use; it is not asked for a clusterIP."""
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "db", "labels": {"x": "y"}},
        "spec": {"type": "ExternalName", "externalName": name, "ports": [{"port": 5432}]},
    }
    parsed = parse([document])
    if parsed.errors:
        assert len(parsed.errors) == 1 and expected in parsed.errors[0]
    else:
        own = parsed.services["default/db"]
        assert (own.external_name, own.cluster_ips, own.ports, own.labels) == (expected, (), (), {"x": "y"})
    assert parsed.warnings == []


def test_a_service_defined_twice_is_an_error() -> None:
    documents = list(yaml.safe_load_all(WEB))
    (error,) = parse([*documents, documents[0]]).errors
    assert error == "document 4 (Service web): Service default/web is defined twice; the first is used"


RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
"""


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        (0, "spec/clusterIP", "nowhere"),
        (0, "metadata/annotations/note", 1),
        (1, "metadata/labels", None),
        (2, "endpoints/0/addresses/0", "host"),
        (3, "spec/host", None),
        (3, "spec/host", "web.default.example.com"),
        (3, "spec/host", "*.default.svc.cluster.local"),
        (3, "spec/trafficPolicy", "RANDOM"),
        (3, "spec/workloadSelector", {"matchLabels": {"app": "shop"}}),
    ],
)
def test_an_object_that_is_wrong_leaves_all_others_as_they_are(document: int, path: str, value: Any) -> None:
    bystander = yaml.safe_load(WEB.partition("---")[0].replace("name: web,", "name: other,"))
    good = [*yaml.safe_load_all(f"{WEB}---{RULE}"), bystander]
    bad = changed(path, value, document, f"{WEB}---{RULE}")
    without = parse([*good[:document], *good[document + 1 :]]).services
    parsed = parse([*bad, bystander])
    assert parsed.services == without and "default/other" in without
    (error,) = parsed.errors
    assert error.startswith(f"document {document + 1} (")
    assert parsed.spoilt == ({"default/web"} if document == 0 else set())


def test_a_slice_of_which_one_endpoint_is_wrong_is_left_out_whole() -> None:
    parsed = parse(changed("endpoints/1/addresses/0", "host", 1))
    assert [one.addresses for one in parsed.services["default/web"].endpoints] == [("fd00::1",)]


def test_a_second_rule_for_a_service_is_not_used() -> None:
    second = RULE.replace("RANDOM", "ROUND_ROBIN").replace("name: web}", "name: web2}")
    parsed = load(f"{WEB}---{RULE}---{second}")
    assert "RANDOM" in parsed.services["default/web"].traffic_policy
    assert parsed.errors == [
        "document 5 (DestinationRule web2): document 4 (DestinationRule web) is for default/web, too; the first is used"
    ]


def test_a_port_of_a_slice_need_not_have_a_number() -> None:
    parsed = parse(changed("ports/0/port", None, 1))
    assert parsed.errors == []
    assert parsed.services["default/web"].endpoints[0].ports == (EndpointPort("dns", Protocol.UDP, 5353),)
    assert parsed.warnings == ["document 2 (EndpointSlice web-1): ports[0] has no number and is not used"]


def test_what_a_rule_cannot_have_here_is_said() -> None:
    subsets = RULE.replace("host: web,", "host: web, exportTo: ['*'], subsets: [{name: v1, labels: {version: v1}}],")
    parsed = load(f"{WEB}---{subsets}")
    assert (parsed.errors, parsed.warnings) == (
        [],
        [
            "document 4 (DestinationRule web): spec.subsets has no effect: labels of pods are in no EndpointSlice; give each"
            " version a Service of its own"
        ],
    )


@pytest.mark.parametrize(
    ("path", "value", "document", "says"),
    [
        ("metadata/namespace", "other", 1, "there is no Service other/web in this file"),
        ("ports/0/name", "htpt", 1, None),
        ("addressType", "FQDN", 1, "addressType FQDN is not used"),
        ("spec/ports/1/protocol", "SCTP", 0, "spec.ports[1] is SCTP"),
    ],
)
def test_what_will_not_work_as_written_is_a_warning(path: str, value: Any, document: int, says: str | None) -> None:
    parsed = parse(changed(path, value, document))
    assert parsed.errors == []
    if says is not None:
        assert any(says in warning for warning in parsed.warnings)
    else:  # another slice has the name, so the service is served
        assert parsed.warnings == []


def test_a_port_that_no_endpoint_serves_is_a_warning() -> None:
    documents = changed("ports/1/name", "dms", 1)
    (warning,) = parse(documents).warnings
    assert warning == (
        "Service default/web: port 'dns' UDP has no endpoint port of that name; "
        "its endpoints have 'dms' UDP, 'http' TCP"
    )


def test_a_destination_rule_belongs_to_the_service_that_is_its_host() -> None:
    rule = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "DestinationRule",
        "metadata": {"name": "web"},
        "spec": {"host": "web", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
    }
    web = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "127.1.0.1", "ports": [{"port": 80}]},
    }
    for host in ("web", "web.default", "web.default.svc.cluster.local"):
        parsed = parse([rule | {"spec": {**rule["spec"], "host": host}}, web])  # type: ignore[dict-item]
        assert parsed.errors == []
        assert json.loads(parsed.services["default/web"].traffic_policy) == {"loadBalancer": {"simple": "RANDOM"}}
    stranger = parse([rule | {"spec": {"host": "other"}}, web])
    assert stranger.services["default/web"].traffic_policy == ""
    assert any("default/other" in warning for warning in stranger.warnings)
