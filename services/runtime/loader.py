"""A loader of YAML that no file brings down: what is wrong with one is a `yaml.MarkedYAMLError`, with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import yaml
from yaml.constructor import ConstructorError

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:  # the C loader is ten times as fast, and present in all wheels
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Our files nest about ten deep, a schema in a manifest perhaps fifty.
MAX_DEPTH = 200


class Loader(_Base):
    """PyYAML's safe loader, for `yaml.load_all` and by itself. MarkedYAMLError also for nesting over MAX_DEPTH.

    libyaml composes by recursion in C: 30,000 brackets end the process. Its events come without recursion, so they
    are counted first; that costs a third of the loading.
    """

    def __init__(self, text: str | bytes) -> None:
        _bound_depth(text)
        super().__init__(text)


def _bound_depth(text: str | bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark: Any = event.start_mark
                raise ConstructorError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _told(kind: str, construct: Callable[[Any, yaml.Node], object]) -> Callable[[Any, yaml.Node], object]:
    """PyYAML lets through whatever its parsing of a scalar raises: KeyError, AttributeError, IndexError…"""

    def construct_or_tell(loader: Any, node: yaml.Node) -> object:
        try:
            return construct(loader, node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConstructorError(None, None, f"{node.value!r:.80} is no {kind}", node.start_mark) from error

    return construct_or_tell


for _kind in ("binary", "bool", "float", "int", "timestamp"):
    _tag = f"tag:yaml.org,2002:{_kind}"
    Loader.add_constructor(_tag, _told(_kind, _Base.yaml_constructors[_tag]))
