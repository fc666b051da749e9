"""The keys of EdgeMesh's `edgemesh-agent.yaml` and `edgemesh-gateway.yaml` that have no effect here.

They are accepted so that an existing file works as it is, reported once each, and removed before the
schema in `config` sees the rest. Source: `pkg/apis/config/v1alpha1/types.go` of kubeedge/edgemesh
(v1.12 to v1.17), and the Helm chart's older keys (v1.8 to v1.11).

Pure: standard library only.
"""

from typing import Any

Tree = dict[str, Any]


def _leaves(names: str) -> Tree:
    return dict.fromkeys(names.split())


_META_SERVER: Tree = {
    "server": None,
    "security": {
        **_leaves("enable requireAuthorization insecureSkipTLSVerify tlsCaFile tlsCertFile tlsPrivateKeyFile"),
        "authorization": _leaves("requireAuthorization insecureSkipTLSVerify tlsCaFile tlsCertFile tlsPrivateKeyFile"),
    },
}
_KUBE_API: Tree = {
    **_leaves("master contentType qps burst kubeConfig mode deleteKubeConfig"),
    "metaServer": _META_SERVER,
}
_CONSISTENT_HASH: Tree = _leaves("partitionCount replicationFactor load")
_LOAD_BALANCER: Tree = {
    **_leaves("caller nodeName defaultLBStrategy supportLBStrategies supportedLBStrategies"),
    "consistentHash": _CONSISTENT_HASH,
}

# A dict is a subtree, None a value of any shape.
INERT: Tree = {
    "kubeAPIConfig": _KUBE_API,
    "commonConfig": {
        **_leaves("bridgeDeviceName bridgeDeviceIP dummyDeviceName dummyDeviceIP configMapName"),
        "bridgeDevice": _leaves("bridgeDeviceName bridgeDeviceIP"),
        "dummyDevice": _leaves("dummyDeviceName dummyDeviceIP"),
    },
    "goChassisConfig": {
        "protocol": _leaves("tcpBufferSize tcpClientTimeout tcpReconnectTimes"),
        "loadBalancer": _LOAD_BALANCER,
    },
    "modules": {
        "edgeDNS": {"kubeAPIConfig": _KUBE_API},
        "edgeProxy": {
            "loadBalancer": _leaves("caller nodeName supportLBStrategies supportedLBStrategies"),
            "socks5Proxy": _leaves("nodeName namespace"),
        },
        "edgeTunnel": {
            **_leaves("mode nodeName transport rendezvous enableIpfsLog maxCandidates heartbeatPeriod finderPeriod"),
            **_leaves("configPath listenInterfaces extraFilteredInterfaces"),
            "tunnelLimitConfig": _leaves(
                "enable tunnelBaseStreamIn tunnelBaseStreamOut tunnelPeerBaseStreamIn tunnelPeerBaseStreamOut"
            ),
            "rateLimit": None,
            "metricConfig": None,
        },
        "tunnel": _leaves("enable listenPort"),
        "edgeGateway": {"loadBalancer": _leaves("caller nodeName supportLBStrategies supportedLBStrategies")},
        "edgeCNI": None,
    },
}

# Kubernetes' own headers: no effect is expected of them, so nothing is reported.
SILENT = ("apiVersion", "kind", "metadata")


def strip(raw: Tree, inert: Tree = INERT, path: str = "") -> tuple[Tree, list[str], list[tuple[str, Tree]]]:
    """Splits `raw` into what has a meaning here and the rest.

    Returns (raw without inert keys, paths of the inert keys found, unknown keys inside inert subtrees as
    (path, the names that are valid there)). `raw` is not changed.
    """
    kept: Tree = {}
    found: list[str] = []
    unknown: list[tuple[str, Tree]] = []
    for key, value in raw.items():
        here = f"{path}.{key}" if path else str(key)
        if not path and key in SILENT:
            continue
        if key not in inert:
            kept[key] = value
        elif isinstance(inert[key], dict) and isinstance(value, dict) and here in PARTLY:
            rest, inner, bad = strip(value, inert[key], here)
            kept[key] = rest
            found += inner
            unknown += bad
        elif here in PARTLY:
            kept[key] = value
        else:
            found.append(here)
            unknown += list(_strangers(value, inert[key], here))
    return kept, found, unknown


# Subtrees that hold both kinds of keys; all other subtrees of INERT have no effect as a whole.
PARTLY = frozenset(
    {
        "modules",
        "modules.edgeDNS",
        "modules.edgeProxy",
        "modules.edgeProxy.loadBalancer",
        "modules.edgeProxy.socks5Proxy",
        "modules.edgeGateway",
        "modules.edgeGateway.loadBalancer",
        "modules.edgeTunnel",
    }
)


def _strangers(value: Any, tree: Tree | None, path: str) -> list[tuple[str, Tree]]:
    if tree is None or not isinstance(value, dict):
        return []
    strangers: list[tuple[str, Tree]] = []
    for key, inner in value.items():
        here = f"{path}.{key}"
        if key not in tree:
            strangers.append((here, tree))
        else:
            strangers += _strangers(inner, tree[key], here)
    return strangers
