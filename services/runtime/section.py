"""What the sections of the configuration are made of: one base and the types of their values."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic.alias_generators import to_camel

from services.runtime import address

# sockaddr_un.sun_path holds 108 bytes with the final zero (unix(7)); the longest socket name of a node.
SUN_PATH_MAX = 107
LONGEST_SOCKET = "discovery.sock"


def _absolute(path: Path, info: ValidationInfo) -> Path:
    # Without a base, as in the defaults below, a path stays as it is; `load` gives the base.
    return Path(os.path.normpath(info.context / path.expanduser())) if isinstance(info.context, Path) else path


def short_enough(path: Path) -> Path:
    length = len(os.fsencode(path)) + 1 + len(LONGEST_SOCKET)
    if length > SUN_PATH_MAX:
        raise ValueError(
            f"a path of at most {SUN_PATH_MAX - 1 - len(LONGEST_SOCKET)} bytes (it holds Unix sockets, whose "
            f"names are limited to {SUN_PATH_MAX}), not the {len(os.fsencode(path))} bytes of {path}"
        )
    return path


def _node_name(text: str) -> str:
    # DNS does not tell cases apart and the kubelet lower-cases host names; nor do we.
    name = text.strip().lower()
    if not address.is_node_name(name):
        raise ValueError("letters, digits, '-' and '.' (RFC 1123), beginning and ending with a letter or digit, ≤ 253")
    return name


def cluster_name(text: str) -> str:
    if not address.is_cluster_name(text):
        raise ValueError("lower-case letters, digits and '-' (RFC 1123 label), at most 63 characters")
    return text


def ip_or_empty(text: str) -> str:
    if text and not address.is_ip(text):
        raise ValueError("one IP address of this host, or nothing for all interfaces")
    return text


def endpoint(text: str) -> str:
    address.split(text)
    return text


def contact(text: str) -> str:
    host, port = address.split(text, 20008)
    return address.join(host, port)


def target_pattern(text: str) -> str:
    if not address.is_target_pattern(text):
        raise ValueError("cidr:port or host:port, where port is a number, a range as 8000-8100, or *")
    return text


def node_pattern(text: str) -> str:
    pattern = text.strip().lower()
    if not address.is_node_pattern(pattern):
        raise ValueError("a node's name, in which * stands for any letters, as site1-*")
    return pattern


def _switch(value: Any) -> Any:
    # YAML 1.1 reads a bare `on` and `off` as booleans.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


FilePath = Annotated[Path, AfterValidator(_absolute)]
NodeName = Annotated[str, AfterValidator(_node_name)]
Port = Annotated[int, Field(ge=0, le=65535)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        revalidate_instances="always",
    )
