"""Documents of nodes: Kubernetes manifests as `servicesFile` takes them, and configurations laid over each other."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def service(
    name: str,
    *,
    cluster_ip: str,
    port: int,
    node: str,
    address: str,
    target_port: int,
    protocol: str = "TCP",
    namespace: str = "default",
) -> list[Document]:
    """A Service on `cluster_ip:port` whose backend is `address:target_port` on `node`."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "clusterIP": cluster_ip,
                "clusterIPs": [cluster_ip],
                "ports": [{"name": "main", "port": port, "targetPort": target_port, "protocol": protocol}],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-1",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": target_port, "protocol": protocol}],
            "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": True}}],
        },
    ]


def merged(base: Document, over: Document) -> Document:
    """`base` with the keys of `over`: mappings key by key at any depth, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
