"""Objects of ingress gateways: from the manifests to whoever watches."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos import discovery_pb2 as pb
from services.discovery.core.gateways import parse

from ..conftest import WriteConfig
from .nodes import running, until
from .test_manifests import WEB


def gateway(name: str = "edge", version: str = "networking.istio.io/v1", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": "Gateway", "metadata": {"name": name}, "spec": {"servers": [], **spec}}


def secret(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "ns"}, **fields}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_all_three_kinds_and_versions_lists_included() -> None:
    versions = ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
    gateways = [gateway(f"g{i}", version) for i, version in enumerate(versions)]
    route = {"apiVersion": versions[0], "kind": "VirtualService", "metadata": {"name": "r"}, "spec": {"hosts": ["*"]}}
    documents = [
        None,
        gateways[0],
        {"apiVersion": "v1", "kind": "List", "items": [gateways[1], route]},
        {
            "apiVersion": versions[2],
            "kind": "GatewayList",
            "items": [{k: gateways[2][k] for k in ("metadata", "spec")}],
        },
        secret(type="kubernetes.io/tls", data={"tls.crt": encoded("C"), "tls.key": encoded("K"), "other": "!"}),
        {"kind": "Deployment"},
    ]
    objects, warnings = parse(documents)
    assert not warnings
    assert sorted(objects) == [*(f"Gateway/default/g{i}" for i in range(3)), "Secret/ns/s", "VirtualService/default/r"]
    assert json.loads(objects["VirtualService/default/r"].body) == {"hosts": ["*"]}
    assert json.loads(objects["Secret/ns/s"].body) == {"tls.crt": "C", "tls.key": "K"}
    assert "K" not in repr(objects["Secret/ns/s"]).replace("Key", "")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (gateway(version="gateway.networking.k8s.io/v1"), "the Gateway API, which is not served"),
        (gateway(version="networking.istio.io/v9"), "expected networking.istio.io/v1 or"),
        (gateway(name="A B"), "metadata.name"),
        ({"kind": "Gateway", "metadata": {"name": "x"}}, "spec is missing"),
        (secret(data={"tls.key": "%%%"}), "data[tls.key] is not base64"),
        (secret(data={"tls.key": encoded("\u00e9")}), "data[tls.key] is not base64"),
        (gateway("double"), "defined twice"),
        (gateway("huge", text="x" * (1 << 20)), "expected at most 1048576"),
    ],
)
def test_a_wrong_object_is_left_out_and_the_others_stay(document: Any, says: str) -> None:
    objects, (warning,) = parse([gateway("double"), document, gateway("after")])
    assert says in warning
    assert sorted(objects) == ["Gateway/default/after", "Gateway/default/double"]


def test_keys_of_a_secret_as_istio_names_them() -> None:
    generic = secret(data={"cert": encoded("C"), "key": encoded("K")}, stringData={"cacert": "A"})
    both = secret(data={"cert": encoded("X"), "tls.crt": encoded("C"), "key": "", "tls.key": encoded("K")})
    for document, pems in (
        (generic, {"tls.crt": "C", "tls.key": "K", "ca.crt": "A"}),
        (both, {"tls.crt": "C", "tls.key": "K"}),
    ):
        objects, warnings = parse([document])
        assert not warnings and json.loads(objects["Secret/ns/s"].body) == pems


def test_secrets_of_other_kinds_are_not_carried() -> None:
    token = secret(type="kubernetes.io/service-account-token", data={"ca.crt": encoded("C")})
    password = secret(type="Opaque", stringData={"password": "p"})
    assert parse([token, password]) == ({}, [])


@pytest.mark.slow
async def test_watchers_see_objects_come_and_go(node_config: WriteConfig, short_path: Path) -> None:
    path = short_path / "services.yaml"

    def write(*documents: object) -> None:
        path.write_text(WEB + "\n---\n" + yaml.safe_dump_all(documents))

    write(gateway("one"), secret(data={"tls.key": encoded("K")}), gateway("bad name"))
    config = node_config("a", modules={"edgeDiscovery": {"servicesFile": str(path), "mdns": {"enable": False}}})
    async with running(config) as (node,):
        events: list[pb.WatchGatewaysResponse] = []

        async def watch() -> None:
            async for event in node.stub.WatchGateways(pb.WatchGatewaysRequest()):
                events.append(event)  # noqa: PERF401 (read by the test meanwhile)

        watching = asyncio.create_task(watch())
        try:

            async def synced() -> bool:
                return bool(events) and events[-1].synced

            await until(synced, "the snapshot is complete")
            assert [event.added.name for event in events[:-1]] == ["one", "s"]
            status = await node.status()
            assert "2 objects of gateways" in status.sources["servicesFile"]
            assert any("Gateway bad name is not used" in warning for warning in status.warnings)
            write(gateway("two"))

            async def changed() -> bool:
                return len(events) == 6

            await until(changed, "one has gone, two has come")
            assert {event.removed for event in events[3:]} == {"Gateway/default/one", "Secret/ns/s", ""}
            assert {event.added.name for event in events[3:]} == {"two", ""}
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
