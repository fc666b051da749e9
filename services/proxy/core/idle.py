"""Which fields of a DestinationRule's trafficPolicy have no effect here: their author should hear of it.

What has one is read in core/traffic.py. Shape: istio.io/latest/docs/reference/config/networking/destination-rule.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_Known = Mapping[str, "_Known | None"]  # None: with all that is in it

_SETTINGS: Final[_Known] = {
    "loadBalancer": {
        "simple": None,
        "consistentHash": {
            "httpHeaderName": None,
            "httpCookie": {"name": None},
            "httpQueryParameterName": None,
            "useSourceIp": None,
        },
    },
    "connectionPool": {"tcp": {"connectTimeout": None}},
}
_POLICY: Final[_Known] = {**_SETTINGS, "portLevelSettings": {"port": {"number": None}, **_SETTINGS}}


def fields(policy: str) -> list[str]:
    """Of spec.trafficPolicy as JSON, "" for none: the paths of those without effect, each once."""
    return list(dict.fromkeys(_walk(json.loads(policy), _POLICY, "trafficPolicy"))) if policy else []


def _walk(value: Any, known: _Known, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, known, path)
    if not isinstance(value, dict):
        return  # of another shape than it should be: traffic.py says so
    for key, inner in value.items():
        here = f"{path}.{key}"
        below = known.get(key)
        if inner is None or (key in known and below is None):
            continue
        if below is None:
            yield here
        else:
            yield from _walk(inner, below, here)
